"""Every command of README, the pages and --help is executed in tiny, or listed with its needs."""

import glob
import re
import shlex
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from support.commands import run_tool
from support.doc_commands import all_lines, written_files
from support.doc_runs import NEEDS, RUNS
from support.paths import ROOT
from support.pretext_content import result, write_results
from support.toy_data import make_class_folders, make_coco, make_voc

from moco_d2.benchmark.transfer_command import measuring
from moco_d2.benchmark.transfer_command.budget import Fit, parse_budget
from moco_d2.benchmark.transfer_command.command import answer
from moco_d2.benchmark.transfer_command.forms import FORMS
from moco_d2.benchmark.transfer_command.question import NO_SUPERVISED, Question
from moco_d2.checkpoint.mapping import Architecture, build_torchvision

CONFIGURED = ("tools/pretrain.py", "tools/train_net.py")  # by KEY VALUE pairs
OWN = {"SEED", "OUTPUT_DIR"}


def pattern_of(line):
    return next((p for p in (*NEEDS, *RUNS) if fnmatchcase(line, p)), None)


def test_each_command_is_run_or_listed_with_what_it_needs():
    assert [line for line in all_lines() if pattern_of(line) is None] == []


def test_no_pattern_is_without_a_command():
    assert {*NEEDS, *RUNS} - {pattern_of(line) for line in all_lines()} == set()


def test_what_runs_the_like_is_there():
    for reason in NEEDS.values():
        for name in re.findall(r"(?:tests|\.ci)/[\w/.]+\w", reason):
            assert (ROOT / name).exists(), reason


# Files that a user has, and folders that stand for one where the pages have several.
_PRETRAINED, _RUN = "output/moco_v2/checkpoint_final.pth.tar", "output/voc_C4/moco/1"
LINKS = {
    **dict.fromkeys(("checkpoint.pth.tar", "r-50-1000ep.pth.tar"), _PRETRAINED),
    "output/mine/checkpoint_final.pth.tar": _PRETRAINED,
    "output/run": _RUN,
    **{
        f"other/{folder}/{name}": f"{_RUN}/{name}"
        for folder in ("output", "run")
        for name in ("metrics.json", "config.yaml")
    },
    **dict.fromkeys(("output/a", "output/before"), _RUN),
    **dict.fromkeys((f"output/voc_C4/moco/seed{i}" for i in (1, 2)), _RUN),
    **dict.fromkeys(("output/b", "output/after"), "output/voc_C4/random/1"),
    "output/voc_C4/supervised": "output/voc_C4/random",
    **{
        f"output/{suite}": "output/voc_C4"
        for suite in ("table_2b", "table_5a", "coco_FPN_1x", "smoke", "quick")
    },
    "results": str(ROOT / "results"),  # of the checkout
    "datasets/inat": "datasets/imagenet",
    "my/images": "datasets/imagenet/train",
    **{f"{name}.jpg": f"images/test{i}.jpg" for i, name in enumerate("ab")},
}


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    """The folder in which a user types: with data, with what LINKS stand for, and with a plan that
    has not been measured, which would take a time that depends on the machine.
    """
    for split in ("train", "val"):
        make_class_folders(tmp_path / "datasets/imagenet" / split, per_class=8)
    make_voc(tmp_path / "datasets/VOC2007", images=2)
    for file in make_coco(tmp_path / "coco").iterdir():
        file.rename(tmp_path / file.name)
    write_results(
        tmp_path / "output/figure_3", [result(60.0, MOCO__TEMPERATURE=t) for t in (0.1, 0.3)]
    )
    for name, text in written_files(ROOT / "docs/quick_start.md").items():
        (tmp_path / name).write_text(text)
    (tmp_path / "weights").mkdir()
    for name, target in LINKS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(tmp_path / target)
    slim = build_torchvision(Architecture(18, width_factor=0.25))
    torch.save(slim.state_dict(), tmp_path / "mine.pth")
    monkeypatch.setattr(measuring, "fit", lambda *_: Fit(FORMS[0], 2, 60.0))
    monkeypatch.chdir(tmp_path)
    data = {key: (f"coco:{key}.json:images",) for key in ("train", "test")}
    question = Question(
        ("mine.pth",), **data, budget=parse_budget("2h"), gpus_per_run=0, supervised=NO_SUPERVISED
    )
    answer(question, Path("output/transfer"), plan_only=True)
    return tmp_path


def tiny(line, folder):
    """The words of a command as it is run here."""
    line = f"{line} {RUNS[pattern_of(line)]}"
    line = re.sub(r"--num-gpus \d+", "--num-gpus 1", line)
    line = re.sub(r"--gpus-per-run \d+", "--gpus-per-run 0", line)
    words = shlex.split(line)
    return [name for w in words for name in (sorted(glob.glob(w, root_dir=folder)) or [w])]


def meaning(words, folder):
    """What is equal for commands that do the same, in other folders or with other seeds."""
    pairs = {}
    if words[0] in CONFIGURED:
        at = next(i for i, word in enumerate(words) if re.fullmatch(r"[A-Z_]+(\.[A-Z_]+)*", word))
        pairs = dict(zip(words[at::2], words[at + 1 :: 2], strict=True))
        words = words[:at]
    flags = re.sub(r" (--num-gpus|--out|--output) \S+", "", shlex.join(words)).split()
    settings = [word for key in sorted({*pairs} - OWN) for word in (key, pairs[key])]
    return tuple(str((folder / word).resolve()) for word in [*flags, *settings])


def test_commands_run(user_folder):
    """Of those that mean the same, the first; the folders of the others are links to its folder."""
    done, failed = {}, []
    lines = [line for line in all_lines() if pattern_of(line) in RUNS]
    for line in sorted(lines, key=lambda line: list(RUNS).index(pattern_of(line))):
        words = tiny(line, user_folder)
        out = re.search(r"OUTPUT_DIR (\S+)|$", line)[1]
        if not out and words[0] in CONFIGURED:
            words += ["OUTPUT_DIR", f"output/{len(done)}"]
        key = meaning(words, user_folder)
        if key in done:
            if out and not (user_folder / out).exists():
                (user_folder / out).symlink_to(user_folder / done[key])
            continue
        done[key] = out or words[-1]
        ended = run_tool(ROOT / words[0], *words[1:], cwd=user_folder)
        if ended.returncode:
            failed.append(f"{shlex.join(words)}\n{ended.stdout[-500:]}\n{ended.stderr[-1500:]}")
    assert not failed, "\n\n".join(failed)
    assert len(done) > len(RUNS)
