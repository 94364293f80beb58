"""The outcomes of converting the files of families.py, and the table of them.

PYTHONPATH=tests python -m support.checkpoint.outcomes --write docs/checkpoint_table.md
"""

import argparse
import atexit
import functools
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.checkpoint.families import FILES, File
from support.checkpoint.reference import parity
from support.checkpoint.vit_files import RESULT, section
from support.paths import ROOT

from moco_d2.checkpoint.convert import convert
from moco_d2.errors import UserError

TOLERANCE = 1e-5  # relative, of features in float32
ROWS = range(1, 37)
INTRODUCTION = """# Checkpoint files and their outcomes

This page shows, for a file of each project, whether `tools/convert.py` converts or refuses it. The
files have random weights and the layout of the project. This command writes the page:
`PYTHONPATH=tests python -m support.checkpoint.outcomes`.

## ResNets

Parity is the largest relative difference between the features of the saved network and the features
of Detectron2's backbone with the converted weights, over res2 .. res5 and one image, in float32.

"""
COMMITTED_TABLE = ROOT / "docs" / "checkpoint_table.md"


@dataclass(frozen=True)
class Outcome:
    """What `convert` made of a file.

    Args:
        report: of `convert`; None if the file was refused.
        weights: the Detectron2 weights; None likewise.
        refusal: the sentence; None if the file was converted.
        left_behind: names of the files in the destination's folder.
    """

    report: dict[str, Any] | None
    weights: Path | None
    refusal: str | None
    left_behind: tuple[str, ...]


@functools.cache
def outcome(file: File) -> Outcome:
    """Write the file, convert it and remove it again; the weights stay until the process ends."""
    folder = _folder() / file.id
    folder.mkdir()
    target = folder / "converted"
    target.mkdir()
    source = file.write(folder)
    weights = target / "weights.pth"
    try:
        report, refusal = convert(source, weights), None
    except UserError as error:
        report, refusal = None, str(error)
    source.unlink()
    left_behind = tuple(sorted(path.name for path in target.iterdir()))
    return Outcome(report, weights if report else None, refusal, left_behind)


@functools.cache
def features_differ(file: File) -> float:
    """Measure the parity of the network that was saved and the converted weights."""
    return parity(file.network, file.query, outcome(file).weights)


@functools.cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="moco_d2_families_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def table() -> str:
    """Every file and what came of it, as Markdown."""
    lines = ["| # | file of | recognized as | outcome | parity |", "|--:|---|---|---|--:|"]
    for file in FILES:
        result = outcome(file)
        if result.report is None:
            reason = result.refusal.replace(f"{_folder() / file.id}/", "")
            cells = ("-", f"refused: {reason}", "-")
        else:
            family, prefix = result.report["family"], result.report["prefix"]
            cells = (
                f"{family}, `{prefix}`" if prefix else family,
                f"converted, {result.report['tensors_found']} tensors",
                f"{features_differ(file):.1e}",
            )
        title = f"{file.title} (`{file.name}`)"
        lines.append(f"| {file.row} | {title} | " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Convert every file and write the table.")
    parser.add_argument("--write", type=Path, default=COMMITTED_TABLE, metavar="FILE.md")
    destination = parser.parse_args().write
    destination.parent.mkdir(parents=True, exist_ok=True)
    destination.write_text(INTRODUCTION + table() + section(json.loads(RESULT.read_text())))
