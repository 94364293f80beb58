#!/usr/bin/env python
"""Convert a pretraining checkpoint into verified Detectron2 weights."""

import argparse

from moco_d2.errors import run_command


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Convert a pretraining checkpoint (MoCo, torchvision) to Detectron2 weights.\n"
        "Exit code 0: complete and verified. 2: one sentence says why not, and nothing is written.",
        epilog="example:\n  tools/convert.py output/pretrain/model_final.pth output/moco_R50.pth "
        "--report output/moco_R50.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "src", metavar="SRC", help="checkpoint written by torch.save, or a name: moco://v2_800ep"
    )
    parser.add_argument("dst", metavar="DST", help="weights to write, a .pth file")
    parser.add_argument(
        "--branch",
        choices=("query", "key"),
        default="query",
        help="encoder of a MoCo checkpoint",
    )
    parser.add_argument("--report", metavar="FILE.json", help="also write what was done as JSON")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # Only now: torch and detectron2 take seconds, --help should not.
    from moco_d2.checkpoint.convert import convert, summary

    print(summary(convert(args.src, args.dst, report=args.report, branch=args.branch), args.dst))


if __name__ == "__main__":
    run_command(main)
