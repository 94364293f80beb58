import pytest
from detectron2.data import DatasetCatalog

from moco_d2.config.load import load_config
from moco_d2.transfer.data.registered import register_datasets
from moco_d2.transfer.trainer import Trainer


@pytest.fixture
def trainer(tiny, words, voc, tmp_path):
    """Function: name of a folder -> trainer that writes to it."""

    def make(name: str) -> Trainer:
        more = {"OUTPUT_DIR": tmp_path / name, "MODEL.DEVICE": "cpu", "MODEL.RESNETS.NORM": "BN"}
        cfg = load_config("voc_C4_random.yaml", [*tiny, *words(voc | more)])
        register_datasets((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
        return Trainer(cfg)

    return make


def test_each_trainer_counts_the_test_images_that_it_has_evaluated(trainer):
    evaluated, other = trainer("a"), trainer("b")
    (test_set,) = evaluated.cfg.DATASETS.TEST
    evaluated.iter = 0
    assert "bbox" in evaluated._evaluate()
    assert evaluated.test_images == {test_set: len(DatasetCatalog.get(test_set))}
    assert other.test_images == {}
