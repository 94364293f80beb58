"""Checks of the weights: whether they fit the config, and whether all of them arrived."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from moco_d2.transfer.norms import has_vit
from moco_d2.transfer.preflight.findings import Finding
from moco_d2.transfer.weights import RANDOM, Coverage

if TYPE_CHECKING:
    from detectron2.config import CfgNode

_POSITIONS = "backbone.net.pos_embed"
# LayerScale under the names of timm, of DeiT-3 and BEiT, and of transformers.
_LAYER_SCALE = re.compile(r"\.(?:ls[12]\.gamma|gamma_[12]|layer_scale[12]\.lambda1)$")


def check_provenance(cfg: "CfgNode", provenance: dict[str, Any] | None) -> list[Finding]:
    """Return findings for keys whose value differs from the provenance in the weight file."""
    if provenance is None:
        return []
    preprocessing = provenance.get("preprocessing", {})
    factor = provenance.get("width_factor", 1)
    wanted = {
        "INPUT.FORMAT": (cfg.INPUT.FORMAT, preprocessing.get("format")),
        "MODEL.PIXEL_MEAN": (list(cfg.MODEL.PIXEL_MEAN), preprocessing.get("pixel_mean")),
        "MODEL.PIXEL_STD": (list(cfg.MODEL.PIXEL_STD), preprocessing.get("pixel_std")),
    }
    if has_vit(cfg):
        vit = provenance.get("vit", {})
        side = vit["grid"] * vit["patch"] if {"grid", "patch"} <= vit.keys() else None
        for key, made_with in (
            ("HEADS", vit.get("heads")),  # which no shape shows
            ("EMBED_DIM", vit.get("width")),
            ("DEPTH", vit.get("depth")),
            ("PATCH_SIZE", vit.get("patch")),
            ("PRETRAIN_SIZE", side),  # of the positions, which are interpolated from there
        ):
            wanted[f"MOCO.VIT.{key}"] = (cfg.MOCO.VIT[key], made_with)
    else:
        resnets = cfg.MODEL.RESNETS
        wanted |= {
            "MODEL.RESNETS.STRIDE_IN_1X1": (
                resnets.STRIDE_IN_1X1,
                provenance.get("stride_in_1x1"),
            ),
            "MODEL.RESNETS.DEPTH": (resnets.DEPTH, provenance.get("depth")),
            "MODEL.RESNETS.NUM_GROUPS": (resnets.NUM_GROUPS, provenance.get("groups")),
            "MODEL.RESNETS.WIDTH_PER_GROUP": (
                resnets.WIDTH_PER_GROUP,
                int(provenance.get("width_per_group", 64) * factor),
            ),
            "MODEL.RESNETS.STEM_OUT_CHANNELS": (resnets.STEM_OUT_CHANNELS, int(64 * factor)),
        }
    return [
        Finding(key, str(value), f"MODEL.WEIGHTS was made with {expected!r}; set {key} to that")
        for key, (value, expected) in wanted.items()
        if expected is not None and value != expected
    ]


def check_coverage(cfg: "CfgNode", coverage: Coverage) -> list[Finding]:
    """Return findings if pretrained weights did not arrive completely, or more than the backbone
    arrived.
    """
    weights, findings = cfg.MODEL.WEIGHTS, []
    keys = "MODEL.RESNETS.DEPTH and WIDTH_PER_GROUP"
    if has_vit(cfg):
        keys = "MOCO.VIT.EMBED_DIM, DEPTH, PATCH_SIZE and PRETRAIN_SIZE"
    if weights != RANDOM and coverage.missing == (_POSITIONS,):
        vit = cfg.MOCO.VIT
        count = (vit.PRETRAIN_SIZE // vit.PATCH_SIZE) ** 2 + vit.PRETRAIN_CLASS_TOKEN
        return [
            Finding(
                "MOCO.VIT.PRETRAIN_SIZE",
                str(vit.PRETRAIN_SIZE),
                f"the {count} absolute positions of the model did not arrive, so MODEL.WEIGHTS has "
                "another number, and they would train from random values; set it to the side of "
                "the pretraining images, from which they are interpolated, and MOCO.VIT."
                "PRETRAIN_CLASS_TOKEN False if there is no position of a class token",
            )
        ]
    if weights != RANDOM and coverage.missing:
        findings.append(
            Finding(
                "MODEL.WEIGHTS",
                weights,
                f"only {coverage.loaded} of {coverage.expected} backbone tensors arrived, first "
                f"missing {coverage.missing[0]}; the missing ones would train from random values. "
                f"Convert the checkpoint with tools/convert.py, and check {keys}",
            )
        )
    if coverage.beyond and not cfg.MOCO.BACKBONE_ONLY:
        findings.append(
            Finding(
                "MODEL.WEIGHTS",
                weights,
                f"it is a detector: {len(coverage.beyond)} tensors outside the pretrained backbone "
                f"arrived too, first {coverage.beyond[0]}, so the run would not measure the "
                "backbone; set MOCO.BACKBONE_ONLY True to begin them anew, which marks the run in "
                "tables",
            )
        )
    return findings


def check_tensors(cfg: "CfgNode", names: Iterable[str]) -> list[Finding]:
    """Return a finding if the weights of a ViT have LayerScale, for which Detectron2's ViT has no
    place: it is left out without a word, and the features are others.

    Args:
        cfg: The config as it will run.
        names: The names of the tensors in MODEL.WEIGHTS.
    """
    scales = [name for name in names if _LAYER_SCALE.search(name)] if has_vit(cfg) else []
    if not scales:
        return []
    return [
        Finding(
            "MODEL.WEIGHTS",
            cfg.MODEL.WEIGHTS,
            f"it has LayerScale ({len(scales)} tensors, first {scales[0]}), which Detectron2's ViT "
            "does not apply; tools/convert.py multiplies it into the layers before it",
        )
    ]
