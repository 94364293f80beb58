"""Build the model of a pretraining config."""

import logging
import math

from detectron2.config import CfgNode
from detectron2.utils import comm

from moco_d2.errors import UserError
from moco_d2.pretrain.data.stream import TrainingData
from moco_d2.pretrain.model.moco import MoCo
from moco_d2.pretrain.model.moco_v3 import MoCoV3
from moco_d2.pretrain.model.supervised import SupervisedClassifier
from moco_d2.pretrain.model.vit import VITS

logger = logging.getLogger(__name__)


def build_pretext_model(cfg: CfgNode, data: TrainingData) -> MoCo | MoCoV3 | SupervisedClassifier:
    """Build MoCo, MoCo v3 or the supervised baseline, depending on MOCO.PRETEXT.

    Raises:
        UserError: If MOCO.ACCUMULATION or MOCO.BN_SPLITS does not divide a step's images, or the
            mechanism has no such setting, or BatchNorm would get one value per channel.
    """
    moco = cfg.MOCO
    local_batch_size = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    if local_batch_size % moco.ACCUMULATION:
        raise UserError(
            f"MOCO.ACCUMULATION {moco.ACCUMULATION} does not divide the {local_batch_size} images "
            "per step and process: set a divisor"
        )
    micro_batch = local_batch_size // moco.ACCUMULATION
    if moco.PRETEXT == "supervised":
        _check_statistics(cfg, micro_batch)
        return SupervisedClassifier.from_config(cfg, num_classes=len(data.classes))
    if moco.PRETEXT == "mocov3":
        if moco.BN_SPLITS > 1:
            raise UserError(
                f"MOCO.BN_SPLITS {moco.BN_SPLITS} is for MOCO.PRETEXT moco, while mocov3 uses the "
                "BatchNorm of all processes: set 0 or 1"
            )
        _check_statistics(cfg, cfg.SOLVER.IMS_PER_BATCH // moco.ACCUMULATION)
        if cfg.SOLVER.IMS_PER_BATCH < 2:
            raise UserError(
                "the heads of mocov3 normalize over the batch: set SOLVER.IMS_PER_BATCH 2 or more"
            )
        return MoCoV3.from_config(cfg)
    if moco.ENCODER.ARCH in VITS:
        raise UserError(
            f"MOCO.PRETEXT moco has ResNets only, not {moco.ENCODER.ARCH}: set MOCO.PRETEXT mocov3"
        )
    if moco.BN_SPLITS < 1 or micro_batch % moco.BN_SPLITS:
        raise UserError(
            f"MOCO.BN_SPLITS {moco.BN_SPLITS} does not divide the {micro_batch} images of a "
            "micro-batch: set a divisor"
        )
    _check_statistics(cfg, micro_batch // moco.BN_SPLITS)
    model = MoCo.from_config(cfg, num_images=data.num_images)
    if model.may_leak:
        logger.warning(
            "BatchNorm has one group, so it can give the positive key away (paper section 3.3): "
            "set MOCO.BN_SPLITS 8 on one device"
        )
    if moco.DICTIONARY.NAME != "EndToEnd" and data.num_images < moco.DICTIONARY.SIZE:
        logger.warning(
            "the dictionary (%d keys) is larger than the dataset (%d images), so a query's own "
            "image is among its negatives: set MOCO.DICTIONARY.SIZE below %d",
            moco.DICTIONARY.SIZE,
            data.num_images,
            data.num_images,
        )
    return model


def _check_statistics(cfg: CfgNode, images: int) -> None:
    """Refuse a BatchNorm over one value, which has no variance.

    Args:
        images: The number of images that are normalized together.
    """
    encoder, size = cfg.MOCO.ENCODER, cfg.MOCO.AUGMENTATION.SIZE
    stride = 8 if encoder.SMALL_STEM else 32  # of the last stage
    if encoder.ARCH not in VITS and images * math.ceil(size / stride) ** 2 < 2:
        raise UserError(
            f"BatchNorm has one image in a group and one value per channel in the last stage of "
            f"views of {size} pixels: set MOCO.BN_SPLITS or MOCO.ACCUMULATION lower, or "
            "SOLVER.IMS_PER_BATCH or MOCO.AUGMENTATION.SIZE higher"
        )
