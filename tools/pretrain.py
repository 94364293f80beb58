#!/usr/bin/env python3
"""Pretrain a ResNet or a ViT with MoCo, or its supervised baseline."""

import argparse
import sys

try:
    from moco_d2.cli import argument_parser, run_command, start_job
except ModuleNotFoundError as error:  # this Python is not that of the environment
    print(f"error: {error}; run `make env`, then .venv/bin/python {sys.argv[0]}", file=sys.stderr)
    sys.exit(2)


def parse_args() -> argparse.Namespace:
    """Return the flags of the command line."""
    return argument_parser(
        "Pretrain a network with MoCo (v1 to v3, or supervised: MOCO.PRETEXT) on images.",
        "tools/pretrain.py --config-file moco_v2_R50_200ep.yaml --num-gpus 8 \\\n"
        "      DATASETS.TRAIN datasets/imagenet/train OUTPUT_DIR output/moco_v2",
    ).parse_args()


def main() -> None:
    """Run the command."""
    start_job("moco_d2.pretrain.main:pretrain", parse_args())


if __name__ == "__main__":
    run_command(main)
