"""Smaller forms of a task: image sizes, anchors and heads that fit a budget.

All rows of a comparison get the same form, so it stays matched. The paper's form is the largest.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from moco_d2.benchmark.transfer_command.weights import of_vits
from moco_d2.config.literals import decode

# The paper's images: VOC's short side of 375 pixels (the median of VOC2007) is enlarged to 800.
_ENLARGEMENT = 800 / 375
_SMALLEST_SIDE = 96  # pixels of the short side, for which conv4 has 6 x 6 positions
_PAPERS_BATCH = 16
_CPU_BATCH = 4
ANY_STEPS = 100  # the speed of a step does not depend on the length of the schedule


@dataclasses.dataclass(frozen=True)
class Form:
    """A form of images and heads.

    Attributes:
        name: A word for the user.
        fraction: Image size and anchors as fraction of the largest form, in (0, 1]. Images are not
            made smaller than _SMALLEST_SIDE.
        rois: Sampled proposals per training image; None keeps the task's number.
        pooler: Side of a pooled proposal in a C4 head, and in a box head of convolutions; None
            keeps the task's.
        proposals: Proposals per test image; None keeps the task's number.
    """

    name: str
    fraction: float
    rois: int | None = None
    pooler: int | None = None
    proposals: int | None = None


#: From the smallest to the task's own.
FORMS = (
    Form("tiny", 0.12, 16, 4, 20),
    Form("small", 0.16, 32, 7, 50),
    Form("quarter", 0.25, 64, 7, 100),
    Form("medium", 0.4, 128, None, 200),
    Form("large", 0.64, 256, None, 300),
    Form("full", 1.0),
)


def full_side(task: Mapping[str, Any], short_side: float) -> int:
    """Return the short side of test images in the largest form, in pixels.

    `short_side` is the median of the short sides of the training images, in pixels. Small images
    are not enlarged more than the paper enlarges those of VOC.
    """
    own = int(task["INPUT.MIN_SIZE_TEST"])
    return max(1, min(own, math.ceil(short_side * _ENLARGEMENT)))


def side_of(form: Form, task: Mapping[str, Any], short_side: float) -> int:
    """Return the short side of test images in a form, in pixels; see full_side.

    For a ViT it is the side of the square that holds an image, a multiple of two patches.
    """
    whole = full_side(task, short_side)
    side = max(round(form.fraction * whole), min(_SMALLEST_SIDE, whole))
    unit = 2 * int(task["MOCO.VIT.PATCH_SIZE"]) if of_vits(task) else 1
    return -(-side // unit) * unit


def form_settings(
    form: Form, task: Mapping[str, Any], short_side: float, *, cpu: bool
) -> dict[str, Any]:
    """Return the config keys of a form of a task.

    Args:
        form: The form.
        task: All settings of the task, with Detectron2's defaults.
        short_side: Median of the short sides of the training images, in pixels.
        cpu: Whether the runs use no GPU. Their batch is then 4 instead of 16. The learning rate of
            SGD is scaled linearly with the batch, that of AdamW with its square root, which keeps
            the noise of adaptive steps (Malladi et al., arXiv 2205.10287).
    """
    side = side_of(form, task, short_side)
    scale = side / int(task["INPUT.MIN_SIZE_TEST"])
    batch = _CPU_BATCH if cpu else _PAPERS_BATCH
    ratio = batch / int(task["SOLVER.IMS_PER_BATCH"])
    if task["MOCO.OPTIMIZER"] == "AdamW":
        ratio = math.sqrt(ratio)
    settings: dict[str, Any] = {
        "SOLVER.REFERENCE_WORLD_SIZE": 0,
        "SOLVER.IMS_PER_BATCH": batch,
        "SOLVER.BASE_LR": float(task["SOLVER.BASE_LR"]) * ratio,
    }
    if scale < 1:
        settings["INPUT.MIN_SIZE_TEST"] = side
        if of_vits(task):
            grid = side // int(task["MOCO.VIT.PATCH_SIZE"])
            settings["INPUT.MAX_SIZE_TEST"] = settings["MOCO.VIT.IMAGE_SIZE"] = side
            settings["INPUT.CROP.SIZE"] = [side, side]
            # Most of a larger window would be padding.
            settings["MOCO.VIT.WINDOW_SIZE"] = min(int(task["MOCO.VIT.WINDOW_SIZE"]), grid)
        else:
            sides = _sequence(task["INPUT.MIN_SIZE_TRAIN"])
            settings["INPUT.MIN_SIZE_TRAIN"] = sorted({round(scale * side) for side in sides})
            for key in ("INPUT.MAX_SIZE_TRAIN", "INPUT.MAX_SIZE_TEST"):
                settings[key] = round(scale * int(task[key]))
        settings["MODEL.ANCHOR_GENERATOR.SIZES"] = [
            [round(scale * side, 1) for side in _sequence(level)]
            for level in _sequence(task["MODEL.ANCHOR_GENERATOR.SIZES"])
        ]
    if form.rois is not None and form.proposals is not None:
        settings["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"] = form.rois
        trained = max(100, 4 * form.rois)  # the heads sample from these
        for key, number in (
            ("PRE_NMS_TOPK_TRAIN", 3 * trained),
            ("POST_NMS_TOPK_TRAIN", trained),
            ("PRE_NMS_TOPK_TEST", 5 * form.proposals),
            ("POST_NMS_TOPK_TEST", form.proposals),
        ):
            own = int(task[f"MODEL.RPN.{key}"])
            settings[f"MODEL.RPN.{key}"] = min(own, number)
    if form.pooler is not None and (of_vits(task) or "Res5" in str(task["MODEL.ROI_HEADS.NAME"])):
        settings["MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"] = form.pooler
    if form.pooler is not None and of_vits(task):  # whose heads cost more than a small ViT
        settings["MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION"] = 2 * form.pooler
    return settings


def schedule_settings(steps: int, task: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config keys of a schedule of `steps` steps, with the task's proportions.

    The learning rate falls at the same fractions of the schedule as in the task, warm-up and
    PreciseBN take at most a tenth of it, and the run is evaluated at its end.
    """
    whole = int(task["SOLVER.MAX_ITER"])
    falls = sorted({steps * int(step) // whole for step in _sequence(task["SOLVER.STEPS"])})
    return {
        "SOLVER.MAX_ITER": steps,
        "SOLVER.STEPS": [step for step in falls if 0 < step < steps],
        "SOLVER.WARMUP_ITERS": min(int(task["SOLVER.WARMUP_ITERS"]), steps // 10),
        "SOLVER.CHECKPOINT_PERIOD": max(1, steps // 4),
        "TEST.EVAL_PERIOD": 0,
        "TEST.PRECISE_BN.NUM_ITER": precise_bn_passes(steps, task),
    }


def settings_of(
    form: Form, steps: int, task: Mapping[str, Any], short_side: float, *, cpu: bool
) -> dict[str, Any]:
    """Return the config keys of a form with a schedule."""
    return {**form_settings(form, task, short_side, cpu=cpu), **schedule_settings(steps, task)}


def precise_bn_passes(steps: int, task: Mapping[str, Any]) -> int:
    """Return the number of batches whose statistics BatchNorm gets before the evaluation."""
    return max(1, min(int(task["TEST.PRECISE_BN.NUM_ITER"]), steps // 10))


def cost(form: Form, task: Mapping[str, Any], short_side: float) -> float:
    """Return the relative cost of an image in a form, to predict the time of one form from another.

    It counts positions of conv4: those of the image, and those of the pooled proposals.
    """
    rois = form.rois or int(task["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"])
    pooler = form.pooler or int(task["MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"])
    image = (side_of(form, task, short_side) / 16) ** 2 * 4 / 3
    # Per position, res5 of a ResNet-50 takes about a quarter of the operations before it.
    return image + 0.25 * rois * pooler**2


def _sequence(value: Any) -> Sequence[Any]:
    decoded = decode(value) if isinstance(value, str) else value
    return list(decoded) if isinstance(decoded, list | tuple) else [decoded]
