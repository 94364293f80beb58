"""What commands show on a terminal: a first screen and a progress bar; the rest is in log.txt."""

import contextlib
import fcntl
import logging
import os
import re
import shlex
import signal
import struct
import termios

import pytest
from support.commands import Python, run_tool
from support.paths import TOOLS
from support.toy_data import SLIM_DETECTOR, make_class_folders, make_voc

from moco_d2.engine.terminal import _Essential, count

SECRET = "Full config saved to"  # a line of Detectron2's set-up


@pytest.fixture(scope="module")
def voc_words(tmp_path_factory):
    root = make_voc(tmp_path_factory.mktemp("voc") / "VOC2007")
    data = ("DATASETS.TRAIN", f"voc:{root}:trainval", "DATASETS.TEST", f"voc:{root}:test")
    return ["--config", "voc_C4_random.yaml", *SLIM_DETECTOR, *data, "MODEL.DEVICE", "cpu"]


class Screen:
    """A command whose output is a terminal."""

    def __init__(self, *words, cwd):
        self.ours, theirs = os.openpty()
        size = struct.pack("HHHH", 40, 120, 0, 0)  # lines and columns; without them there is no bar
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, size)
        self.process = Python(words, cwd=cwd, stdout=theirs, stderr=theirs)
        os.close(theirs)
        self.text = ""

    def read(self, until=None):
        """Read to the end, or until a pattern appears."""
        with contextlib.suppress(OSError):  # the end of a pseudo-terminal
            while not (until and re.search(until, self.text)):
                part = os.read(self.ours, 65536).decode(errors="replace")
                if not part:
                    break
                self.text += part.replace("\r\n", "\n")
        return self.text

    def end(self):
        self.read()
        os.close(self.ours)
        return self.process.wait(600)


def first_screen(text):
    """The labels of the rows before the bar, among at most 15 lines."""
    before = text.split("%|")[0]
    assert len(before.splitlines()) <= 15, before
    assert "reading settings, weights and data ..." in before.splitlines()[0]
    return " ".join(re.findall(r"^(\w+) {2,}\S", before, re.MULTILINE))


def test_fine_tuning_shows_ten_lines_and_a_bar_and_the_rest_is_in_the_log(voc_words, tmp_path):
    screen = Screen(TOOLS / "train_net.py", *voc_words, "OUTPUT_DIR", "out", cwd=tmp_path)
    assert screen.end() == 0
    rows = "task weights train test device batch rate steps evaluation output"
    assert first_screen(screen.text) == rows
    assert re.search(r"^train +6 images of voc:", screen.text, re.MULTILINE)
    assert re.search(r"voc_C4: +\d+%\|.*/2 \[\d\d:\d\d<\d\d:\d\d, .*step.*loss=\d", screen.text)
    assert "evaluating voc:" in screen.text and "11-point AP" in screen.text
    assert screen.text.count("run record: ") == 1
    log = (tmp_path / "out/log.txt").read_text()
    for line in (SECRET, "GeneralizedRCNN(", "effective schedule: 2 steps", "total_loss: "):
        assert line in log and line not in screen.text, line
    assert "voc_C4 (voc_C4_random.yaml, seed " in log


def test_a_run_without_a_terminal_has_plain_lines(voc_words, tmp_path):
    words = [*voc_words, "OUTPUT_DIR", "out"]
    result = run_tool(TOOLS / "train_net.py", *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    said = re.sub(r"\x1b\[[\d;]*m", "", result.stdout)
    for line in (SECRET, "GeneralizedRCNN(", "effective schedule: 2 steps", "total_loss: "):
        assert line in said, line
    assert "step/s" not in result.stderr and "reading settings" not in said


def test_ctrl_c_says_what_is_saved_and_the_command_that_continues(voc_words, tmp_path):
    words = [*voc_words, "OUTPUT_DIR", "out", "SOLVER.MAX_ITER", "5000"]
    screen = Screen(TOOLS / "train_net.py", *words, cwd=tmp_path)
    screen.read(until=r" [1-9]\d*/5000 ")
    os.kill(screen.process.pid, signal.SIGINT)
    assert screen.end() == 130
    assert screen.text.count("SIGINT: finishing this step, then saving and stopping") == 1
    said = re.search(r"stopped by SIGINT; saved: (\S+); continue with: (.*)", screen.text)
    assert said and (tmp_path / said[1]).is_file(), screen.text
    assert "Traceback" not in screen.text
    tool, *again = shlex.split(said[2])
    assert tool == "tools/train_net.py" and again == [*words, "--resume"]


def test_pretraining_and_linear_evaluation_have_a_first_screen(tmp_path):
    data = make_class_folders(tmp_path / "data/train", 4).parent
    make_class_folders(data / "val", 2, seed=1)
    small = ("MOCO.ENCODER.ARCH", "resnet18", "MOCO.AUGMENTATION.SIZE", "32", "MOCO.EPOCHS", "1")
    sizes = ("SOLVER.IMS_PER_BATCH", "4", "MOCO.DICTIONARY.SIZE", "8", "MOCO.BN_SPLITS", "1")
    words = ("--config", "moco_v2_R50_200ep.yaml", *small, *sizes, "DATASETS.TRAIN", "data/train")
    more = ("MOCO.REFERENCE_BATCH", "0", "DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu")
    pretraining = Screen(TOOLS / "pretrain.py", *words, *more, "OUTPUT_DIR", "out", cwd=tmp_path)
    assert pretraining.end() == 0
    rows = "task network images device batch rate {} evaluation output"
    assert first_screen(pretraining.text) == rows.format("steps")
    assert SECRET not in pretraining.text
    assert SECRET in (tmp_path / "out/log.txt").read_text()
    flags = ("random", "--arch", "resnet18", "--data", "data", "--output", "linear")
    small = ("--epochs", "1", "--batch-size", "4", "--size", "32", "--workers", "0")
    linear = Screen(TOOLS / "linear_eval.py", *flags, *small, "--device", "cpu", cwd=tmp_path)
    assert linear.end() == 0
    assert first_screen(linear.text) == rows.format("epochs")
    assert "linear: 100%" in linear.text and "top1" in linear.text


@pytest.mark.parametrize(
    ("name", "level", "message", "shown"),
    [
        ("moco_d2.transfer.main", logging.INFO, "run record: out", True),
        ("detectron2.engine.hooks", logging.INFO, "Total training time", False),
        ("detectron2.evaluation.coco_evaluation", logging.INFO, "Evaluation results for b", True),
        ("detectron2.data.build", logging.WARNING, "no image", True),
        ("fvcore.common.checkpoint", logging.WARNING, "Some model parameters", False),
        ("fvcore.common.checkpoint", logging.ERROR, "broken", True),
    ],
)
def test_what_is_essential(name, level, message, shown):
    essential = _Essential()
    essential.begun = True
    assert essential(logging.LogRecord(name, level, "", 0, message, (), None)) is shown


def test_in_the_set_up_the_first_screen_stands_for_the_packages_lines():
    lines = [
        logging.LogRecord("moco_d2.x", level, "", 0, "", (), None)
        for level in (logging.INFO, logging.WARNING)
    ]
    assert list(map(_Essential(), lines)) == [False, True]


def test_counts():
    assert [count(1, "image"), count(2000, "image")] == ["1 image", "2,000 images"]
    assert [count(1, "process"), count(2, "class")] == ["1 process", "2 classes"]
