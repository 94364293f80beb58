"""A sample of the campaign in campaigns/fuzz_checkpoints.py, and that it can fail."""

import os
import signal

import pytest
from support.paths import CAMPAIGNS
from support.scripts import imported

CASES = range(100_000, 100_080)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    with imported(CAMPAIGNS / "fuzz_checkpoints.py") as module:
        # What a first conversion imports and looks up, the forked cases have from here.
        path = tmp_path_factory.mktemp("sound") / "case.pth"
        module.write(module.sound(), ".pth", path)
        module.convert(path, path.with_name("w.pth"))
        yield module


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_every_damaged_file_is_refused_in_a_sentence_or_converted_as_it_is(campaign):
    results = {seed: campaign.run_case(seed) for seed in CASES}
    assert {seed: r.failure for seed, r in results.items() if r.failure} == {}
    assert {r.container for r in results.values()} == set(campaign.CONTAINERS)
    assert len({r.kind for r in results.values()}) > 20
    assert sum(r.outcome == campaign.REFUSED for r in results.values()) > len(CASES) / 2


@pytest.mark.parametrize("container", [".pth", ".legacy.pth", ".pkl", ".safetensors", ".npz"])
def test_what_is_not_damaged_is_converted(campaign, container, tmp_path):
    path = tmp_path / f"case{container}"
    campaign.write(campaign.sound(), container, path)
    campaign.convert(path, tmp_path / "w.pth")
    assert campaign._unaltered(tmp_path / "w.pth")


def _case(alter, container):
    def make(seed, folder):
        path = folder / f"case{container}"
        alter(path)
        return path, "planted", container, False

    return make


def test_the_campaign_notices(campaign, monkeypatch):
    """Altered weights that convert, an exception, and a command that runs."""

    def altered(path):
        state = campaign.sound()
        state["conv1.weight"] += 1
        campaign.write(state, ".pth", path)

    monkeypatch.setattr(campaign, "make", _case(altered, ".pth"))
    assert campaign.run_case(0).failure == "altered weights were converted"

    def crash(*_, **__):
        raise KeyError("x")

    monkeypatch.setattr(campaign, "convert", crash)
    assert "KeyError" in campaign.run_case(0).failure

    def run(path, *_, **__):
        (path.parent / "executed").touch()
        raise campaign.UserError("refused; too late")

    monkeypatch.setattr(campaign, "convert", run)
    assert "code from the file was run" in campaign.run_case(0).failure

    monkeypatch.setattr(campaign, "convert", lambda *_, **__: os.kill(os.getpid(), signal.SIGSEGV))
    assert "the interpreter ended with -11" in campaign.run_case(0).failure

    def hungry(path, *_, **__):
        bytearray(2 * campaign.MEMORY)
        raise campaign.UserError("refused; too late")

    monkeypatch.setattr(campaign, "MEMORY", 128 << 20)
    monkeypatch.setattr(campaign, "convert", hungry)
    assert "MiB of memory, but" in campaign.run_case(0).failure

    monkeypatch.setattr(campaign, "BLOCKED_S", 0.5)
    monkeypatch.setattr(campaign, "convert", lambda *_, **__: signal.pause())
    assert "waits for more than 0.5 s" in campaign.run_case(0).failure

    def busy(*_, **__):
        while True:
            pass

    monkeypatch.setattr(campaign, "BLOCKED_S", 100)
    monkeypatch.setattr(campaign, "LIMIT_S", 0)
    monkeypatch.setattr(campaign, "convert", busy)
    assert "more than 0 s" in campaign.run_case(0).failure
