#!/usr/bin/env python3
"""Pretrain a ResNet with MoCo, or its supervised baseline."""

from moco_d2.cli import argument_parser, run_command, start_job


def main() -> None:
    """Parse the command line and run it."""
    args = argument_parser(
        "Pretrain a ResNet with MoCo (or supervised, MOCO.PRETEXT) on a folder of images.",
        "tools/pretrain.py --config-file moco_v2_R50_200ep.yaml --num-gpus 8 \\\n"
        "      DATASETS.TRAIN \"('datasets/imagenet/train',)\" OUTPUT_DIR output/moco_v2",
    ).parse_args()
    start_job("moco_d2.pretrain.main:pretrain", args)


if __name__ == "__main__":
    run_command(main)
