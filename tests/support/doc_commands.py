"""The commands in the pages: found as bash finds them, and parsed by the parser of each tool."""

import argparse
import contextlib
import functools
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT, TOOLS

from moco_d2.cli import COMMANDS

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_WRITTEN = re.compile(r"^<!-- write: (\S+) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Stands for every command of a block: it adds a line with its words to a file.
_STUB = """#!/bin/sh
{{ printf '{name}'; for word in "$@"; do printf '\\037%s' "$word"; done; echo; }} >> log
"""
_PROGRAMS = ("make", "moco-d2", "python", "torchrun", "uv", "pip", "grep", "git")


class Parsed(BaseException):
    """Ends a script after it has parsed its words, before it begins its work."""


def blocks(page: Path) -> list[str]:
    """The blocks of shell commands of a page."""
    return _BLOCK.findall(page.read_text())


def written_files(page: Path) -> dict[str, str]:
    """The files that a page says to write -> their content."""
    return dict(_WRITTEN.findall(page.read_text()))


@functools.cache
def commands(text: str) -> list[list[str]]:
    """The words of each command that bash starts for a block: without comments, loops unrolled."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = folder / "log"
        log.touch()
        for program in _PROGRAMS:
            _write_stub(folder / "bin" / program, program)
        for file in (*TOOLS.glob("*.py"), ROOT / ".venv/bin/moco-d2"):
            words = file.relative_to(ROOT)
            _write_stub(folder / words, str(words))
        for program in ("python", "pre-commit"):
            _write_stub(folder / ".venv/bin" / program, f".venv/bin/{program}")
        (folder / ".venv/bin/activate").touch()
        done = subprocess.run(
            ["bash", "-euc", text],
            cwd=folder,
            env={**os.environ, "PATH": str(folder / "bin")},
            capture_output=True,
            text=True,
            check=False,
            executable=shutil.which("bash"),
        )
        assert done.returncode == 0, f"{done.stderr}\n{text}"
        return [line.split("\037") for line in log.read_text().splitlines()]


def _write_stub(file: Path, name: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(_STUB.format(name=name))
    file.chmod(0o755)


def script_of(words: list[str]) -> tuple[Path, list[str]]:
    """The file that a command starts, and its arguments."""
    program = words[0].removeprefix(".venv/bin/")
    if program == "moco-d2":
        return TOOLS / COMMANDS[words[1]], words[2:]
    if program == "python":
        return ROOT / words[1], words[2:]
    return ROOT / program, words[1:]


def parse(script: Path, words: list[str]) -> argparse.Namespace:
    """What a script's own parser makes of its words.

    Raises:
        AssertionError: The parser refuses them; with what it prints.
    """
    parsed: list[argparse.Namespace] = []
    with pytest.MonkeyPatch.context() as patch, _quiet() as said:
        patch.setattr(sys, "argv", [str(script.relative_to(ROOT)), *words])
        try:
            if script.parent == TOOLS:
                return runpy.run_path(str(script))["parse_args"]()
            original = argparse.ArgumentParser.parse_args

            def parse_and_end(*arguments, **options):
                parsed.append(original(*arguments, **options))
                raise Parsed

            patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_end)
            patch.syspath_prepend(str(script.parent))
            runpy.run_path(str(script), run_name="__main__")
        except Parsed:
            return parsed[0]
        except SystemExit as ended:
            assert ended.code == 0, f"{script.name} {' '.join(words)}: {said.getvalue()}"
    return argparse.Namespace()  # a script without flags, or --list


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        yield said


def help_examples(script: Path, *words: str) -> str:
    """The examples at the end of a command's --help."""
    with pytest.MonkeyPatch.context() as patch, _quiet() as said:
        patch.setattr(sys, "argv", [str(script.relative_to(ROOT)), *words, "--help"])
        patch.setenv("COLUMNS", "1000")  # argparse breaks the lines of an example otherwise
        with pytest.raises(SystemExit):
            runpy.run_path(str(script))["parse_args"]()
    return re.split(r"\nexamples?:", said.getvalue())[-1]


def help_commands(script: Path) -> list[list[str]]:
    """The commands of the examples of a command's --help, and of those of its subcommands."""
    texts = [help_examples(script)]
    texts += [help_examples(script, n) for n in runpy.run_path(str(script)).get("_COMMANDS", ())]
    # The help of benchmark.py explains each example, after two spaces.
    lines = [re.split(r"(?<=\S) {2,}", line.strip())[0] for t in texts for line in t.splitlines()]
    return commands("\n".join(lines))


def page_commands(page: Path) -> list[list[str]]:
    """The commands of the blocks of a page."""
    return [words for block in blocks(page) for words in commands(block)]


def sentence_commands(page: Path) -> list[list[str]]:
    """The commands within the sentences of a page: those with arguments, and without a placeholder:
    a word in capitals that is no key, dots.
    """
    lines = re.findall(r"`((?:tools/\w+\.py|moco-d2) [^`\s]+ [^`]+)`", page.read_text())
    placeholder = r"\.\.\.|(?<![.\w])[A-Z]+(?![.\w_])|[{*]"
    return [shlex.split(line) for line in lines if not re.search(placeholder, line)]


@functools.cache
def all_lines() -> tuple[str, ...]:
    """Each command of the pages and of --help once: a script by its path in the checkout, without
    the interpreter or the name of the console script.
    """
    found = [find(page) for page in PAGES for find in (page_commands, sentence_commands)]
    found += [help_commands(TOOLS / tool) for tool in sorted({*COMMANDS.values()})]
    return tuple(dict.fromkeys(_line(words) for some in found for words in some))


def _line(words: list[str]) -> str:
    if Path(words[0]).name not in ("make", "uv", "grep", "pre-commit", "torchrun"):
        script, arguments = script_of(words)
        if script.is_file():
            words = [str(script.relative_to(ROOT)), *arguments]
    return shlex.join(words)
