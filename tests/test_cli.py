"""Flags and overrides in any order; and what a command prints never stops its work, whatever its
parent does with the streams.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

from moco_d2.cli import argument_parser

# Prints more than a buffer holds, and then writes the file that is its work.
WORK = """
import os, sys
from pathlib import Path
from moco_d2.cli import run_command

def main():
    with open(sys.argv[1], "w") as file:
        for number in range(5000):
            print("a line with ±, é and 永", number)
        os.write(1, b"by C code\\n")
        file.write("done")

run_command(main)
"""


def run(shell: str, *words: object, **variables: str) -> subprocess.CompletedProcess:
    """Run ``python words``, which the shell's text calls ``"$@"``."""
    command = ["bash", "-o", "pipefail", "-c", shell, "bash", sys.executable, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    "shell",
    [
        '"$@" | true',
        '"$@" | head -1',
        '"$@" >&-',
        '"$@" >&- 2>&- <&-',
        'PYTHONIOENCODING=ascii "$@"',
        'PYTHONUNBUFFERED=1 "$@" | true',
    ],
)
def test_the_work_is_done_without_a_traceback(shell, tmp_path):
    file = tmp_path / "work"
    ended = run(shell, "-c", WORK, file)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert file.read_text() == "done"


def test_characters_that_the_terminal_lacks_are_escaped(tmp_path):
    ended = run('"$@"', "-c", WORK, tmp_path / "work", PYTHONIOENCODING="ascii")
    assert ended.stdout.startswith(r"a line with \xb1, \xe9 and \u6c38 0")


def test_output_that_a_full_disk_loses_is_an_error(tmp_path):
    ended = run('"$@" > /dev/full', "-c", WORK, tmp_path / "work")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: cannot write (No space left on device)")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("words", [["paper"], ["paper", "--help"]])
def test_tables_into_a_closed_pipe_end_without_a_traceback(words):
    ended = run('"$@" | true', ROOT / "tools" / "benchmark.py", *words)
    assert ended.stderr == ""
    assert ended.returncode == 0


def test_world_size_is_read_as_text():
    ended = run('"$@"', "-c", WORK, Path(os.devnull), WORLD_SIZE="many")
    assert (ended.returncode, ended.stderr) == (0, "")


def parse(*words):
    parser = argument_parser("")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--predict", nargs="+")
    return parser.parse_args(["--config-file", "x.yaml", *words])


@pytest.mark.parametrize(
    "words",
    [
        ("--resume", "--num-gpus", "2", "SEED", "-1", "OUTPUT_DIR", "out"),
        ("SEED", "-1", "OUTPUT_DIR", "out", "--resume", "--num-gpus", "2"),
        ("--resume", "SEED", "-1", "--num-gpus", "2", "OUTPUT_DIR", "out"),
        ("SEED", "-1", "--resume", "OUTPUT_DIR", "out", "--num-gpus=2"),
    ],
)
def test_flags_may_follow_overrides(words):
    args = parse(*words)
    assert args.resume and args.num_gpus == 2 and not args.force
    pairs = dict(zip(args.opts[::2], args.opts[1::2], strict=True))
    assert pairs == {"SEED": "-1", "OUTPUT_DIR": "out"}


@pytest.mark.parametrize(
    "words",
    [
        ("SEED", "1", "SEED", "2", "--resume", "SEED", "3"),
        ("SEED", "1", "--resume", "SEED", "2", "--num-gpus", "2", "SEED", "3"),
        ("--resume", "SEED", "1", "SEED", "2", "SEED", "3"),
    ],
)
def test_of_a_key_that_is_given_twice_the_last_value_counts_wherever_flags_are(words):
    args = parse(*words)
    assert args.resume and args.opts == ["SEED", "1", "SEED", "2", "SEED", "3"]


def test_images_may_follow_overrides():
    args = parse("MODEL.WEIGHTS", "w.pth", "--predict", "a.jpg", "b.jpg", "OUTPUT_DIR", "out")
    assert args.predict == ["a.jpg", "b.jpg", "OUTPUT_DIR", "out"]
    assert args.opts == ["MODEL.WEIGHTS", "w.pth"]


def test_an_unknown_flag_among_overrides_is_named(capsys):
    with pytest.raises(SystemExit):
        parse("SEED", "1", "--forced", "OUTPUT_DIR", "out")
    assert "unrecognized arguments: --forced" in capsys.readouterr().err


def test_a_value_of_a_suite_is_not_a_flag():
    args = parse("--overrides-from-file", "OUTPUT_DIR", "--force", "SEED", "--resume")
    assert args.opts == ["OUTPUT_DIR", "--force", "SEED", "--resume"]
    assert not args.force and not args.resume
