"""A suite looks at the data and the weights of all its runs before it starts the first."""

import pytest
import torch
import yaml
from support.toy_data import SMALL_DETECTOR, make_voc
from torchvision.models import resnet18

from moco_d2.benchmark.runs.runner import run
from moco_d2.errors import UserError


def suite(tmp_path, weights, **overrides):
    root = make_voc(tmp_path / "VOC2007")
    data = {
        "DATASETS.TRAIN": f"('voc:{root}:trainval',)",
        "DATASETS.TEST": f"('voc:{root}:test',)",
    }
    small = dict(zip(SMALL_DETECTOR[::2], SMALL_DETECTOR[1::2], strict=True))
    content = {
        "tasks": ["voc_C4"],
        "initializations": {"random": {}, "moco": {"MODEL.WEIGHTS": str(weights)}},
        "seeds": [1, 2],
        "overrides": {**small, **data, **overrides},
    }
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content))
    return file, root


def test_no_run_starts_if_one_of_them_lacks_its_weights(tmp_path):
    file, _ = suite(tmp_path, tmp_path / "absent.pth")
    with pytest.raises(UserError, match=r"voc_C4/moco/seed1: MODEL\.WEIGHTS .*absent\.pth does no"):
        run(file, folder=tmp_path / "out", gpus_per_run=0)
    assert not list((tmp_path / "out").glob("voc_C4/*"))


def test_no_run_starts_without_an_image_and_all_findings_are_listed_once(tmp_path):
    file, root = suite(tmp_path, "random://", **{"MODEL.BACKBONE.FREEZE_AT": 2})
    image = next((root / "JPEGImages").iterdir())
    image.unlink()
    with pytest.raises(UserError) as refused:
        run(file, folder=tmp_path / "out", gpus_per_run=0)
    text = str(refused.value)
    assert image.name in text and "FREEZE_AT" in text
    assert text.count(image.name) == 1  # not once per run
    assert not list((tmp_path / "out").glob("voc_C4/*"))


def test_no_run_starts_if_weights_of_one_would_not_arrive(tmp_path):
    """The names of another library: Detectron2 would train from random values."""
    torch.save({"model": resnet18().state_dict()}, tmp_path / "timm.pth")
    file, _ = suite(tmp_path, tmp_path / "timm.pth")
    with pytest.raises(UserError, match=r"voc_C4/moco/seed1: .*timm\.pth: only 0 of 100 backbone"):
        run(file, folder=tmp_path / "out", gpus_per_run=0)
    assert not list((tmp_path / "out").glob("voc_C4/*"))
