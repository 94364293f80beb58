"""The commands have one form, and so have the scripts beside them."""

import os
import re
import runpy
import subprocess
import sys

import pytest
from support.paths import ROOT, TOOLS

from moco_d2.pretrain.checkpointing import FINAL_CHECKPOINT

COMMANDS = sorted(TOOLS.glob("*.py"))
SCRIPTS = [
    file
    for folder in ("tools", "benchmarks", "campaigns", "studies")
    for file in sorted((ROOT / folder).glob("*.py"))
]


def name(file):
    return str(file.relative_to(ROOT))


@pytest.fixture
def help_of(monkeypatch, capsys):
    """Function: file of a command -> what its --help prints."""

    def run(file):
        monkeypatch.setattr(sys, "argv", [name(file), "--help"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(file))["parse_args"]()
        assert ended.value.code == 0
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("file", COMMANDS, ids=name)
def test_help_says_what_the_command_does_and_ends_with_examples_of_it(file, help_of):
    text = help_of(file)
    description = text.split("\n\n")[1]
    assert re.match(r"[A-Z].+\.$", description.splitlines()[0])
    examples = re.split(r"\nexamples?:\n", text)[-1].rstrip("\n").splitlines()
    assert examples and all(line.startswith("  ") for line in examples)
    assert f"{examples[0]} ".startswith(f"  {name(file)} ")


@pytest.mark.parametrize("path", ["", str(ROOT)], ids=["no_package", "no_dependencies"])
@pytest.mark.parametrize("file", COMMANDS, ids=name)
def test_a_python_without_the_environment_is_one_sentence(file, path):
    """`python tools/transfer.py` in a plain checkout, with the system's Python."""
    ended = subprocess.run(
        [sys.executable, "-S", name(file), "mine.pth"],  # -S leaves out site-packages
        check=False,
        cwd=ROOT,
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    missing = "wrapt" if path else "moco_d2"
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        f"error: No module named '{missing}'; run `make env`, then .venv/bin/python {name(file)}\n"
    )


@pytest.mark.parametrize("file", COMMANDS, ids=name)
def test_a_command_parses_and_calls(file):
    """parse_args, main, and run_command(main): nothing else than what begins with a line."""
    tool = runpy.run_path(str(file))
    assert callable(tool["parse_args"]) and callable(tool["main"])
    assert file.read_text().endswith('\n\nif __name__ == "__main__":\n    run_command(main)\n')


def test_examples_name_the_checkpoint_that_pretraining_writes(help_of):
    assert f"/{FINAL_CHECKPOINT} " in help_of(TOOLS / "convert.py")
    for file in COMMANDS:
        for named in re.findall(r"[\w/]*/checkpoint_final\S*", help_of(file)):
            assert named.endswith(f"/{FINAL_CHECKPOINT}")


@pytest.mark.parametrize("file", SCRIPTS, ids=name)
def test_what_can_be_run_begins_with_a_line_for_it_and_is_executable(file):
    lines = file.read_text().splitlines()
    is_script = any(line.startswith('if __name__ == "__main__":') for line in lines)
    assert (lines[0] == "#!/usr/bin/env python3") == is_script
    assert os.access(file, os.X_OK) == is_script


@pytest.mark.parametrize(
    "file", [file for file in SCRIPTS if "parse_args(" in file.read_text()], ids=name
)
def test_what_has_flags_explains_them(file, capsys):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", [name(file), "--help"])
        patch.syspath_prepend(str(file.parent))
        runpy.run_path(str(file), run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")
