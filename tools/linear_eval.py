#!/usr/bin/env python3
"""Evaluate a checkpoint's features: linear probe, kNN, or end-to-end fine-tuning."""

import argparse
import sys

try:
    from moco_d2.cli import command_parser, run_command, start_job
except ModuleNotFoundError as error:  # this Python is not that of the environment
    print(f"error: {error}; run `make env`, then .venv/bin/python {sys.argv[0]}", file=sys.stderr)
    sys.exit(2)


def parse_args() -> argparse.Namespace:
    """Return the flags of the command line."""
    parser = command_parser(
        __doc__,
        "tools/linear_eval.py checkpoint.pth.tar --data datasets/imagenet --num-gpus 8",
        "tools/linear_eval.py checkpoint.pth.tar --data datasets/imagenet --fast --crops 2 \\\n"
        "      --output output/fast",
        "tools/linear_eval.py moco://v2_800ep --data datasets/imagenet --protocol knn \\\n"
        "      --output output/knn",
        "tools/linear_eval.py random --arch resnet50 --data datasets/inat --protocol finetune \\\n"
        "      --task inaturalist",
    )
    add = parser.add_argument
    add(
        "checkpoint",
        metavar="CKPT",
        help="a file or a name that tools/convert.py reads, or 'random'",
    )
    add(
        "--data",
        required=True,
        metavar="DIR",
        help="folder with train/ and val/, one folder per class",
    )
    add("--val", metavar="DIR", help="validation set, if --data is only the training set")
    add(
        "--output",
        default="output/linear_eval",
        metavar="DIR",
        help="output folder (default: output/linear_eval)",
    )
    add(
        "--protocol",
        choices=("linear", "knn", "finetune"),
        default="linear",
        help="default: linear, with lr 30 (ViTs: 3) and 100 epochs",
    )
    add("--fast", action="store_true", help="linear probe on features that are computed once")
    add("--crops", type=int, default=1, metavar="N", help="crops per training image with --fast")
    add(
        "--task",
        choices=("imagenet", "inaturalist"),
        default="imagenet",
        help="dataset whose learning rate --protocol finetune uses",
    )
    add("--branch", choices=("query", "key"), default="query", help="encoder of a MoCo checkpoint")
    add("--arch", metavar="NAME", help="architecture of 'random', e.g. resnet50 or vit_small")
    add("--heads", type=int, metavar="N", help="attention heads of a ViT that does not say it")
    add("--epochs", type=int, help="number of epochs (default: 100)")
    add("--batch-size", type=int, help="images per step over all processes (default: 256)")
    add(
        "--lr",
        type=float,
        help="learning rate for a batch of 256, scaled with the batch (default: the paper's)",
    )
    add("--size", type=int, default=224, help="side of a crop, pixels (default: 224)")
    add(
        "--range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values of 16-bit or float images that become black and white (MOCO.INPUT.RANGE)",
    )
    add("--workers", type=int, default=4, help="processes that decode images (default: 4)")
    add("--seed", type=int, default=0)
    add("--device", help="cpu, cuda or cuda:INDEX (default: cuda if a GPU is usable)")
    add("--resume", action="store_true", help="continue an interrupted run in --output")
    add("--num-gpus", type=int, default=1, help="GPUs on this machine")
    add("--num-machines", type=int, default=1)
    add("--machine-rank", type=int, default=0, help="this machine's index")
    add("--dist-url", default="auto", help="address of machine 0, tcp://HOST:PORT")
    return parser.parse_args()


def main() -> None:
    """Run the command."""
    start_job("moco_d2.pretrain.probe.main:evaluate_checkpoint", parse_args())


if __name__ == "__main__":
    run_command(main)
