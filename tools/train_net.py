#!/usr/bin/env python3
"""Fine-tune and evaluate a detector from an initialization; predict with it; export it."""

import argparse
import sys

try:
    from moco_d2.cli import argument_parser, run_command, start_job
except ModuleNotFoundError as error:  # this Python is not that of the environment
    print(f"error: {error}; run `make env`, then .venv/bin/python {sys.argv[0]}", file=sys.stderr)
    sys.exit(2)


def parse_args() -> argparse.Namespace:
    """Return the flags of the command line."""
    parser = argument_parser(
        "Fine-tune a detector on a task of the paper, from random, supervised or MoCo weights.\n\n"
        "Any task of configs/task/ with any initialization of configs/init/ is a config by name,\n"
        "{task}_{init}.yaml: voc_C4_moco.yaml, coco_C4_2x_moco_v2_800ep.yaml,\n"
        "lvis_v1_FPN_1x_random.yaml. Batch, learning rate and length follow the number of GPUs.",
        "tools/train_net.py --config voc_C4_moco.yaml --num-gpus 8 OUTPUT_DIR output/voc_C4_moco",
        "tools/train_net.py --config voc_C4_moco.yaml MODEL.WEIGHTS weights/mine.pth SEED 2",
        "tools/train_net.py --config weights/mine.yaml --task voc_C4 SEED 2",
        "tools/train_net.py --config voc_C4_moco.yaml --predict a.jpg b.jpg \\\n"
        "      MODEL.WEIGHTS output/voc_C4_moco/model_final.pth",
        "tools/train_net.py --config voc_C4_moco.yaml --export detector.pth \\\n"
        "      MODEL.WEIGHTS output/voc_C4_moco/model_final.pth",
    )
    parser.add_argument(
        "--task",
        metavar="NAME",
        help="task of configs/task, or its yaml file, for a --config that names only weights: the "
        "file of tools/convert.py --emit-config, or a name of configs/init",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="run in spite of preflight findings; the record lists them",
    )
    finished = parser.add_argument_group("if MODEL.WEIGHTS is a finished detector")
    finished = finished.add_mutually_exclusive_group()
    finished.add_argument(
        "--eval-only",
        action="store_true",
        help="evaluate it on DATASETS.TEST, in an OUTPUT_DIR of its own",
    )
    finished.add_argument(
        "--predict",
        nargs="+",
        metavar="IMAGE",
        help="draw its detections in images, in OUTPUT_DIR/predictions (KEY VALUE may follow)",
    )
    finished.add_argument(
        "--export",
        metavar="FILE.pth",
        help="write it as a plain Detectron2 model, to FILE.pth and FILE.yaml",
    )
    return parser.parse_args()


def main() -> None:
    """Run the command."""
    args = parse_args()
    if args.predict:
        job = "inference.predict:main"
    elif args.export:
        job = "inference.export:main"
    else:
        job = "main:train"
    start_job(f"moco_d2.transfer.{job}", args)


if __name__ == "__main__":
    run_command(main)
