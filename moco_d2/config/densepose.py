"""Supports dense pose estimation with Detectron2's ``projects/DensePose``, if it is installed.

The project has the head, the datasets, and the data mapper, evaluator and trainer that they need.
Its own ``train_net.py`` runs our configs, matched as all others are. With
``DETECTRON2_ENV_MODULE=moco_d2`` it knows our keys and our published weights.
"""

import importlib
import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moco_d2.errors import UserError

if TYPE_CHECKING:
    from detectron2.config import CfgNode


class MissingProjectError(UserError):
    """DensePose is not installed."""


def uses_densepose(keys: Mapping[str, Any]) -> bool:
    """Return whether a config file, read as nested mappings, sets keys that DensePose adds."""
    model = keys.get("MODEL")
    return isinstance(model, Mapping) and "DENSEPOSE_ON" in model


def add_densepose_config(cfg: "CfgNode") -> None:
    """Add DensePose's keys to a Detectron2 config in place.

    This imports the project, which registers its heads and datasets.

    Raises:
        MissingProjectError: If the project is not installed.
    """
    if importlib.util.find_spec("densepose") is None:
        raise MissingProjectError(
            "dense pose estimation needs Detectron2's DensePose project: pip install "
            "git+https://github.com/facebookresearch/detectron2#subdirectory=projects/DensePose"
        )
    importlib.import_module("densepose").add_densepose_config(cfg)
