#!/usr/bin/env python3
"""Run all steps on generated images: pretrain, convert, fine-tune, table."""

import argparse
import sys
import time
from pathlib import Path

try:
    from moco_d2.cli import command_parser, run_command
except ModuleNotFoundError as error:  # this Python is not that of the environment
    print(f"error: {error}; run `make env`, then .venv/bin/python {sys.argv[0]}", file=sys.stderr)
    sys.exit(2)


def parse_args() -> argparse.Namespace:
    """Return the flags of the command line."""
    parser = command_parser(
        "Pretrain, convert, fine-tune and tabulate on generated images.",
        "tools/demo.py --out output/demo",
    )
    parser.add_argument("--out", type=Path, help="output folder (default: output/demo[-long|-vit])")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--long",
        action="store_true",
        help="use larger datasets and longer schedules, up to an hour on two cores",
    )
    which.add_argument(
        "--vit",
        action="store_true",
        help="pretrain a ViT-Ti with MoCo v3 instead of a ResNet with MoCo, up to half an hour",
    )
    parser.add_argument(
        "--images",
        nargs=4,
        type=int,
        metavar="N",
        help="only draw this many images for pretraining, for kNN, for training and for testing",
    )
    return parser.parse_args()


def main() -> None:
    """Run the command."""
    args = parse_args()
    if args.images:
        from moco_d2.demo.cells import write_images

        write_images(args.out or Path("output/images"), args.images)
        return

    from moco_d2.demo.pipeline import Demo
    from moco_d2.demo.settings import LONG, SHORT, VIT

    name, settings, length = "demo", SHORT, "about six minutes"
    if args.long:
        name, settings, length = "demo-long", LONG, "up to an hour"
    elif args.vit:
        name, settings, length = "demo-vit", VIT, "up to half an hour"
    out = args.out or Path("output") / name
    print(f"On two cores, this takes {length}; after a stop, the same command goes on", flush=True)
    start = time.monotonic()
    table = Demo(out, settings).run()
    print(f"\n{table}")
    print(f"finished in {time.monotonic() - start:.0f} s; open {out / 'index.html'}")


if __name__ == "__main__":
    run_command(main)
