"""The worked examples of docs/ do what the pages say, in a copy of the package.

What a block is for stands in a comment before it, which a reader of the page does not see:

* ``write: FILE``: the block is a file.
* ``insert: FILE before: LINE``, or ``after: LINE``, and ``replace: FILE line: LINE``: an edit.
* ``run``: a Python program; ``prints``: what the program before it prints.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

PAGES = [*sorted((ROOT / "docs" / "how_to").glob("*.md")), ROOT / "docs" / "statistics.md"]
_BLOCK = re.compile(r"^<!-- (.*?) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def checkout(tmp_path):
    """A copy of the package, its configs, and the records of the demo."""
    for folder in ("moco_d2", "configs", "results/board/demo"):
        shutil.copytree(ROOT / folder, tmp_path / folder)  # with its compiled files
    return tmp_path


def edit(file: Path, how: str, line: str, text: str) -> None:
    lines = file.read_text().splitlines(keepends=True)
    (place,) = [i for i, existing in enumerate(lines) if existing.rstrip("\n") == line]
    first, last = {"before": (place, place), "after": (place + 1, place + 1)}.get(
        how, (place, place + 1)
    )
    file.write_text("".join([*lines[:first], text, *lines[last:]]))


# Has imported what takes long, but nothing of the package, and forks the programs.
_SERVER = """
import json, os, sys
import torch, torchvision
for line in sys.stdin:
    folder, program = json.loads(line)
    child = os.fork()
    if child == 0:
        break
    print(os.waitpid(child, 0)[1], flush=True)
else:
    sys.exit()
os.chdir(folder)
os.environ["PYTHONPATH"] = folder
sys.path.insert(0, folder)
for descriptor, name in ((1, "stdout"), (2, "stderr")):
    os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
exec(program, {"__name__": "__main__"})
import moco_d2
print("package:", moco_d2.__file__, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def run_program(tmp_path_factory):
    """Run a program with the package in a folder; return what it prints."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        cwd=tmp_path_factory.mktemp("server"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as server:

        def run_program(program: str, folder: Path) -> str:
            server.stdin.write(json.dumps([str(folder), program]) + "\n")
            status, errors = server.stdout.readline(), (folder / "stderr").read_text()
            assert status == "0\n", errors
            assert errors.splitlines()[-1] == f"package: {folder}/moco_d2/__init__.py"
            return (folder / "stdout").read_text()

        yield run_program
        server.stdin.close()  # ends it


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_worked_example_does_what_the_page_says(page, checkout, run_program):
    printed, runs = None, 0
    for directive, block in _BLOCK.findall(page.read_text()):
        what, _, rest = directive.partition(": ")
        if what == "write":
            (checkout / rest).write_text(block)
        elif what in ("insert", "replace"):
            file, how, line = re.fullmatch(r"(\S+) (before|after|line): (.*)", rest).groups()
            edit(checkout / file, how, line, block)
        elif what == "run":
            printed, runs = run_program(block, checkout), runs + 1
        elif what == "prints":
            assert printed == block
        else:
            raise AssertionError(directive)
    assert runs


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_shows_edits_that_are_none_yet(page):
    """An example that has become part of the package is not an example of adding it."""
    for directive, block in _BLOCK.findall(page.read_text()):
        what, _, rest = directive.partition(": ")
        if what == "insert":
            assert block not in (ROOT / rest.split()[0]).read_text()
        elif what == "write":
            assert not (ROOT / rest).exists()
