"""A finished detector as a plain Detectron2 model; tools/train_net.py --export."""

import argparse
import logging
import os
from pathlib import Path
from typing import Any

import torch
from detectron2 import modeling
from detectron2.config import get_cfg
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from moco_d2.config.plain import flatten, to_plain
from moco_d2.engine.job import load_job
from moco_d2.engine.launch import choose_device
from moco_d2.errors import UserError
from moco_d2.files import atomic_write, write_text
from moco_d2.transfer.inference.detector import load_detector

logger = logging.getLogger(__name__)

# What a detector needs of its config: no training, no folders of this machine.
_SECTIONS = ("VERSION", "MODEL", "INPUT", "TEST")

# The keys that name a part of the model, and where the name is looked up.
_REGISTRIES = {
    "MODEL.META_ARCHITECTURE": modeling.META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": modeling.BACKBONE_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": modeling.PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": modeling.ANCHOR_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": modeling.RPN_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": modeling.ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": modeling.ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": modeling.ROI_MASK_HEAD_REGISTRY,
    "MODEL.ROI_KEYPOINT_HEAD.NAME": modeling.ROI_KEYPOINT_HEAD_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": modeling.SEM_SEG_HEADS_REGISTRY,
}


def main(args: argparse.Namespace) -> None:
    """Export MODEL.WEIGHTS to ``args.export``; see tools/train_net.py --help."""
    if not comm.is_main_process():
        return
    setup_logger(name="moco_d2", abbrev_name="moco_d2")
    cfg = load_job(args)
    config_file, ours = export_detector(cfg, args.export)
    logger.info("exported: %s and %s", args.export, config_file)
    if ours:
        logger.info(
            "the model has parts of ours, so `import moco_d2` comes before it is built (or set "
            "DETECTRON2_ENV_MODULE=moco_d2): %s",
            ", ".join(f"{key} {name}" for key, name in ours.items()),
        )
    else:
        logger.info("the model is stock Detectron2's: nothing of ours is needed to run it")


def export_detector(cfg: Any, file: str | Path) -> tuple[Path, dict[str, str]]:
    """Write a detector's tensors, and beside them a config that builds it and loads them.

    The config holds what differs from Detectron2's defaults, so that any version reads it, and our
    keys only if a part of the model is ours. MODEL.DEVICE is left to the machine it will run on.

    Args:
        cfg: the config of the finished run, MODEL.WEIGHTS its model_final.pth.
        file: ends in .pth; the config gets the same name and .yaml.

    Returns:
        the config's file, and the keys whose names need `import moco_d2`.

    Raises:
        UserError: `file` has another ending, is MODEL.WEIGHTS itself, or as in load_detector.
    """
    file = Path(file)
    if file.suffix != ".pth":
        raise UserError(f"--export {file}: give a file that ends in .pth; Detectron2 goes by it")
    if os.path.realpath(file) == os.path.realpath(cfg.MODEL.WEIGHTS):
        raise UserError(f"--export {file} is MODEL.WEIGHTS itself; choose another file")
    here = cfg.clone()
    here.defrost()
    choose_device(here)
    model = load_detector(here)
    ours = parts_of_ours(cfg)
    tensors = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    with atomic_write(file) as temporary:
        torch.save({"model": tensors, "__author__": "moco_d2"}, temporary)
    config_file = file.with_suffix(".yaml")
    exported = cfg.clone()
    exported.defrost()
    exported.MODEL.WEIGHTS = os.path.realpath(file)
    defaults = get_cfg()
    exported.MODEL.DEVICE = defaults.MODEL.DEVICE  # this machine's
    sections = (*_SECTIONS, "MOCO") if ours else _SECTIONS
    write_text(config_file, _differences(exported, defaults, sections).dump())
    return config_file, ours


def parts_of_ours(cfg: Any) -> dict[str, str]:
    """The keys of `cfg` that name a part of the model which moco_d2 has registered, and the
    names.
    """
    values = flatten(cfg)
    return {
        key: values[key]
        for key, registry in _REGISTRIES.items()
        if values[key] in registry and registry.get(values[key]).__module__.startswith("moco_d2.")
    }


def _differences(cfg: Any, defaults: Any, keys: tuple[str, ...]) -> Any:
    """Those of `keys` whose values are not the defaults, as a config; VERSION always."""
    CN = type(cfg)
    different = CN()
    for key in keys:
        value = cfg[key]
        if isinstance(value, CN):
            value = _differences(value, defaults[key], tuple(value))
            if value:
                different[key] = value
        elif key == "VERSION" or to_plain(value) != to_plain(defaults[key]):
            different[key] = value
    return different
