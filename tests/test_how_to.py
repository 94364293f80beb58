"""The worked examples of docs/how_to/ do what the pages say, in a copy of the package.

What a block is for stands in a comment before it, which a reader of the page does not see:

* ``write: FILE``: the block is a file.
* ``insert: FILE before: LINE``, or ``after: LINE``, and ``replace: FILE line: LINE``: an edit.
* ``run``: a Python program; ``prints``: what the program before it prints.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

PAGES = sorted((ROOT / "docs" / "how_to").glob("*.md"))
_BLOCK = re.compile(r"^<!-- (.*?) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def checkout(tmp_path):
    """A copy of the package and its configs."""
    for folder in ("moco_d2", "configs"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    return tmp_path


def edit(file: Path, how: str, line: str, text: str) -> None:
    lines = file.read_text().splitlines(keepends=True)
    (place,) = [i for i, existing in enumerate(lines) if existing.rstrip("\n") == line]
    first, last = {"before": (place, place), "after": (place + 1, place + 1)}.get(
        how, (place, place + 1)
    )
    file.write_text("".join([*lines[:first], text, *lines[last:]]))


_SAY_WHERE = "\nimport moco_d2, sys; sys.exit('package: ' + moco_d2.__file__)"


def run_program(program: str, folder: Path) -> str:
    """Run a program with the package in `folder`; return what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", program + _SAY_WHERE],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    last = result.stderr.splitlines()[-1:]
    assert last == [f"package: {folder}/moco_d2/__init__.py"], result.stderr
    return result.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_worked_example_does_what_the_page_says(page, checkout):
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
