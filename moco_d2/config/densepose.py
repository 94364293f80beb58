"""Dense pose estimation is Detectron2's own ``projects/DensePose``, when the user has it.

The project brings the head, the datasets, and also the data mapper, the evaluator and the trainer
that these need: its own ``train_net.py`` runs our configs, matched as all others are. With
``DETECTRON2_ENV_MODULE=moco_d2`` it knows our keys and our weights by name.
"""

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

from moco_d2.errors import UserError


def uses_densepose(keys: Mapping[str, Any]) -> bool:
    """Whether a config file, read as nested mappings, sets keys that DensePose adds."""
    model = keys.get("MODEL")
    return isinstance(model, Mapping) and "DENSEPOSE_ON" in model


def add_densepose_config(cfg: Any) -> None:
    """Add DensePose's keys to a Detectron2 config, in place; importing the project registers its
    heads and datasets.

    Raises:
        UserError: the project is not installed.
    """
    if importlib.util.find_spec("densepose") is None:
        raise UserError(
            "dense pose estimation needs Detectron2's DensePose project: pip install "
            "git+https://github.com/facebookresearch/detectron2#subdirectory=projects/DensePose"
        )
    importlib.import_module("densepose").add_densepose_config(cfg)
