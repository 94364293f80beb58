"""The four commands of the README, as a user types them, on tiny data."""

import json

import pytest
from support.commands import run_python, run_tool
from support.paths import TOOLS
from support.toy_data import SLIM_DETECTOR, SMALL_DETECTOR, make_class_folders, make_voc

SMALL_PRETRAINING = [
    *("MOCO.ENCODER.ARCH", "resnet18", "MOCO.AUGMENTATION.SIZE", "32"),
    *("MOCO.DICTIONARY.SIZE", "24", "MOCO.BN_SPLITS", "2"),
    *("SOLVER.IMS_PER_BATCH", "8", "MOCO.REFERENCE_BATCH", "0"),
    *("MOCO.EPOCHS", "0", "SOLVER.MAX_ITER", "3", "DATALOADER.NUM_WORKERS", "0"),
]


@pytest.fixture
def tool(tmp_path):
    """Run a tool in an empty folder; returns the finished process."""

    def run_tool_in(name, *arguments):
        return run_tool(TOOLS / name, *arguments, cwd=tmp_path)

    return run_tool_in


def test_images_to_table(tool, tmp_path):
    make_class_folders(tmp_path / "images", per_class=16)
    make_voc(tmp_path / "VOC2007")
    pretrained = tool(
        "pretrain.py",
        *("--config-file", "moco_v2_R50_200ep.yaml"),
        *("DATASETS.TRAIN", "('images',)", "OUTPUT_DIR", "output/moco"),
        *SMALL_PRETRAINING,
    )
    assert pretrained.returncode == 0, pretrained.stderr

    converted = tool("convert.py", "output/moco/checkpoint_final.pth.tar", "weights/moco.pth")
    assert converted.returncode == 0, converted.stderr
    assert "100" in converted.stdout  # tensors of a ResNet-18

    runs = {
        "voc_C4_moco.yaml": (*SMALL_DETECTOR, "MODEL.WEIGHTS", "weights/moco.pth"),
        "voc_C4_random.yaml": SLIM_DETECTOR,
    }
    for config, overrides in runs.items():
        trained = tool(
            "train_net.py",
            *("--config", config, "OUTPUT_DIR", f"output/{config}"),
            *("DATASETS.TRAIN", "('voc:VOC2007:trainval',)"),
            *("DATASETS.TEST", "('voc:VOC2007:test',)"),
            *overrides,
        )
        assert trained.returncode == 0, trained.stderr
    record = json.loads((tmp_path / "output/voc_C4_moco.yaml/record.json").read_text())
    assert record["coverage"] == {"expected": 100, "loaded": 100}
    assert record["weights"]["provenance"]["pretraining"]["iteration"] == 3

    table = tool("benchmark.py", "table", "output")
    assert table.returncode == 0, table.stderr
    rows = [
        line.split("|")[1].strip()
        for line in table.stdout.splitlines()
        if "±" in line or "(n=1)" in line
    ]
    assert rows == ["random", "moco"]
    assert "other data or schedule than the paper's" in table.stdout


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
