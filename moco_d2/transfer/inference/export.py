"""Export of a finished detector as a plain Detectron2 model, for tools/train_net.py --export."""

import argparse
import logging
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2 import modeling
from detectron2.config import CfgNode, get_cfg
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from moco_d2.config.plain import flatten, to_plain
from moco_d2.engine.device import choose_device
from moco_d2.engine.job import load_job
from moco_d2.errors import UserError
from moco_d2.files import atomic_write, write_text
from moco_d2.plugin import compat
from moco_d2.transfer.inference.detector import load_detector
from moco_d2.version import __version__

logger = logging.getLogger(__name__)

# The sections of the config that a detector needs, without those of training and local folders.
_SECTIONS = ("VERSION", "MODEL", "INPUT", "TEST")

# The keys that name a part of the model, and the registries of these names.
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
    config_file, own_parts = export_detector(cfg, args.export)
    logger.info("exported: %s and %s", args.export, config_file)
    logger.info("%s", needs(own_parts))


def needs(own_parts: dict[str, str], supplied: Sequence[str] = compat.SUPPLIED) -> str:
    """Return a sentence about what an exported model needs beside Detectron2.

    Args:
        own_parts: The result of parts_of_moco_d2.
        supplied: What compat has supplied to the installed Detectron2.
    """
    how = "call `import moco_d2` before you build it, or set DETECTRON2_ENV_MODULE=moco_d2"
    if own_parts:
        parts = ", ".join(f"{key} {name}" for key, name in own_parts.items())
        return f"the model has parts of moco_d2: {how}: {parts}"
    # Detectron2's evaluators need the names of NumPy; its models do not.
    lacking = sorted(n for n in supplied if n != compat.LAYER_NORM and not n.startswith("numpy."))
    if not lacking:
        return "the model is stock Detectron2's: it runs without moco_d2"
    return (
        "the model is stock Detectron2's, and runs without moco_d2 in a Detectron2 with its "
        "compiled operators and a Pillow that it supports (for v0.6: below 10). The Detectron2 of "
        f"this environment cannot be imported alone, since it lacks {', '.join(lacking)}: here, "
        f"{how}"
    )


def export_detector(cfg: CfgNode, file: str | Path) -> tuple[Path, dict[str, str]]:
    """Write a detector's tensors, and a config that builds the detector and loads them.

    The config holds only keys that differ from Detectron2's defaults, so any version reads it. It
    has this package's keys only if a part of the model comes from this package. It leaves out
    MODEL.DEVICE, which depends on the machine. It begins with what the model needs.

    Args:
        cfg: The config of a finished run; MODEL.WEIGHTS is its model_final.pth.
        file: A file name that ends in .pth. The config gets the same name with .yaml.

    Returns:
        The file of the config, and the keys whose names need `import moco_d2`.

    Raises:
        UserError: If `file` does not end in .pth, if it is MODEL.WEIGHTS, or as in load_detector.
    """
    file = Path(file)
    if file.suffix != ".pth":
        raise UserError(f"--export {file} must end in .pth, by which Detectron2 reads it")
    if os.path.realpath(file) == os.path.realpath(cfg.MODEL.WEIGHTS):
        raise UserError(f"--export {file} is MODEL.WEIGHTS itself; choose another file")
    local_cfg = cfg.clone()
    local_cfg.defrost()
    choose_device(local_cfg)
    model = load_detector(local_cfg)
    own_parts = parts_of_moco_d2(cfg)
    tensors = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    with atomic_write(file) as temporary:
        torch.save({"model": tensors, "__author__": "moco_d2"}, temporary)
    config_file = file.with_suffix(".yaml")
    exported = cfg.clone()
    exported.defrost()
    exported.MODEL.WEIGHTS = os.path.realpath(file)
    defaults = get_cfg()
    exported.MODEL.DEVICE = defaults.MODEL.DEVICE
    sections = (*_SECTIONS, "MOCO") if own_parts else _SECTIONS
    about = textwrap.fill(
        f"An export of moco_d2 {__version__}: {needs(own_parts)}.",
        width=100,
        initial_indent="# ",
        subsequent_indent="# ",
    )
    write_text(config_file, f"{about}\n{_differences(exported, defaults, sections).dump()}")
    return config_file, own_parts


def parts_of_moco_d2(cfg: CfgNode) -> dict[str, str]:
    """Return the keys of `cfg` that name a part of the model from this package, with the names."""
    values = flatten(cfg)
    parts = {
        key: values[key]
        for key, registry in _REGISTRIES.items()
        if values[key] in registry and registry.get(values[key]).__module__.startswith("moco_d2.")
    }
    if compat.LAYER_NORM in compat.SUPPLIED:
        parts |= {key: value for key, value in values.items() if value == "LN"}
    return parts


def _differences(cfg: CfgNode, defaults: Any, keys: tuple[str, ...]) -> Any:
    """Return a config of all `keys` with values that differ from the defaults, and VERSION."""
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
