"""MOCO.VAL_LOSS: what it computes, and that the training does not notice it."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage, get_event_storage
from support.toy_data import SLIM_BACKBONE, make_coco, make_voc

from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.records.metrics_json import read_log
from moco_d2.transfer.data.registered import register_datasets
from moco_d2.transfer.preflight.findings import Refusal
from moco_d2.transfer.preflight.validation_checks import check_validation_loss
from moco_d2.transfer.trainer import Trainer
from moco_d2.transfer.validation_loss import ValidationLoss, build_mapper, spread

VOC, COCO = "voc_C4_random.yaml", "coco_FPN_1x_random.yaml"


@pytest.fixture
def make_cfg(tiny, words):
    """The config of one process, whose datasets are registered."""

    def make_cfg(config, data, *overrides):
        norms = ("MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN", "MODEL.DEVICE", "cpu")
        cfg = load_config(config, [*tiny, *SLIM_BACKBONE, *norms, *words(data), *overrides])
        register_datasets((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
        return cfg

    return make_cfg


@pytest.mark.parametrize(("config", "kind"), [(VOC, "voc"), (COCO, "coco")])
def test_the_training_is_equal_to_the_bit_with_and_without_it(finetune_run, request, config, kind):
    """Weights with BatchNorm's buffers, optimizer, generators, losses, data and metrics."""
    data = request.getfixturevalue(kind)
    steps = ("SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "3")
    plain = finetune_run(config, data, *steps)
    other = finetune_run(config, data, *steps, "MOCO.VAL_LOSS", "2", out="other")
    states = [
        torch.load(folder / "model_final.pth", weights_only=True) for folder in (plain, other)
    ]
    assert_equal(states[0]["model"], states[1]["model"])
    assert_equal(states[0]["processes"], states[1]["processes"])
    trainers = [state["trainer"]["_trainer"]["optimizer"] for state in states]
    assert_equal(*trainers)
    logs = [
        {
            (entry["iteration"], key): value
            for entry in read_log(folder / "metrics.json")
            for key, value in entry.items()
            if "time" not in key and key != "eta_seconds"
        }
        for folder in (plain, other)
    ]
    losses = {key for key in logs[1] if key[1].startswith("val_loss/")}
    assert {iteration for iteration, _ in losses} == {1, 3}
    at_the_end = {key: logs[1][key] for key in logs[0] if key[0] >= 3}
    assert at_the_end == {key: value for key, value in logs[0].items() if key[0] >= 3}
    records = [json.loads((f / "record.json").read_text()) for f in (plain, other)]
    assert records[0]["metrics"] == records[1]["metrics"]
    assert records[0]["config"]["matched_sha256"] == records[1]["config"]["matched_sha256"]


def assert_equal(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        for pair in zip(one, other, strict=True):
            assert_equal(*pair)
    else:
        assert one == other


def test_the_losses_are_the_means_over_the_images_and_repeat(make_cfg, voc):
    cfg = make_cfg(VOC, voc, "MOCO.VAL_LOSS", "1", "MOCO.VAL_LOSS_IMAGES", "4", "SEED", "1")
    model = Trainer.build_model(cfg)
    hook = ValidationLoss(cfg, torch.no_grad)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.eval()
    model.roi_heads.train()  # a mixture of modes is restored
    modes = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    with EventStorage(7) as storage:
        first, second = hook.losses(model), hook.losses(model)
        assert storage.histories() == {} and get_event_storage() is storage
    assert first == second
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    names = {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc", "total_loss"}
    assert first.keys() == {f"val_loss/{name}" for name in names}
    parts = [value for name, value in first.items() if name != "val_loss/total_loss"]
    assert first["val_loss/total_loss"] == pytest.approx(sum(parts)) and min(parts) >= 0
    assert hook.images == 4


def test_several_processes_have_the_losses_of_one(make_cfg, voc, monkeypatch):
    """The images are divided among the processes; six images among two here."""
    from detectron2.utils import comm

    cfg = make_cfg(VOC, voc, "MOCO.VAL_LOSS", "1", "SEED", "1")
    model = Trainer.build_model(cfg)
    alone = ValidationLoss(cfg, torch.no_grad).losses(model)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    sums = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        hook = ValidationLoss(cfg, torch.no_grad)
        assert len(hook._positions) == 3
        monkeypatch.setattr(comm, "all_gather", lambda part: sums.append(part) or sums)
        together = hook.losses(model)
    assert together == pytest.approx(alone, rel=1e-9)


def test_images_are_spread_and_not_augmented_at_random(make_cfg, coco):
    assert spread(10, 0) == list(range(10)) and spread(3, 5) == [0, 1, 2]
    assert spread(10, 4) == [0, 2, 5, 7]
    cfg = make_cfg(COCO, coco, "INPUT.MIN_SIZE_TRAIN", "(32, 48)", "INPUT.CROP.ENABLED", "True")
    sample = DatasetCatalog.get(cfg.DATASETS.TEST[0])[0]
    mapper = build_mapper(cfg)
    images = [mapper(sample)["image"] for _ in range(4)]
    assert images[0].shape == (3, 64, 64)
    assert all(torch.equal(image, images[0]) for image in images)


def test_semantic_segmentation_has_its_loss(make_cfg, tmp_path):
    import numpy as np
    from PIL import Image

    from moco_d2.transfer.data.semantic_mapper import SemanticMapper

    cfg = make_cfg(COCO, {}, "MODEL.META_ARCHITECTURE", "SemanticSegmentor")
    mapper = build_mapper(cfg).mapper
    assert isinstance(mapper, SemanticMapper)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.ones((32, 32), np.uint8)).save(tmp_path / "b.png")
    sample = {"file_name": str(tmp_path / "a.png"), "sem_seg_file_name": str(tmp_path / "b.png")}
    assert mapper(sample)["sem_seg"].shape == (64, 64)


def test_its_set_may_be_another_than_the_test_set(finetune_run, voc, tmp_path):
    root = make_voc(tmp_path / "VOC", images=3, seed=4)
    words = ("MOCO.VAL_LOSS", "1", "MOCO.VAL_LOSS_DATA", f"voc:{root}:test")
    folder = finetune_run(VOC, voc | {"DATASETS.TEST": "()"}, *words)
    entries = [e for e in read_log(folder / "metrics.json") if "val_loss/total_loss" in e]
    assert [entry["iteration"] for entry in entries] == [0, 1]
    assert "validation loss every 1 step" in (folder / "log.txt").read_text()


def findings(cfg):
    return list(check_validation_loss(cfg))


def test_what_cannot_be_computed_is_found_before_training(
    make_cfg, voc, coco, tmp_path, finetune_run
):
    period = ("MOCO.VAL_LOSS", "5")
    assert findings(make_cfg(VOC, voc)) == []
    assert findings(make_cfg(VOC, voc, *period)) == []
    (found,) = findings(make_cfg(VOC, voc | {"DATASETS.TEST": "()"}, *period))
    assert isinstance(found, Refusal) and "there is no dataset for it" in str(found)
    (found,) = findings(make_cfg(VOC, voc, *period, "MOCO.VAL_LOSS_DATA", "voc:/nowhere:test"))
    assert isinstance(found, Refusal) and "/nowhere" in str(found)
    # A VOC set has no masks.
    (found,) = findings(
        make_cfg(COCO, coco, *period, "MOCO.VAL_LOSS_DATA", voc["DATASETS.TEST"][0])
    )
    assert isinstance(found, Refusal) and found.key == "MOCO.VAL_LOSS_DATA" and "mask" in str(found)
    swapped = make_voc(tmp_path / "swapped")
    (swapped / "classes.txt").write_text("light\ndark\n")
    more = ("MOCO.VAL_LOSS_DATA", f"voc:{swapped}:test")
    (found,) = findings(make_cfg(VOC, voc, *period, *more))
    assert "class 0 is 'light' in" in str(found)
    (swapped / "JPEGImages/test000.jpg").unlink()
    assert any(
        "test000.jpg is missing" in str(f) for f in findings(make_cfg(VOC, voc, *period, *more))
    )
    with pytest.raises(UserError, match="MOCO.VAL_LOSS_DATA is .*: class 0 is 'light'"):
        finetune_run(VOC, voc, *period, *more)
    assert not (tmp_path / "out").exists()


def test_a_set_without_objects_is_refused(make_cfg, coco, tmp_path):
    root = make_coco(tmp_path / "empty")
    content = json.loads((root / "test.json").read_text())
    for item in content["annotations"]:
        item["iscrowd"] = 1  # on which no detector is trained
    (root / "test.json").write_text(json.dumps(content))
    name = f"coco:{root}/test.json:{root}/images"
    cfg = make_cfg(COCO, coco, "MOCO.VAL_LOSS", "1", "MOCO.VAL_LOSS_DATA", name)
    (found, *_) = findings(cfg)
    assert isinstance(found, Refusal) and "has no annotated object" in str(found)
