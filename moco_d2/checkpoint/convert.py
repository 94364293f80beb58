"""Converts a checkpoint to verified Detectron2 weights."""

import contextlib
import json
import os
import shlex
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml

from moco_d2.checkpoint.families import Input
from moco_d2.checkpoint.hub_names import origin_of
from moco_d2.checkpoint.io import load_checkpoint, save_checkpoint
from moco_d2.checkpoint.network import Network, Request
from moco_d2.checkpoint.pretraining import describe_pretraining
from moco_d2.checkpoint.recognition import Extracted
from moco_d2.checkpoint.resnets import ResNets
from moco_d2.checkpoint.stated import read_stated
from moco_d2.checkpoint.targets import TARGETS, Detectron2, Target, find_target
from moco_d2.checkpoint.vit.vits import ViTs
from moco_d2.errors import UserError, printable
from moco_d2.files import atomic_write, sha256
from moco_d2.locks import write_to
from moco_d2.version import __version__

# The first kind that recognizes a checkpoint is used. The last one is that of reports without one.
NETWORKS: tuple[Network[Any], ...] = (ViTs(), ResNets())


class AlreadyConvertedError(UserError):
    """The checkpoint is in Detectron2's format."""


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    to: str = "detectron2",
    report: str | Path | None = None,
    emit_config: str | Path | None = None,
    branch: str = "query",
    drop: tuple[str, ...] = (),
    heads: int | None = None,
    expect_depth: int | None = None,
    published: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Convert a checkpoint to weights of a framework. Writes the whole, proven backbone or nothing.

    Args:
        src: A file with a complete ResNet or ViT (--list shows the known kinds). For a
            published checkpoint use the result of `weights_by_name.source_file`.
        dst: The file of weights, which is replaced if it exists.
        to: A name in `targets.TARGETS`.
        report: JSON file for the returned report.
        emit_config: yaml file for the keys of Detectron2's config that these weights need.
        branch: The network to convert: ``query``, or its moving average ``key``.
        drop: Patterns of tensors to leave out besides the known companions.
        heads: The number of attention heads of a ViT, which no tensor shows; None if a family, a
            name or a config.json says it.
        expect_depth: The required depth of the network, if any.
        published: The published file that `src` is, for provenance. A file that was fetched from
            the hub needs none.

    Returns:
        The report: what was converted, how completely, and the proof. `dst` holds the same under
        "provenance".

    Raises:
        UserError: If the checkpoint is unreadable, unknown, incomplete, damaged or of another
            depth; if the converted network does not compute the same features; if a destination
            cannot be written; or if another process is writing `dst`.
    """
    src, dst = Path(src), Path(dst)
    target = find_target(to, dst)
    _check_paths(src, dst, report, emit_config)
    with write_to(dst):
        with ThreadPoolExecutor(1) as pool:
            fingerprint = pool.submit(sha256, src)  # runs during the conversion
            provenance, tensors, written = _read(
                src, Request(branch, src.name, read_stated(src), drop, heads), expect_depth, target
            )
            provenance["source_sha256"] = fingerprint.result()
        if published := published or origin_of(src):
            provenance["published"] = dict(published)
        with contextlib.ExitStack() as stack:
            # Opened before the weights are written: if the report cannot be written, no weights
            # are written either.
            beside = [
                (stack.enter_context(atomic_write(path)), text)
                for path, text in (
                    (report, json.dumps(provenance, indent=2, sort_keys=True) + "\n"),
                    (emit_config, _overlay(provenance, dst, emit_config)),
                )
                if path is not None
            ]
            save_checkpoint(dst, written.content(tensors, provenance))
            for file, text in beside:
                file.write_text(text)
    return json.loads(json.dumps(provenance))


def _read(
    src: Path, request: Request, expect_depth: int | None, target: Target
) -> tuple[dict[str, Any], dict[str, torch.Tensor], Target]:
    """Return the report, the proven tensors under the room's names, and the format of the file."""
    checkpoint = load_checkpoint(src)
    try:
        network = next(kind for kind in NETWORKS if kind.recognizes(checkpoint))
        extracted, architecture = network.extract(checkpoint, request)
        written = network.target(target, architecture)
        # Detectron2 needs the entry matching_heuristics to find a network in any model.
        if (
            extracted.dialect == target.name == "detectron2"
            and not extracted.prefix
            and checkpoint.get("matching_heuristics") is True
        ):
            raise AlreadyConvertedError(
                "it is already in Detectron2's format; use it as MODEL.WEIGHTS"
            )
        if expect_depth is not None:
            network.check_depth(architecture, expect_depth)
        # Detectron2 computes in float32.
        tensors = network.convert(extracted, architecture)
        proven = network.target(Detectron2(), architecture).content(tensors, {})
        figures = network.prove(proven, tensors, extracted, architecture)
    except UserError as error:
        kind = AlreadyConvertedError if isinstance(error, AlreadyConvertedError) else UserError
        raise kind(f"{src}: {error}") from error
    provenance = _provenance(src, extracted, network, architecture, request.branch)
    provenance["parity"] = {**figures, "tolerance": network.tolerance}
    provenance["pretraining"] = describe_pretraining(checkpoint)
    return provenance, tensors, written


def _provenance(
    src: Path, extracted: Extracted, network: Network[Any], architecture: Any, branch: str
) -> dict[str, Any]:
    pixels = extracted.traits.input
    facts = network.facts(architecture)
    # Reports have this entry behind the others, and a file's bytes depend on the order.
    last = {key: facts.pop(key) for key in ("stride_in_1x1",) if key in facts}
    return {
        "source": src.name,
        "family": extracted.family,
        "branch": branch,
        "container": extracted.container,
        "prefix": extracted.prefix,
        "dialect": extracted.dialect,
        **facts,
        "tensors_expected": network.count(architecture),
        "tensors_found": len(extracted.tensors),
        "dropped_keys": extracted.dropped,
        "preprocessing": {
            "format": pixels.format,
            "pixel_mean": list(pixels.pixel_mean),
            "pixel_std": list(pixels.pixel_std),
        },
        **last,
        "caveats": list(extracted.traits.caveats),
        "torch_version": str(torch.__version__),
        "moco_d2_version": __version__,
    }


def settings_for(report: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of Detectron2's config that the weights of a report need."""
    pixels = report["preprocessing"]
    network = _network(report)
    return network.settings(
        network.architecture(report),
        Input(pixels["format"], pixels["pixel_mean"], pixels["pixel_std"]),
    )


def _network(report: Mapping[str, Any]) -> Network[Any]:
    return next((kind for kind in NETWORKS if kind.name == report.get("network")), NETWORKS[-1])


def _overlay(report: dict[str, Any], weights: Path, file: str | Path | None) -> str:
    nested: dict[str, Any] = {}
    for key, value in {"MODEL.WEIGHTS": str(weights), **settings_for(report)}.items():
        *path, last = key.split(".")
        node = nested
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    text = yaml.safe_dump(nested, default_flow_style=None)
    about = printable(f"{weights.name} needs, without a task. Use: {_usage(file, report)}")
    return f"# The keys that {about}\n{text}"


def _usage(config: str | Path | None, report: Mapping[str, Any]) -> str:
    """Return a command that fine-tunes with a settings file, which names no task."""
    network = _network(report)
    task = network.task(network.architecture(report))
    return f"tools/train_net.py --config {shlex.quote(str(config))} --task {task}"


def summary(
    report: dict[str, Any],
    dst: str | Path,
    to: str = "detectron2",
    emit_config: str | Path | None = None,
) -> str:
    """Return a report as a few lines of text, with how to use the file.

    The arguments are those of `convert`.
    """
    network = _network(report)
    architecture = network.architecture(report)
    dropped = ", ".join(f"{count} {group}" for group, count in report["dropped_keys"].items())
    settings = [f"  {key} {shlex.quote(str(value))}" for key, value in settings_for(report).items()]
    usage = network.target(TARGETS[to], architecture).usage(dst, architecture)
    if emit_config is not None and to == Detectron2.name:
        usage = _usage(emit_config, report)
    container = f" in {report['container']!r}" if report["container"] else ""
    return "\n".join(
        printable(line)
        for line in [
            f"{report['source']}: {architecture}, family {report['family']!r}, "
            f"prefix {report['prefix']!r}{container}, names of {report['dialect']}",
            f"tensors: {report['tensors_found']} of {report['tensors_expected']}",
            f"dropped: {dropped or 'nothing'}",
            *(f"caveat: {caveat}" for caveat in report["caveats"]),
            "proof: the features of both networks differ by at most "
            f"{report['parity']['max']:.1e} (relative)",
            f"assumed: {network.reference}'s {architecture}. The proof cannot see what no tensor "
            f"shows: {network.unseen}",
            f"written: {dst}",
            f"use: {usage}",
            "Detectron2 settings for these weights:",
            *settings,
        ]
    )


def _check_paths(src: Path, dst: Path, *others: str | Path | None) -> None:
    beside = [Path(path) for path in others if path is not None]
    for path in beside:
        if path.is_dir():
            raise UserError(f"{path} is a folder; name the file, e.g. {path / 'report.json'}")
    # Not resolve(), which raises for links in a circle.
    paths = [os.path.realpath(path) for path in (src, dst, *beside)]
    if twice := [path for i, path in enumerate(paths) if path in paths[:i]]:
        raise UserError(
            f"{twice[0]} is named twice: checkpoint, destination, report and config must be "
            "different files; rename one"
        )
