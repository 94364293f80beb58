"""Checkpoint in, verified Detectron2 weights out."""

import contextlib
import json
from pathlib import Path
from typing import Any

import torch

import moco_d2
from moco_d2.checkpoint.catalog import source_file
from moco_d2.checkpoint.io import check_destination, load_checkpoint, save_detectron2
from moco_d2.checkpoint.mapping import (
    PREPROCESSING,
    Architecture,
    detectron2_settings,
    expected_tensors,
    to_detectron2,
)
from moco_d2.checkpoint.parity import TOLERANCE, prove
from moco_d2.checkpoint.sources import extract
from moco_d2.config import to_plain
from moco_d2.errors import UserError
from moco_d2.files import atomic_write, sha256

# Entries of our checkpoints' "moco_d2" that describe the pretraining, and the sections of its
# config that do; the rest is for resuming.
_OUR_METADATA = ("version", "pretext", "iteration", "config")
_CONFIG_SECTIONS = ("MOCO", "SOLVER", "DATASETS", "SEED")


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    report: str | Path | None = None,
    branch: str = "query",
    expect_depth: int | None = None,
) -> dict[str, Any]:
    """Turn a pretraining checkpoint into Detectron2 weights: all of it, proven, or nothing.

    Args:
        src: checkpoint of a family in `sources.FAMILIES`, or a published one by name
            (``moco://v2_800ep``).
        dst: ``.pth`` file for ``MODEL.WEIGHTS``; replaced if it exists.
        report: JSON file for the returned report.
        branch: which encoder of a MoCo checkpoint, ``query`` or ``key``.
        expect_depth: refuse a network of another depth.

    Returns:
        What was converted, how completely, and the proof; the same is in `dst` under "provenance".

    Raises:
        UserError: the checkpoint is unreadable, unknown, incomplete, damaged or of another depth,
            the converted network does not compute the same features, or a destination cannot be
            written.
    """
    src, dst = source_file(src), Path(dst)
    _check_paths(src, dst, None if report is None else Path(report))
    checkpoint = load_checkpoint(src)
    try:
        extracted, architecture = extract(checkpoint, branch)
    except UserError as error:
        raise UserError(f"{src}: {error}") from error
    if expect_depth not in (None, architecture.depth):
        raise UserError(
            f"{src} is a ResNet-{architecture.depth}, not a ResNet-{expect_depth}; "
            f"give another checkpoint or set the depth to {architecture.depth}"
        )

    if architecture.is_basic and architecture.width_factor != 1:
        raise UserError(
            f"{src} is a {architecture}, and Detectron2 builds ResNet-18 and 34 of the plain width "
            "only; pretrain a wider ResNet-50"
        )

    # Detectron2 computes in float32. A contiguous copy, so that a view does not drag its whole
    # storage into the file.
    tensors = {
        name: tensor.detach().float().clone(memory_format=torch.contiguous_format)
        for name, tensor in extracted.tensors.items()
    }
    provenance = {
        "source": src.name,
        "source_sha256": sha256(src),
        "family": extracted.family,
        "branch": branch,
        "prefix": extracted.prefix,
        "depth": architecture.depth,
        "width_per_group": architecture.width_per_group,
        "groups": architecture.groups,
        "width_factor": architecture.width_factor,
        "tensors_expected": len(expected_tensors(architecture)),
        "tensors_found": len(tensors),
        "dropped_keys": extracted.dropped,
        "preprocessing": PREPROCESSING,
        "stride_in_1x1": False,
        "torch_version": torch.__version__,
        "moco_d2_version": moco_d2.__version__,
        "pretraining": _pretraining(checkpoint),
    }
    with contextlib.ExitStack() as stack:
        # Opened before the weights are written: a report that cannot be written leaves no weights
        # behind either.
        report_file = stack.enter_context(atomic_write(report)) if report is not None else None
        result = save_detectron2(
            dst,
            {to_detectron2(name): tensor for name, tensor in tensors.items()},
            provenance,
            verify=lambda file: {
                "parity": {**prove(file, tensors, architecture), "tolerance": TOLERANCE}
            },
        )
        if report_file is not None:
            report_file.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")
    return result


def summary(report: dict[str, Any], dst: str | Path) -> str:
    """A report in a few lines, with the keys to set in Detectron2's config."""
    architecture = Architecture(
        report["depth"], report["width_per_group"], report["groups"], report["width_factor"]
    )
    dropped = ", ".join(f"{count} {group}" for group, count in report["dropped_keys"].items())
    settings = [f"  {key} {value}" for key, value in detectron2_settings(architecture).items()]
    return "\n".join(
        [
            f"{report['source']}: {architecture}, family {report['family']!r}, "
            f"prefix {report['prefix']!r}",
            f"tensors: {report['tensors_found']} of {report['tensors_expected']}",
            f"dropped: {dropped or 'nothing'}",
            "proof: the features of both networks differ by at most "
            f"{report['parity']['max']:.1e} (relative)",
            f"written: {dst}",
            "Detectron2 settings for these weights:",
            f"  MODEL.WEIGHTS {dst}",
            *settings,
        ]
    )


def _check_paths(src: Path, dst: Path, report: Path | None) -> None:
    check_destination(dst)
    if report is not None and report.is_dir():
        raise UserError(
            f"{report} is a folder; name the report file, e.g. {report / 'report.json'}"
        )
    paths = [path.resolve() for path in (src, dst, report) if path is not None]
    if len(set(paths)) < len(paths):
        raise UserError("source, destination and report are not three different files; rename one")


def _pretraining(checkpoint: dict[Any, Any]) -> dict[str, Any]:
    """What the checkpoint says about its own making, in JSON types, without generator states."""
    about = {key: checkpoint[key] for key in ("epoch", "arch") if key in checkpoint}
    ours = checkpoint.get("moco_d2")
    if isinstance(ours, dict):
        about.update({key: ours[key] for key in _OUR_METADATA if key in ours})
    if isinstance(about.get("config"), dict):
        about["config"] = {k: v for k, v in about["config"].items() if k in _CONFIG_SECTIONS}
    return _portable(json.loads(json.dumps(to_plain(about), default=str)))


def _portable(value: Any) -> Any:
    """`value` with the last part of every absolute path: weights travel, folders do not."""
    if isinstance(value, dict):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_portable(item) for item in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value
