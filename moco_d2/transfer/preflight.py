"""Refuses a run that would silently measure the wrong thing.

Each finding says which key, its value, and what to do. ``--force`` turns findings into warnings,
and the run record keeps them, so that a table can mark the run.
"""

import dataclasses
from typing import Any

from moco_d2.errors import UserError
from moco_d2.transfer.weights import RANDOM, Coverage


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something in the config or the weights that makes the comparison wrong.

    Attributes:
        key: the config key.
        value: its value.
        message: what is wrong and what to set.
    """

    key: str
    value: str
    message: str

    def __str__(self) -> str:
        return f"{self.key} is {self.value}: {self.message}"


def check_config(cfg: Any, provenance: dict[str, Any] | None) -> list[Finding]:
    """Findings that need no model.

    Args:
        cfg: the config as it will run.
        provenance: the converter's report inside the weight file, if it has one.
    """
    findings = []

    def find(key: str, value: Any, message: str) -> None:
        findings.append(Finding(key, str(value), message))

    if cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        find(
            "MODEL.BACKBONE.FREEZE_AT",
            cfg.MODEL.BACKBONE.FREEZE_AT,
            "it freezes the first stages with their BatchNorm, which the protocol tunes; set it "
            "to 0",
        )
    if cfg.MODEL.RESNETS.NORM == "FrozenBN":
        find(
            "MODEL.RESNETS.NORM",
            "FrozenBN",
            "the protocol tunes BatchNorm, and random weights cannot train without it; set SyncBN",
        )
    if "fpn" in cfg.MODEL.BACKBONE.NAME and not cfg.MODEL.FPN.NORM:
        find(
            "MODEL.FPN.NORM",
            "empty",
            "without it the run can diverge (facebookresearch/moco issue 23); set SyncBN",
        )
    if cfg.SEED < 0:
        find("SEED", cfg.SEED, "runs could not be told apart or repeated; set SEED 1")
    return findings + _contradictions(cfg, provenance)


def _contradictions(cfg: Any, provenance: dict[str, Any] | None) -> list[Finding]:
    """Findings where the config and the weight file's own account of itself differ."""
    if provenance is None:
        return []
    preprocessing = provenance.get("preprocessing", {})
    factor = provenance.get("width_factor", 1)
    wanted = {
        "INPUT.FORMAT": (cfg.INPUT.FORMAT, preprocessing.get("format")),
        "MODEL.PIXEL_MEAN": (list(cfg.MODEL.PIXEL_MEAN), preprocessing.get("pixel_mean")),
        "MODEL.PIXEL_STD": (list(cfg.MODEL.PIXEL_STD), preprocessing.get("pixel_std")),
        "MODEL.RESNETS.STRIDE_IN_1X1": (
            cfg.MODEL.RESNETS.STRIDE_IN_1X1,
            provenance.get("stride_in_1x1"),
        ),
        "MODEL.RESNETS.DEPTH": (cfg.MODEL.RESNETS.DEPTH, provenance.get("depth")),
        "MODEL.RESNETS.NUM_GROUPS": (cfg.MODEL.RESNETS.NUM_GROUPS, provenance.get("groups")),
        "MODEL.RESNETS.WIDTH_PER_GROUP": (
            cfg.MODEL.RESNETS.WIDTH_PER_GROUP,
            provenance.get("width_per_group", 64) * factor,
        ),
        "MODEL.RESNETS.STEM_OUT_CHANNELS": (cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, 64 * factor),
    }
    return [
        Finding(key, str(configured), f"MODEL.WEIGHTS was made with {made!r}; set {key} to that")
        for key, (configured, made) in wanted.items()
        if made is not None and configured != made
    ]


def check_coverage(cfg: Any, coverage: Coverage) -> list[Finding]:
    """A finding if pretrained weights did not arrive completely, or random initialisation received
    some.
    """
    weights = cfg.MODEL.WEIGHTS
    if weights == RANDOM:
        return []
    if not coverage.missing:
        return []
    return [
        Finding(
            "MODEL.WEIGHTS",
            weights,
            f"only {coverage.loaded} of {coverage.expected} backbone tensors arrived, first "
            "missing "
            f"{coverage.missing[0]}; the rest would train from random values. Convert the "
            "checkpoint with "
            "tools/convert.py, and check MODEL.RESNETS.DEPTH and WIDTH_PER_GROUP",
        )
    ]


def enforce(findings: list[Finding], *, force: bool, logger: Any) -> None:
    """Stop on findings, or warn about them with `force`.

    Raises:
        UserError: there are findings and `force` is not set.
    """
    if not findings:
        return
    if not force:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        raise UserError(f"{findings[0]}{more}; --force runs it anyway and marks the record")
    for finding in findings:
        logger.warning("preflight, overruled by --force: %s", finding)
