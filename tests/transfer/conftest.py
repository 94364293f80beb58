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


@pytest.fixture
def words():
    """Overrides as the words of a command line."""
    return lambda overrides: [str(word) for pair in overrides.items() for word in pair]


@pytest.fixture(scope="session")
def tiny():
    """Overrides that make a detector small, as words."""
    return SMALL_DETECTOR


@pytest.fixture
def finetune_run(tiny, words, tmp_path):
    """Run the tool's main function; returns OUTPUT_DIR, and keeps the evaluation's results."""

    def finetune_run(config, data, *overrides, out="out", **flags):
        folder = tmp_path / out
        args = argparse.Namespace(config_file=config, resume=False, eval_only=False, force=False)
        vars(args).update(flags)
        args.opts = [*tiny, *SLIM_BACKBONE, *words(data), "OUTPUT_DIR", str(folder), *overrides]
        finetune_run.results = train(args)
        return folder

    return finetune_run
