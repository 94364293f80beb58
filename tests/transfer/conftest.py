import pytest
from support.toy_data import SMALL_DETECTOR, make_coco, make_voc


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
