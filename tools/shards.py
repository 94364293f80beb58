#!/usr/bin/env python3
"""Write images as tar shards for pretraining, each resized once."""

import argparse
import os
import sys

try:
    from moco_d2.cli import command_parser, run_command
except ModuleNotFoundError as error:  # this Python is not that of the environment
    print(f"error: {error}; run `make env`, then .venv/bin/python {sys.argv[0]}", file=sys.stderr)
    sys.exit(2)


def parse_args() -> argparse.Namespace:
    """Return the flags of the command line."""
    parser = command_parser(
        __doc__,
        "tools/shards.py datasets/imagenet/train datasets/imagenet_shards --short-side 256",
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="images as in DATASETS.TRAIN: a folder, list:FILE, a set")
    add("out", metavar="OUT", help="output folder; the same command continues an interrupted one")
    add(
        "--short-side",
        type=int,
        default=256,
        metavar="PIXELS",
        help="shorter side of a larger image after resizing (default: 256)",
    )
    add(
        "--images-per-shard",
        type=int,
        default=5000,
        metavar="N",
        help="images of a shard (default: 5000)",
    )
    add("--quality", type=int, default=95, help="JPEG quality of resized images (default: 95)")
    add(
        "--range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values of 16-bit or float images that become black and white (MOCO.INPUT.RANGE)",
    )
    workers = min(4, os.cpu_count() or 1)
    add(
        "--workers",
        type=int,
        default=workers,
        help=f"processes that resize images (default: {workers})",
    )
    add("--seed", type=int, default=0, help="seed of the order (default: 0)")
    return parser.parse_args()


def main() -> None:
    """Run the command."""
    args = parse_args()
    from moco_d2.pretrain.data.write_shards import write_shards

    write_shards(args)


if __name__ == "__main__":
    run_command(main)
