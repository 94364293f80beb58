"""The package as it is installed: its command, its configs, and what a machine lacks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

from moco_d2 import cli, doctor
from moco_d2.cli import COMMANDS

UV = Path(sys.executable).with_name("uv")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Run words of the installed command, away from the checkout."""
    if not UV.is_file():
        pytest.skip("the environment has no uv")
    target = tmp_path_factory.mktemp("installed")
    flags = ("--offline", "--no-deps", "--no-build-isolation", "--quiet", "--target", target)
    source = target.with_name("source")  # setuptools writes into its folder
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=False)
    for name in tracked.stdout.splitlines() or pytest.skip("not a checkout"):
        if name.startswith(("moco_d2/", "configs/", "tools/")) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [UV, "pip", "install", "--python", sys.executable, *flags, source], check=True, text=True
    )
    (target / "tools").mkdir()  # as Detectron2's sdist installs it
    for name in ("benchmark.py", "train_net.py"):
        (target / "tools" / name).write_text("raise SystemExit('a file of Detectron2')")

    def run(*words):
        return subprocess.run(
            [sys.executable, target / "bin" / "moco-d2", *words],
            cwd=target,
            env={**os.environ, "PYTHONPATH": str(target)},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_an_installation_has_the_command_with_tools_and_configs(installed):
    plan = installed("benchmark", "plan", "table_2b")
    assert plan.returncode == 0 and "voc_C4" in plan.stdout, plan.stderr
    refused = installed("train", "--config", "voc_C4_nix.yaml")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: there is no config file 'voc_C4_nix.yaml'")


def call(monkeypatch, capsys, *words):
    """Exit code and output of ``moco-d2 WORDS``."""
    monkeypatch.setattr(sys, "argv", ["moco-d2", *words])
    monkeypatch.setattr(cli, "run_command", lambda main: sys.exit(main()))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr()


def test_the_command_lists_its_commands(monkeypatch, capsys):
    code, said = call(monkeypatch, capsys, "--help")
    assert code == 0
    for name in COMMANDS:
        assert re.search(rf"\n    {name}\s+[A-Z]", said.out), name
    code, said = call(monkeypatch, capsys, "pretrian")
    assert code == 2 and "invalid choice: 'pretrian'" in said.err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_the_command_as_it_is_called(monkeypatch, capsys, name):
    code, said = call(monkeypatch, capsys, name, "--help")
    assert code == 0
    assert said.out.startswith(f"usage: moco-d2 {name} ")
    assert f"  moco-d2 {name}" in said.out.split("example")[-1]
    assert "tools/" not in said.out.split("example")[-1]


def test_a_record_has_the_command_as_it_was_called(monkeypatch):
    parse = cli.argument_parser("").parse_args
    monkeypatch.setattr(sys, "argv", ["moco-d2 train", "--config", "a b.yaml"])
    assert cli.argument_parser("").parse_args().command == "moco-d2 train --config 'a b.yaml'"
    assert parse(["--config", "a.yaml"]).command.startswith("tools/")


def test_the_doctor_finds_what_is_here(tmp_path, monkeypatch):
    report = doctor.examine()
    assert not report.missing and "every command can run here" in report.text()
    found = dict(report.found)
    assert "compiled operators" in found["Detectron2"] and "torch" in found["versions"]
    assert {"CPU", "datasets", "disk"} <= found.keys()
    extras = {extra for extra, _ in doctor._OPTIONAL.values()}
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in pyproject for extra in extras)
    assert set(found["extras"].split(", ")) <= extras | {"none"}


def test_the_doctor_finds_cached_weights_and_absent_extras(tmp_path, monkeypatch):
    monkeypatch.setenv("MOCO_D2_CACHE", str(tmp_path))
    there = doctor.Report()
    doctor._examine_weights(there)
    assert "no published weights are in the cache" in there.text()
    (tmp_path / "resnet50-0676ba61.pth").touch()
    (tmp_path / "hub" / "lab" / "moco" / "main").mkdir(parents=True)
    there = doctor.Report()
    doctor._examine_weights(there)
    assert dict(there.found)["weights"].endswith(": torchvision://resnet50, hf://lab/moco")
    monkeypatch.setitem(doctor._OPTIONAL, "no_such_module", ("some", "MOCO.SOMETHING"))
    doctor._examine_extras(there)
    assert "MOCO.SOMETHING (some)" in there.advice[-1]
    assert "uv pip install '.[EXTRA]'" in there.advice[-1]


def test_the_doctor_names_requirements_of_another_version(monkeypatch):
    required = ["numpy>=1", "no_such_package>=2", "wrapt<0.1", "torch<1", 'absent; extra == "x"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: required)
    installed = doctor.metadata.version("wrapt")
    assert doctor._unmet_requirements(already={"torch"}) == [
        "no_such_package; uv pip install 'no_such_package>=2'",
        f"wrapt<0.1, not {installed}; uv pip install 'wrapt<0.1'",
    ]


def test_the_doctor_names_what_is_missing_and_the_fix(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    monkeypatch.setattr(doctor, "_NEEDED", {"torch": "", **doctor._NEEDED})
    code, said = call(monkeypatch, capsys, "doctor")
    assert code == 1
    assert "missing: detectron2 (ModuleNotFoundError: " in said.out
    assert "; uv pip install '.[detectron2]', or" in said.out
    assert "every command can run here" not in said.out


@pytest.mark.parametrize("package", ["detectron2", "msgspec", "yaml"])
def test_a_missing_package_is_one_sentence(package):
    code = (
        f"import sys; sys.modules['{package}'] = None; sys.argv = ['moco-d2', 'train', '--config', "
        "'voc_C4_random.yaml']; from moco_d2.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        f"error: {package} is not installed: moco-d2 doctor says how to install it\n"
    )
