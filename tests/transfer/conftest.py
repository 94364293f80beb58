import argparse

import pytest
from support.toy_data import SLIM_BACKBONE, SMALL_DETECTOR, make_coco, make_voc

from moco_d2.transfer.main import train


@pytest.fixture(scope="session")
def voc(tmp_path_factory):
    """DATASETS overrides of a tiny VOC year."""
    root = make_voc(tmp_path_factory.mktemp("data") / "VOC2007")
    return {
        "DATASETS.TRAIN": (f"voc:{root}:trainval",),
        "DATASETS.TEST": (f"voc:{root}:test",),
    }


@pytest.fixture(scope="session")
def coco(tmp_path_factory):
    """DATASETS overrides of a tiny COCO set."""
    root = make_coco(tmp_path_factory.mktemp("data") / "coco")
    return {
        f"DATASETS.{key}": (f"coco:{root}/{split}.json:{root}/images",)
        for key, split in (("TRAIN", "train"), ("TEST", "test"))
    }


def _words(overrides):
    return [str(word) for pair in overrides.items() for word in pair]


@pytest.fixture
def words():
    """Overrides as the words of a command line."""
    return _words


@pytest.fixture(scope="session")
def tiny():
    """Overrides that make a detector small, as words."""
    return SMALL_DETECTOR


@pytest.fixture(scope="session")
def run_into():
    """Run the tool's main function into a folder; returns the evaluation's results."""

    def run_into(folder, config, data, *overrides, **flags):
        args = argparse.Namespace(config_file=config, resume=False, eval_only=False, force=False)
        vars(args).update(flags)
        out = ("OUTPUT_DIR", str(folder))
        args.opts = [*SMALL_DETECTOR, *SLIM_BACKBONE, *_words(data), *out, *overrides]
        return train(args)

    return run_into


@pytest.fixture
def finetune_run(run_into, tmp_path):
    """run_into a folder of the test; returns OUTPUT_DIR, and keeps the evaluation's results."""

    def finetune_run(config, data, *overrides, out="out", **flags):
        finetune_run.results = run_into(tmp_path / out, config, data, *overrides, **flags)
        return tmp_path / out

    return finetune_run
