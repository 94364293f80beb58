"""The notebooks of examples/ run from top to bottom, on a CPU."""

import json
import re
import shlex

import pytest
from support.commands import run_tool
from support.paths import ROOT, TOOLS

from moco_d2.cli import COMMANDS

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
_SHELL = re.compile(r"^( *)!(.*)$", re.MULTILINE)


def shell(line):
    """What a line that begins with ``!`` does: run a command of moco-d2, here a forked one."""
    program, name, *words = shlex.split(line)
    assert program == "moco-d2"
    done = run_tool(TOOLS / COMMANDS[name], *words, cwd=".")
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs(notebook, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = json.loads(notebook.read_text())["cells"]
    names = {"__name__": "__main__", "__shell": shell}
    for cell in cells:
        if cell["cell_type"] == "code":
            # IPython puts the values of {names} into such a line.
            code = _SHELL.sub(r"\1__shell(f'''\2''')", "".join(cell["source"]))
            exec(compile(code, str(notebook), "exec"), names)
    printed = capsys.readouterr().out
    assert re.search(r"\| random \|.*\n\| mine", printed)
    assert re.search(r"no order between .* is supported", printed)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_committed_without_output(notebook):
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
