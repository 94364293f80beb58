"""The rows of tools/transfer.py: each checkpoint is converted, proven, and named."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from moco_d2.config.load import config_root
from moco_d2.errors import UserError, printable
from moco_d2.files import read_plain_json, sha256

RANDOM_ROW, SUPERVISED_ROW = "random", "supervised"
_WEIGHTS = "weights"  # folder of the converted files and their reports
_MOST_BYTES = 1 << 20  # of a report
_LONGEST_NAME = 40  # characters of a row
# Keys that a comparison shares between all its rows: with another value, a row would not be
# matched. The rest describes the network.
_PIXELS = ("INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.RESNETS.STRIDE_IN_1X1")
_SHAPE = ("depth", "groups", "width_per_group", "width_factor")
# (depth, groups, width per group, width factor) -> torchvision's name, where it is not resnetDEPTH.
_WIDE = {
    (50, 32, 4, 1): "resnext50_32x4d",
    (101, 32, 8, 1): "resnext101_32x8d",
    (50, 1, 128, 1): "wide_resnet50_2",
    (101, 1, 128, 1): "wide_resnet101_2",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """An initialization of the comparison.

    Attributes:
        name: Its name in the table.
        source: The checkpoint, as the user wrote it.
        file: The converted weights.
        report: The converter's report.
    """

    name: str
    source: str
    file: Path
    report: dict[str, Any]


def row_names(sources: Sequence[str]) -> list[str]:
    """Return a name for each checkpoint, from the names of the files.

    The names of the packaged initializations are left to these. Equal names get numbers.
    """
    packaged = {path.stem for path in (config_root() / "init").glob("*.yaml")}
    names: list[str] = []
    for source in sources:
        base = source.replace("://", "_").rstrip("/")
        base = base if "/" not in base else base.rpartition("/")[2]
        stem = re.sub(r"(\.(pth|pt|tar|pkl|npz|safetensors|ckpt|bin|gz|torch))+$", "", base)
        stem = re.sub(r"[^A-Za-z0-9_.+=,-]+", "_", stem).lstrip(".+=,-")[:_LONGEST_NAME] or "mine"
        name = f"my_{stem}" if stem in packaged else stem
        number = 2
        while name in names:
            name, number = f"{stem}_{number}", number + 1
        names.append(name)
    return names


def convert_row(name: str, source: str, folder: Path) -> Row:
    """Convert a checkpoint to `folder`/weights/NAME.pth, if that has not been done, with its proof.

    A file of tools/convert.py is used as it is.

    Raises:
        UserError: If the checkpoint is not there or cannot be converted.
    """
    from moco_d2.checkpoint.catalog import source_file
    from moco_d2.checkpoint.convert import convert
    from moco_d2.checkpoint.io import read_provenance

    file = source_file(source)
    if not file.is_file():
        raise UserError(
            f"there is no checkpoint {source}; name a file, or published weights such as "
            "moco://v2_200ep"
        )
    target, report_file = folder / _WEIGHTS / f"{name}.pth", folder / _WEIGHTS / f"{name}.json"
    digest = sha256(file)
    if target.is_file() and report_file.is_file():
        report = _read_report(report_file)
        if report.get("source_sha256") == digest:
            return Row(name, source, target, report)
    inside = _provenance(file, read_provenance)
    if inside is not None:
        return Row(name, source, file.absolute(), inside)
    report = convert(file, target, report=report_file)
    return Row(name, source, target, report)


def _provenance(file: Path, read: Any) -> dict[str, Any] | None:
    """Return the report inside a file of tools/convert.py; None for another file."""
    try:
        report = read(file)
    except UserError:
        return None  # the converter says what is wrong with it
    if not isinstance(report, dict) or not {"preprocessing", "parity"} <= report.keys():
        return None
    numbers = [report.get(key) for key in _SHAPE]
    return report if all(isinstance(number, int | float) for number in numbers) else None


def _read_report(file: Path) -> dict[str, Any]:
    try:
        report = read_plain_json(file, _MOST_BYTES)
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def network_settings(rows: Iterable[Row]) -> dict[str, Any]:
    """Return the config keys of the network, which all rows share.

    Raises:
        UserError: If the rows are of different networks, or need other pixels than torchvision's.
    """
    from moco_d2.checkpoint.convert import settings_for
    from moco_d2.checkpoint.mapping import Architecture, detectron2_settings

    rows = list(rows)
    settings = [settings_for(row.report) for row in rows]
    usual = detectron2_settings(Architecture(depth=50))
    for row, other in zip(rows, settings, strict=True):
        for key in _PIXELS:
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
    return {key: value for key, value in settings[0].items() if key not in _PIXELS}


def supervised_source(report: dict[str, Any]) -> str | None:
    """Return the name of torchvision's supervised weights of the same network; None if there are
    none.
    """
    from moco_d2.checkpoint.catalog import PUBLISHED

    shape = tuple(report[key] for key in _SHAPE)
    depth, groups, width, factor = shape
    plain = f"resnet{depth}" if (groups, width, factor) == (1, 64, 1) else ""
    name = f"torchvision://{_WIDE.get(shape, plain)}"
    return name if name in {entry.name for entry in PUBLISHED} else None
