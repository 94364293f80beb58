#!/usr/bin/env python3
"""Fine-tune and evaluate a detector from a given initialisation."""

from moco_d2.errors import run_command
from moco_d2.launch import argument_parser, launch


def main() -> None:
    """Parse the command line and run it."""
    parser = argument_parser(
        "Fine-tune a detector on a task of the paper, from random, supervised or MoCo weights.",
        "tools/train_net.py --config voc_C4_moco.yaml --num-gpus 8 \\\n"
        "      MODEL.WEIGHTS weights/moco.pth OUTPUT_DIR output/voc_C4_moco",
    )
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, a finished detector"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="run in spite of preflight findings; the record keeps them",
    )
    launch("moco_d2.transfer.main:train", parser.parse_args())


if __name__ == "__main__":
    run_command(main)
