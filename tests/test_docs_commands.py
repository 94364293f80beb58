"""Every command of README, the pages and --help is one: each is parsed by its tool's own parser,
names configs, suites and targets that exist, and sets keys to values that they accept. The quick
start also runs, in tiny; tests/test_docs_runs.py runs the other pages.
"""

import argparse
import json
import re
import shlex
from pathlib import Path

import pytest
from support.commands import run_tool
from support.doc_commands import (
    PAGES,
    blocks,
    help_commands,
    page_commands,
    parse,
    script_of,
    sentence_commands,
    written_files,
)
from support.paths import ROOT, TOOLS

from moco_d2.benchmark.runs.suites import load_suite
from moco_d2.cli import COMMANDS
from moco_d2.config.load import load_config_of

# Commands that no parser of ours reads; support/doc_runs.py says why nothing runs them.
OTHERS = ("uv ", ".venv/bin/pre-commit ", "python detectron2/", "grep ")
# Files of a user, or that a command of another page writes.
OF_USERS = re.compile(
    r"(mine|checkpoint)\S*|r-50-1000ep.pth.tar|weights/\S+|output/\S+|\w+://\S+|random"
)
# Suites, configs and values that the pages of how_to/ add to a copy of the package.
WRITTEN_IN_A_COPY = {"pets.yaml", "pets_C4_moco.yaml", "HarderHalf"}


def without_torchrun(words):
    """The command that torchrun starts, after torchrun's own parser has read its flags."""
    from torch.distributed.run import get_args_parser

    args = get_args_parser().parse_args(words[1:])
    return [args.training_script, *args.training_script_args]


def check(words):
    """Assert that a command can be typed."""
    line = shlex.join(words)
    if line.startswith(OTHERS):
        return
    if words[0] == "make":
        targets = re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text())
        assert set(words[1:]) <= set(targets), line
        return
    if words[0] == "torchrun":
        words = without_torchrun(words)
    script, arguments = script_of(words)
    assert script.is_file(), line
    args = parse(script, arguments)
    if script.parent == TOOLS:
        check_values(script.stem, args, line)


def check_values(tool, args, line):
    """Assert that what a command names exists, and that its keys accept its values."""
    if tool == "benchmark" and args.command in ("plan", "run"):
        made = args.suite.startswith("output/") and not Path(args.suite).exists()
        if args.suite not in WRITTEN_IN_A_COPY and not made:
            assert load_suite(args.suite).cells, line
    elif tool == "convert" and args.src:
        assert OF_USERS.fullmatch(args.src), line
    elif tool == "linear_eval":
        assert OF_USERS.fullmatch(args.checkpoint), line
    config = getattr(args, "config_file", None)
    if config and not WRITTEN_IN_A_COPY & {config, *args.opts}:
        if re.match("weights/|output/", config):  # by --emit-config
            args.config_file = "random"
        load_config_of(args)


@pytest.fixture
def typed_at(tmp_path, monkeypatch):
    """Function: write the files that a page says to write, and go where they are."""

    def go(page):
        for name, content in written_files(page).items():
            if not name.startswith(("configs/", "moco_d2/")):
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(content)
        (tmp_path / "weights").mkdir(exist_ok=True)
        (tmp_path / "weights/mine.yaml").write_text("MODEL: {WEIGHTS: weights/mine.pth}\n")
        monkeypatch.chdir(tmp_path)

    return go


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda p: p.stem)
def test_commands_of_a_page_can_be_typed(page, typed_at):
    typed_at(page)
    found = page_commands(page)
    assert found
    for words in found:
        check(words)


def test_commands_within_sentences_can_be_typed(typed_at):
    typed_at(ROOT / "docs/quick_start.md")
    found = [words for page in PAGES for words in sentence_commands(page)]
    assert found
    for words in found:
        check(words)


@pytest.mark.parametrize("tool", sorted({*COMMANDS.values()}))
def test_examples_of_help_can_be_typed(tool, typed_at):
    typed_at(ROOT / "docs/quick_start.md")
    found = help_commands(TOOLS / tool)
    assert found
    for words in found:
        check(words)


@pytest.mark.parametrize(
    "line",
    [
        "tools/train_net.py --config voc_C4_nix.yaml",
        "tools/train_net.py --config voc_C4_moco.yaml SOLVER.MAX_ITERS 1",
        "tools/train_net.py --config voc_C4_moco.yaml MOCO.DRAW_SCORE 2",
        "tools/benchmark.py plan table_2z",
        "tools/benchmark.py tabel output",
        "tools/convert.py no.such.file weights/x.pth",
        "moco-d2 nix",
        "make nix",
        "torchrun --nix tools/pretrain.py",
        "python campaigns/nix.py",
        "python campaigns/faults.py --nix",
    ],
)
def test_a_wrong_command_is_noticed(line):
    with pytest.raises(BaseException):  # noqa: B017  whatever the parser raises
        check(shlex.split(line))


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_table_of_the_readme_is_one_of_the_demos():
    block = re.search(
        r"<!-- from docs/demo/report.md -->\n(.*?)<!-- end -->",
        (ROOT / "README.md").read_text(),
        re.DOTALL,
    )[1]
    assert block.count("\n|") > 3
    assert block in (ROOT / "docs/demo/report.md").read_text()


TINY = {
    "pretrain.py": "MOCO.EPOCHS 1 MOCO.AUGMENTATION.SIZE 32 DATALOADER.NUM_WORKERS 0",
    "train_net.py": "SOLVER.MAX_ITER 2 SOLVER.STEPS (1,) SOLVER.WARMUP_ITERS 0 "
    "TEST.PRECISE_BN.NUM_ITER 1 DATALOADER.NUM_WORKERS 0",
}
LEFT_OUT = {
    "make": "makes the environment of this test",
    "moco-d2": "tests/benchmark/ runs the command transfer",
    "report": "tests/benchmark/ runs it; it loads every detector",
    "plan": "tests/benchmark/ runs it; it imports what a run does",
}


def test_the_quick_start_runs(tmp_path, typed_at):
    """Its commands one after the other; of its suite one run for each initialization."""
    page = ROOT / "docs/quick_start.md"
    typed_at(page)
    (tmp_path / "weights/mine.yaml").unlink()  # which a command writes
    done = []
    for words in page_commands(page):
        name = Path(words[0]).name
        if name in LEFT_OUT or words[1] in LEFT_OUT:
            continue
        jobs = [(name, words[1:])]
        if words[:2] == ["tools/benchmark.py", "run"]:
            jobs = runs_of(words[2], tmp_path / "output/quick")
        for tool, arguments in jobs:
            extra = TINY.get(tool, "").split()
            ended = run_tool(TOOLS / tool, *arguments, *extra, cwd=tmp_path)
            assert ended.returncode == 0, f"{words}\n{ended.stdout}\n{ended.stderr}"
            done.append(tool)
    assert done.count("train_net.py") == 2 and done[-1] == "benchmark.py"
    assert re.search(r"\| random \|.*\n\| mine", ended.stdout)
    assert "whose data or schedule is not the paper's" in ended.stdout
    (file,) = tmp_path.glob("output/quick/voc_C4/*mine*/seed1/record.json")
    record = json.loads(file.read_text())
    assert record["coverage"] == {"expected": 100, "loaded": 100}  # of a ResNet-18
    iterations = -(-90 // 32) - 1  # an epoch leaves out its last, incomplete batch
    assert record["weights"]["provenance"]["pretraining"]["iteration"] == iterations


def runs_of(suite, folder):
    """Name and arguments of the first command for each initialization of a suite."""
    from moco_d2.benchmark.runs.cell_state import placed

    suite = load_suite(suite)
    for name, content in suite.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    cells = {cell.initialization: cell for cell in reversed(suite.cells)}
    return [
        (tool, [placed(word, cell, folder) for word in words])
        for cell in cells.values()
        for tool, words in cell.commands
    ]


def test_arguments_are_a_namespace_of_the_tool():
    args = parse(TOOLS / "convert.py", ["a", "b"])
    assert isinstance(args, argparse.Namespace) and (args.src, args.dst) == ("a", "b")
