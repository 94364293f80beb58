import pytest
import torch
from detectron2.structures import Boxes, Instances

from moco_d2.config.load import load_config
from moco_d2.transfer.divergence import DivergenceError, annotations_in_error, explain, likely_cause

NAN = float("nan")
FPN, C4 = "coco_FPN_1x_moco.yaml", "voc_C4_moco.yaml"


@pytest.mark.parametrize(
    ("config", "overrides", "iteration", "cause"),
    [
        (FPN, ("MODEL.FPN.NORM", ""), 700, "MODEL.FPN.NORM is empty, with which such runs diverge"),
        (FPN, ("SOLVER.BASE_LR", "0.2"), 9, "SOLVER.BASE_LR 0.2 is more than the task's 0.02 for"),
        (C4, ("SOLVER.IMS_PER_BATCH", "8"), 9, "SOLVER.BASE_LR 0.02 is more than the task's 0.01"),
        (C4, ("MODEL.RESNETS.NORM", "FrozenBN"), 40, "MODEL.RESNETS.NORM is FrozenBN, which does"),
        (C4, (), 150, "the steps of the warm-up are too large: lengthen SOLVER.WARMUP_ITERS (now "),
        (C4, (), 5000, "the learning rate is too high: lower SOLVER.BASE_LR (now 0.02)"),
        (
            FPN,
            ("SOLVER.AMP.ENABLED", "True", "MOCO.AMP_DTYPE", "float16"),
            5000,
            "SOLVER.AMP.ENABLED is True with MOCO.AMP_DTYPE float16, which overflows above 65504: "
            "set MOCO.AMP_D",
        ),
        (
            FPN,
            ("SOLVER.AMP.ENABLED", "True"),
            5000,
            "the learning rate is too high",
        ),
    ],
)
def test_each_cause_is_named_with_its_key(config, overrides, iteration, cause):
    found = likely_cause(load_config(config, overrides), iteration, DivergenceError({"loss": NAN}))
    assert found.startswith(cause)


def test_bad_data_comes_before_all_else():
    error = DivergenceError(
        {"loss_box_reg": NAN}, ["a box of a.jpg is empty, inverted or not finite"]
    )
    found = likely_cause(load_config(FPN, ["MODEL.FPN.NORM", ""]), 3, error)
    assert (
        found == "a box of a.jpg is empty, inverted or not finite: correct the annotation or "
        "remove it"
    )


def sample(box, *, pixel=1.0, name="a.jpg"):
    instances = Instances((8, 8), gt_boxes=Boxes(torch.tensor([[0.0, 0.0, 4.0, 4.0], box])))
    return {"file_name": name, "image": torch.full((3, 8, 8), pixel), "instances": instances}


@pytest.mark.parametrize(
    ("box", "pixel", "count"),
    [
        ([1.0, 1.0, 3.0, 3.0], 1.0, 0),
        ([1.0, 1.0, 1.0, 3.0], 1.0, 1),
        ([3.0, 1.0, 1.0, 3.0], 1.0, 1),
        ([1.0, 1.0, NAN, 3.0], 1.0, 1),
        ([1.0, 1.0, 3.0, 3.0], NAN, 1),
    ],
)
def test_boxes_and_pixels_that_no_loss_can_be_computed_from(box, pixel, count):
    batch = [sample([1.0, 1.0, 2.0, 2.0], name="good.jpg"), sample(box, pixel=pixel)]
    found = annotations_in_error([batch])
    assert len(found) == count
    assert all("a.jpg" in sentence for sentence in found)


def test_images_without_annotations_are_in_order():
    assert annotations_in_error([[{"image": torch.zeros(3, 4, 4)}]]) == []


def test_the_sentence_says_where_why_and_what_is_left():
    error = DivergenceError({"loss_rpn_loc": NAN, "loss_cls": 1.0})
    cfg = load_config(C4)
    said = explain(cfg, 5000, error, "output/model_0004999.pth")
    assert said.startswith("the loss is no longer finite at iteration 5000 (loss_rpn_loc); likely")
    assert said.endswith("good state is output/model_0004999.pth, and --resume continues from it")
    assert explain(cfg, 5, error, "").endswith("there is no checkpoint yet: start again")
