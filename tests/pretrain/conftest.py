"""A class folder of 24 images, configs of runs of six steps, and a network of kilobytes."""

import pytest
from support.small_network import SmallNetwork
from support.toy_data import make_class_folders

from moco_d2.config.load import load_config
from moco_d2.pretrain.model import moco, supervised

TINY = {
    "MODEL.DEVICE": "cpu",
    "SEED": 1,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.CHECKPOINT_PERIOD": 3,
    "MOCO.REFERENCE_BATCH": 0,  # rate and iterations as given
    "MOCO.MONITOR.EXPECTED_LOSS": (),
    "MOCO.MONITOR.NEIGHBOURS": 1,  # to compress a sheet of eight rows takes longer than a step
    "MOCO.EPOCHS": 2,  # of 24 / 8 = 3 iterations
    "MOCO.ENCODER.ARCH": "resnet18",
    "MOCO.ENCODER.DIM": 16,
    "MOCO.DICTIONARY.SIZE": 20,
    "MOCO.BN_SPLITS": 2,
    "MOCO.AUGMENTATION.SIZE": 32,
}
IMAGES_PER_CLASS = 12


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A class folder: {dark,light}/{0..11}.png."""
    return make_class_folders(tmp_path_factory.mktemp("data") / "images", IMAGES_PER_CLASS)


@pytest.fixture(scope="session")
def held_out(tmp_path_factory):
    """The same classes with other images: {dark,light}/{0..3}.png."""
    return make_class_folders(tmp_path_factory.mktemp("data") / "held_out", 4, seed=1)


@pytest.fixture
def words(images, tmp_path):
    """Overrides of a tiny run as the words of a command line; writes into tmp_path / "out"."""

    def build(overrides: dict) -> list[str]:
        data = {"DATASETS.TRAIN": (str(images),), "OUTPUT_DIR": tmp_path / "out"}
        merged = {**TINY, **data, **overrides}
        return [str(word) for pair in merged.items() for word in pair]

    return build


@pytest.fixture
def make_config(words):
    """Function: overrides, packaged config -> cfg of a tiny run."""

    def build(overrides: dict | None = None, *, config: str = "moco_v2_R50_200ep.yaml"):
        return load_config(config, words(overrides or {}))

    return build


@pytest.fixture
def small_network(monkeypatch):
    """Pretraining builds a SmallNetwork, whatever MOCO.ENCODER.ARCH says."""
    for module in (moco, supervised):
        monkeypatch.setattr(module, "build_encoder", SmallNetwork.build)
    return SmallNetwork
