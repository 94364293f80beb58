"""The rows of tools/transfer.py: each checkpoint is converted, proven, and named."""

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moco_d2.benchmark.runs.children import in_child
from moco_d2.benchmark.transfer_command.question import NO_SUPERVISED, Question
from moco_d2.config.load import packaged_parts
from moco_d2.errors import UserError, printable
from moco_d2.files import sha256

RANDOM_ROW, SUPERVISED_ROW = "random", "supervised"
_WEIGHTS = "weights"  # folder of the converted files and their reports
_SUFFIXES = re.compile(r"(\.(pth|pt|tar|pkl|npz|safetensors|ckpt|bin|gz|torch))+$", re.IGNORECASE)
# Groups of tensors that only a detector or a segmenter has, in the converter's report.
_DETECTORS = ("proposal_generator.*", "roi_heads.*", "sem_seg_head.*", "*_head.*")
# Tensors that only Detectron2 calls so.
_STEM, _PATCHES = "stem.conv1.weight", "backbone.net.patch_embed.proj.weight"
_ANY_VIT_TASK = "coco_vitdet_Ti_25ep"
_LONGEST_NAME = 40  # characters of a row
# Keys that a comparison shares between all its rows: with another value, a row would not be
# matched. The rest describes the network.
_PIXELS = ("INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.RESNETS.STRIDE_IN_1X1")
_SHAPE = ("depth", "groups", "width_per_group", "width_factor")
_SUPERVISED = ("torchvision://", "timm://")  # names of supervised weights
_GLOBAL_BLOCKS = "MOCO.VIT.GLOBAL_BLOCKS"


@dataclasses.dataclass(frozen=True)
class Row:
    """An initialization of the comparison.

    Attributes:
        name: Its name in the table.
        source: The checkpoint, as the user wrote it.
        file: The converted weights.
        report: The converter's report.
        tensors: The SHA-256 of the names and values of the converted tensors.
    """

    name: str
    source: str
    file: Path
    report: dict[str, Any]
    tensors: str = ""


def convert_rows(
    question: Question, task: Mapping[str, Any], folder: Path
) -> tuple[list[Row], str]:
    """Return the converted rows, the supervised one first, and a sentence if it is missing."""
    names = row_names(question.checkpoints)
    rows = []
    for name, checkpoint in zip(names, question.checkpoints, strict=True):
        rows.append(_converted(name, checkpoint, folder, question))
        check_task(rows[-1], question.task, task)
    check_different(rows)
    if question.supervised == NO_SUPERVISED:
        return rows, "There is no supervised row, because of --supervised none."
    source = question.supervised or supervised_source(rows[0].report)
    if source is None:
        return rows, (
            "There is no supervised row, because no supervised weights of this network with this "
            "input are published by name (docs/weights.md); give yours with --supervised."
        )
    try:
        supervised = _converted(SUPERVISED_ROW, source, folder, question)
    except UserError as error:
        if question.supervised is None:
            raise UserError(
                f"{error}; or give your own supervised weights with --supervised FILE, or none "
                f"with --supervised {NO_SUPERVISED}"
            ) from error
        raise
    check_task(supervised, question.task, task)
    check_different([supervised, *rows])
    return [supervised, *rows], ""


def _converted(name: str, source: str, folder: Path, question: Question) -> Row:
    print(f"converting {source}", flush=True)
    row = convert_row(name, source, folder, question.heads)
    for caveat in row.report["caveats"]:
        print(printable(f"  caveat: {caveat}"), flush=True)
    return row


def row_names(sources: Sequence[str]) -> list[str]:
    """Return a name for each checkpoint, from the names of the files.

    The names of the packaged initializations are left to these. Names that are equal up to case get
    numbers, because they become files.
    """
    packaged = set(map(str.lower, packaged_parts("init")))
    names: list[str] = []
    for source in sources:
        base = source.replace("://", "_").rstrip("/")
        base = base if "/" not in base else base.rpartition("/")[2]
        stem = (
            re.sub(r"[^A-Za-z0-9_.+=,-]+", "_", _SUFFIXES.sub("", base)).lstrip(".+=,-")[
                :_LONGEST_NAME
            ]
            or "mine"
        )
        name = f"my_{stem}" if stem.lower() in packaged else stem
        number = 2
        while name.lower() in map(str.lower, names):
            name, number = f"{stem}_{number}", number + 1
        names.append(name)
    return names


def convert_row(name: str, source: str, folder: Path, heads: int | None = None) -> Row:
    """Convert a checkpoint to `folder`/weights/NAME.pth, with its proof, in a child process.

    A file of tools/convert.py for Detectron2 is used as it is.

    Args:
        name: The row's name.
        source: A file, or the name of published weights.
        folder: Output directory.
        heads: The number of attention heads of a ViT, if the user gives it.

    Raises:
        UserError: If the checkpoint cannot be converted, or is a trained detector.
    """
    return in_child({"convert.py"}, _convert_row, name, source, folder, heads)


def _convert_row(name: str, source: str, folder: Path, heads: int | None) -> Row:
    from moco_d2.checkpoint.convert import convert
    from moco_d2.checkpoint.weights_by_name import source_file

    file = source_file(source)
    target = folder / _WEIGHTS / f"{name}.pth"
    row = Row(name, source, file.absolute(), _provenance(file) or {})
    if not row.report:
        report = convert(file, target, report=target.with_suffix(".json"), heads=heads)
        row = Row(name, source, target, report)
    dropped = row.report.get("dropped_keys")
    parts = [part for part in _DETECTORS if isinstance(dropped, dict) and part in dropped]
    if parts:
        raise UserError(
            f"{printable(source)} is a trained detector (it has {', '.join(parts)}): it has seen "
            "labels of detection data, so the comparison would not be matched; give the checkpoint "
            "that it was fine-tuned from"
        )
    return dataclasses.replace(row, tensors=_hash_of_tensors(row.file))


def _hash_of_tensors(file: Path) -> str:
    import torch

    from moco_d2.checkpoint.io import load_checkpoint

    content = hashlib.sha256()
    for name, tensor in sorted(load_checkpoint(file)["model"].items()):
        content.update(name.encode())
        content.update(torch.as_tensor(tensor).numpy().tobytes())
    return content.hexdigest()


def check_task(row: Row, name: str, task: Mapping[str, Any]) -> None:
    """Check that a task fine-tunes networks of a row's kind.

    Args:
        row: The row.
        name: The name of the task.
        task: Its settings.

    Raises:
        UserError: If it fine-tunes ViTs and the row is a ResNet, or the other way around, or if no
            feature pyramid fits the row's patches.
    """
    if _is_vit(row.report) and not of_vits(task):
        raise UserError(
            f"{printable(row.source)} is a ViT, and --task {name} fine-tunes ResNets; choose "
            f"--task {_ANY_VIT_TASK} or another task with vitdet in its name"
        )
    if of_vits(task) and not _is_vit(row.report):
        raise UserError(
            f"{printable(row.source)} is a ResNet, and --task {name} fine-tunes ViTs; choose "
            "--task coco_FPN_1x or another task without vitdet in its name"
        )
    patch = row.report["vit"]["patch"] if _is_vit(row.report) else 1
    if patch & (patch - 1):
        raise UserError(
            f"{printable(row.source)} has patches of {patch} pixels, and the feature pyramid of a "
            "detector needs a power of two; use a ViT with patches of 16 or 8 pixels"
        )


def _is_vit(report: Mapping[str, Any]) -> bool:
    return report.get("network") == "vit"


def check_different(rows: Sequence[Row]) -> None:
    """Check that no two rows are of the same checkpoint or have the same tensors.

    Raises:
        UserError: If two are.
    """
    seen: dict[tuple[Any, Any], Row] = {}
    for row in rows:
        # Of one checkpoint, the query and the key network are different weights.
        origin = row.report.get("source_sha256") or sha256(row.file), row.report.get("branch")
        others = [seen.setdefault(key, row) for key in (origin, (row.tensors or row.name, None))]
        if other := next((found for found in others if found is not row), None):
            advice = "name it once"
            if SUPERVISED_ROW in (row.name, other.name):
                advice += ", as a row or as --supervised (default: published weights)"
            raise UserError(
                f"{printable(other.source)} and {printable(row.source)} are the same checkpoint; "
                f"{advice}"
            )


def as_state(rows: Iterable[Row]) -> dict[str, Any]:
    """Return the files of the rows with their hashes, for check_weights."""
    return {
        row.name: {"source": row.source, "file": str(row.file), "sha256": sha256(row.file)}
        for row in rows
    }


def check_weights(state: dict[str, Any], folder: Path, heads: int | None = None) -> None:
    """Check that the files of the rows are those of the plan, and convert the others again.

    Args:
        state: The result of as_state.
        folder: Output directory.
        heads: See convert_row.

    Raises:
        UserError: If a conversion does not give the planned file.
    """
    for name, planned in state.items():
        file = Path(planned["file"])
        if file.is_file() and sha256(file) == planned["sha256"]:
            continue
        print(f"{file} is not the file of the plan: converting {planned['source']} again")
        convert_row(name, planned["source"], folder, heads)
        if not file.is_file() or sha256(file) != planned["sha256"]:
            raise UserError(
                f"{file} is not the file that {folder} was planned with; choose another --folder"
            )


def _provenance(file: Path) -> dict[str, Any] | None:
    """Return the report inside a file of tools/convert.py for Detectron2; None for another file."""
    from moco_d2.checkpoint.io import load_checkpoint, read_provenance
    from moco_d2.checkpoint.vit.mapping import ViT

    try:
        report = read_provenance(file)
        tensors = load_checkpoint(file).get("model") if report else None
    except UserError:
        return None  # the converter says what is wrong with it
    if not isinstance(report, dict) or not {"preprocessing", "parity"} <= report.keys():
        return None
    if not isinstance(tensors, dict) or (_PATCHES if _is_vit(report) else _STEM) not in tensors:
        return None  # a file for timm or torchvision
    numbers = [report.get(key) for key in _SHAPE]
    if _is_vit(report):
        vit = report.get("vit")
        if not isinstance(vit, dict) or vit.keys() != ViT.__dataclass_fields__.keys():
            return None
        numbers = list(vit.values())
    return report if all(isinstance(number, int | float) for number in numbers) else None


def of_vits(task: Mapping[str, Any]) -> bool:
    """Return whether the detectors of a task have a ViT."""
    from moco_d2.transfer.norms import VIT_BACKBONE

    return task.get("MODEL.BACKBONE.NAME") == VIT_BACKBONE


def network_settings(rows: Iterable[Row], task: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config keys of the network, which all rows share.

    The random row of ResNets has torchvision's pixels. That of ViTs has the pixels of the others,
    which are not the same for all projects.

    Args:
        rows: The rows, which fit the task (check_task).
        task: Settings of the task.

    Raises:
        UserError: If the rows are of different networks or need different pixels, or if ResNets
            need other pixels than torchvision's.
    """
    from moco_d2.checkpoint.convert import settings_for
    from moco_d2.checkpoint.mapping import Architecture, detectron2_settings
    from moco_d2.resnet import own_builder

    rows = list(rows)
    settings = [settings_for(row.report) for row in rows]
    usual = detectron2_settings(Architecture(depth=50))
    for row, other in zip(rows, settings, strict=True):
        for key in () if of_vits(task) else _PIXELS:
            if other[key] != usual[key]:
                raise UserError(
                    f"{printable(row.source)} needs {key} {other[key]}, and random and supervised "
                    f"need {usual[key]}, so a comparison with them is not matched; fine-tune it "
                    "with tools/train_net.py by itself"
                )
        different = next((key for key in other if other[key] != settings[0][key]), None)
        if different:
            raise UserError(
                f"{printable(row.source)} has {different} {other[different]}, and "
                f"{printable(rows[0].source)} has {settings[0][different]}: two networks are no "
                "matched comparison; run the command once for each"
            )
    if not of_vits(task):
        network = {key: value for key, value in settings[0].items() if key not in _PIXELS}
        name = task.get("MODEL.BACKBONE.NAME", "build_resnet_backbone")
        shape = (network["MODEL.RESNETS.DEPTH"], network["MODEL.RESNETS.RES2_OUT_CHANNELS"])
        own = own_builder(name, *shape)
        return {**network, **({"MODEL.BACKBONE.NAME": own} if own else {})}
    # As many as the task has, or the most below that which divide the depth evenly with it.
    blocks = math.gcd(settings[0]["MOCO.VIT.DEPTH"], int(task[_GLOBAL_BLOCKS]))
    return {**settings[0], **({} if blocks == task[_GLOBAL_BLOCKS] else {_GLOBAL_BLOCKS: blocks})}


def supervised_source(report: dict[str, Any]) -> str | None:
    """Return the name of published supervised weights of the same network with the same input:
    torchvision's of a ResNet, DeiT's of a ViT; None if there are none.
    """
    from moco_d2.checkpoint.convert import settings_for
    from moco_d2.checkpoint.published import PUBLISHED

    wanted = settings_for(report)
    fitting = [entry.name for entry in PUBLISHED if entry.settings == wanted]
    return next((name for name in fitting if name.startswith(_SUPERVISED)), None)
