#!/usr/bin/env python3
"""Convert files of ViTs and of other networks that the libraries themselves have written.

The libraries are in an environment of their own; campaigns/vit_makers has their code. Detectron2's
main is a checkout, named by the environment variable DETECTRON2_MAIN.

    python -m venv output/families
    output/families/bin/pip install timm transformers lightly open_clip_torch
    DETECTRON2_MAIN=CHECKOUT python campaigns/vit_files.py --python output/families/bin/python
    PYTHONPATH=tests python -m support.checkpoint.outcomes
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

# ruff: noqa: E402
import moco_d2  # noqa: F401  isort: skip  before Detectron2
from support.checkpoint.vit_files import RESULT, differences, layout_of

from moco_d2.checkpoint.convert import convert
from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.errors import UserError
from moco_d2.files import write_text

MOST = 1e-4  # largest relative difference of correct networks


def converted(folder: Path, made: dict[str, Any]) -> dict[str, Any]:
    """Convert a file, and compare with the features that its library computed.

    Raises:
        AssertionError: If a tensor does not arrive in a detector, or the features differ.
    """
    source, weights = folder / made["file"], folder / "converted.pth"
    beside = {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    try:
        report = convert(source, weights, **made["arguments"])
    except UserError as error:
        outcome: dict[str, Any] = {"refused": str(error).replace(f"{source}: ", "")}
    else:
        image, features = torch.load(folder / "expected.pt")
        found = differences(report, weights, {"image": image, "features": features})
        assert all(d is not None and d < MOST for d in found.values()), (made, found)
        outcome = {
            "family": report["family"],
            "prefix": report["prefix"],
            "tensors": report["tensors_found"],
            "heads": report["vit"]["heads"],
            "caveats": report["caveats"],
            **{key: float(f"{value:.1e}") for key, value in found.items()},
        }
    return made | {
        "beside": beside,
        "outcome": outcome,
        "layout": layout_of(load_checkpoint(source)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--python", required=True, help="Python of an environment with the libraries")
    add("--json", type=Path, default=RESULT, metavar="FILE.json", help="the result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="moco_d2_vit_files_") as name:
        folder = Path(name)
        makers = Path(__file__).with_name("vit_makers")
        subprocess.run([arguments.python, makers, folder], check=True)
        index = json.loads((folder / "index.json").read_text())
        files = [converted(folder / f"{i:02}", made) for i, made in enumerate(index, 1)]
    rows = ",\n".join(json.dumps(file) for file in files)
    write_text(arguments.json, f'{{"torch": "{torch.__version__}", "files": [\n{rows}\n]}}\n')
    refused = sum("refused" in file["outcome"] for file in files)
    print(f"{len(files)} files: {len(files) - refused} converted, {refused} refused")


if __name__ == "__main__":
    main()
