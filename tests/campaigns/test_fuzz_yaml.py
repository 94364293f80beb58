"""A sample of the campaign in campaigns/fuzz_yaml.py, and that it can fail."""

import faulthandler
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from support.paths import CAMPAIGNS
from support.scripts import imported

from moco_d2.errors import UserError

CASES = range(100_000, 100_050)


@pytest.fixture(scope="module")
def campaign():
    with imported(CAMPAIGNS / "fuzz_yaml.py") as module:
        yield module


def test_every_hostile_file_is_refused_in_a_sentence_or_read_as_plain_settings(campaign):
    results = {seed: campaign.run_case(seed) for seed in CASES}
    assert {seed: r.failure for seed, r in results.items() if r.failure} == {}
    assert {r.kind for r in results.values()} == {
        kind.__name__ for kind in campaign.hostile_yaml.KINDS
    }
    assert sum(r.outcome == campaign.REFUSED for r in results.values()) > len(CASES) / 2
    assert all(r.outcome == campaign.READ for r in results.values() if r.kind == "sound")


def crash(case, out):
    faulthandler.disable()  # pytest's; here it is no news
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(case, out):
    time.sleep(60)


def loop(case, out):
    while True:
        pass


def swallow(case, out):
    bytearray(3 << 30)


def stumble(case, out):
    raise KeyError("x")


def run_case(case, out):
    Path("ran").touch()


def run_and_refuse(case, out):
    Path("ran").touch()
    raise UserError("refused; too late")


def ask(case, out):
    try:
        socket.create_connection(("localhost", 9))
    except OSError as error:
        raise UserError("no network here; try another") from error


def resolve(case, out):
    socket.getaddrinfo("localhost", 9)


def escape(case, out):
    (out.parent / "x").mkdir(parents=True)
    (out.parent / "x" / "y").touch()


def leave(case, out):
    out.mkdir(parents=True)
    (out / "x").touch()
    raise UserError("refused; too late")


def ramble(case, out):
    raise UserError("two\nlines")


def refuse(case, out):
    raise UserError("all is refused")


@pytest.mark.parametrize(
    ("door", "said"),
    [
        (crash, "ended by SIGSEGV"),
        (hang, "more than 0.2 s"),
        (loop, "ended by SIGKILL"),
        (swallow, "MemoryError"),
        (stumble, "KeyError: 'x'"),
        (run_case, "a command was run"),
        (run_and_refuse, "a command was run"),
        (ask, "the network was used"),
        (resolve, "the network was used"),
        (escape, "written outside"),
        (leave, "left behind"),
        (ramble, "not a sentence"),
        (refuse, "a sound file was refused"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_campaign_notices(campaign, monkeypatch, door, said):
    if door is hang:
        monkeypatch.setattr(campaign, "LIMIT_S", 0.2)
    if door is loop:
        monkeypatch.setattr(campaign, "CPU_S", 1)
    monkeypatch.setattr(campaign, "DOORS", dict.fromkeys(campaign.DOORS, door))
    seed = next(
        s
        for s in CASES
        if campaign.hostile_yaml.KINDS[s % len(campaign.hostile_yaml.KINDS)]
        is campaign.hostile_yaml.sound
    )
    assert said in campaign.run_case(seed).failure
