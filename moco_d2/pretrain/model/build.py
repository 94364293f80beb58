"""The model that a pretraining config asks for."""

import logging

from detectron2.config import CfgNode
from detectron2.utils import comm

from moco_d2.errors import UserError
from moco_d2.pretrain.data.stream import TrainingData
from moco_d2.pretrain.model.moco import MoCo
from moco_d2.pretrain.model.supervised import SupervisedClassifier

logger = logging.getLogger(__name__)


def build_pretext_model(cfg: CfgNode, data: TrainingData) -> MoCo | SupervisedClassifier:
    """MoCo or its supervised baseline, as MOCO.PRETEXT says.

    Raises:
        UserError: a step's images cannot be divided as asked.
    """
    moco = cfg.MOCO
    share = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    if share % moco.ACCUMULATION:
        raise UserError(
            f"MOCO.ACCUMULATION {moco.ACCUMULATION} does not divide the {share} images a process "
            "has in a step"
        )
    if moco.PRETEXT == "supervised":
        return SupervisedClassifier.from_config(cfg, num_classes=len(data.classes))
    images = share // moco.ACCUMULATION
    if moco.BN_SPLITS < 1 or images % moco.BN_SPLITS:
        raise UserError(
            f"MOCO.BN_SPLITS {moco.BN_SPLITS} does not divide the {images} images that a process "
            "encodes at a time"
        )
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
