#!/usr/bin/env python3
"""Compare the linear probe on cached features (--fast) with the 100-epoch protocol.

The figures are time and accuracy. The images are the 1,797 handwritten digits of scikit-learn (UCI)
at 32 pixels: 1,397 for training and 400 for validation. The network is a ResNet-18 that MoCo v2
pretrained on them.

    make bench-env && python benchmarks/linear_evaluation.py
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from harness import check, finish, parser
from PIL import Image

ROOT = Path(__file__).parents[1]
SIDE, TRAIN = 32, 1397


def write_digits(folder: Path) -> None:
    """Write the class folders train/ and val/."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    for place, number in enumerate(order):
        split = "train" if place < TRAIN else "val"
        file = folder / split / str(digits.target[number]) / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = (digits.images[number] * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file)


def tool(name: str, *words: Any) -> None:
    """Run one of the tools."""
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, words)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def main() -> None:
    """Measure and print."""
    args = parser(__doc__, repeats=1).parse_args()
    pretraining, epochs = (4, 2) if args.small else (200, 100)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_digits(folder)
        tool(
            "pretrain.py",
            *("--config-file", "moco_v2_R50_200ep.yaml", "MOCO.ENCODER.ARCH", "resnet18"),
            *("DATASETS.TRAIN", f"('{folder / 'train'}',)", "MOCO.EPOCHS", 0),
            *(
                "SOLVER.MAX_ITER",
                pretraining,
                "SOLVER.IMS_PER_BATCH",
                64,
                "MOCO.REFERENCE_BATCH",
                0,
            ),
            *("SOLVER.BASE_LR", 0.0075, "MOCO.AUGMENTATION.SIZE", SIDE, "MOCO.BN_SPLITS", 4),
            *("MOCO.DICTIONARY.SIZE", 512, "MOCO.MOMENTUM", 0.98, "DATALOADER.NUM_WORKERS", 1),
            *("OUTPUT_DIR", folder / "pretrain"),
        )
        results = {}
        for label, flags in (("protocol", ["--epochs", epochs]), ("fast", ["--fast"])):
            out = folder / label
            tool(
                "linear_eval.py",
                folder / "pretrain" / "checkpoint_final.pth.tar",
                *("--data", folder, "--size", SIDE, "--workers", 1, "--batch-size", 64),
                *("--output", out, *flags),
            )
            results[label] = json.loads((out / "result.json").read_text())
    seconds = {label: result["seconds"] for label, result in results.items()}
    top1 = {label: result["accuracy"]["top1"] for label, result in results.items()}
    finish(
        args,
        title="Linear evaluation: 100 epochs of the protocol against features computed once",
        checks=[
            check(
                "protocol / --fast, wall time", seconds["protocol"] / seconds["fast"], at_least=20
            ),
            check("protocol", seconds["protocol"], unit="s"),
            check("--fast", seconds["fast"], unit="s"),
            check("top-1 of the protocol", top1["protocol"], unit="%"),
            check("top-1 of --fast", top1["fast"], unit="%"),
            check("--fast minus protocol", top1["fast"] - top1["protocol"], unit="points"),
        ],
        notes=[
            "The data are the handwritten digits of scikit-learn, and the network is a ResNet-18 "
            "at 32 pixels. The protocol sees random crops in every epoch, and --fast one crop of "
            "each image."
        ],
    )


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
