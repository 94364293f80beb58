"""Commands as a user types them, with mistakes and in two processes. The whole line, from images to
the table, runs in tests/test_docs_commands.py, as docs/quick_start.md prints it.
"""

import json

import pytest
from support.commands import run_python, run_tool
from support.paths import TOOLS
from support.toy_data import SLIM_DETECTOR, make_voc


@pytest.fixture
def tool(tmp_path):
    """Run a tool in an empty folder; returns the finished process."""

    def run_tool_in(name, *arguments):
        return run_tool(TOOLS / name, *arguments, cwd=tmp_path)

    return run_tool_in


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        (
            "train_net.py",
            ("--config", "voc_C4_moko.yaml"),
            "error: there is no config file 'voc_C4_moko.yaml', and no packaged config of this "
            "name; did you mean 'voc_C4_moco.yaml'",
        ),
        (
            "train_net.py",
            ("--config", "voc_C4_random.yaml", "SOLVER.MAX_ITERS", "5"),
            "error: unknown config key SOLVER.MAX_ITERS; did you mean 'SOLVER.MAX_ITER'",
        ),
        (
            "train_net.py",
            ("--config", "voc_C4_random.yaml", "DATASETS.TRAIN", "('voc_2007_trainvall',)"),
            # One of two: there are no test images either.
            "  DATASETS.TRAIN is ('voc_2007_trainvall',): dataset 'voc_2007_trainvall' is not "
            "registered; did you mean 'voc_2007_trainval'",
        ),
        (
            "train_net.py",
            ("--config", "voc_C4_moco.yaml", "MODEL.WEIGHTS", "weights/moco.pth"),
            "error: MODEL.WEIGHTS weights/moco.pth does not exist: make it with tools/convert.py",
        ),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(tool, tmp_path, name, arguments, sentence):
    done = tool(name, *arguments)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert any(line.startswith(sentence) for line in lines)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_two_cpu_processes_synchronize_batchnorm(tmp_path):
    """Stock Detectron2 v0.6 trains on several GPUs only."""
    make_voc(tmp_path / "VOC2007")
    done = run_python(
        *("-c", "from torch.distributed.run import main; main()"),  # torchrun
        *("--standalone", "--nproc-per-node", 2, TOOLS / "train_net.py"),
        *("--config", "voc_C4_random.yaml", "OUTPUT_DIR", "out"),
        *("DATASETS.TRAIN", "('voc:VOC2007:trainval',)"),
        *("DATASETS.TEST", "('voc:VOC2007:test',)"),
        *SLIM_DETECTOR,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "out/record.json").read_text())
    assert record["schedule"]["world_size"] == 2
    assert record["schedule"]["norm"] == "naiveSyncBN"
    assert "BatchNorm statistics over 2 images" in record["schedule"]["notes"][-1]
