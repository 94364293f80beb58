#!/usr/bin/env python3
"""Answer whether checkpoints transfer to your data, within a budget of time."""

import argparse
import sys
from pathlib import Path

try:
    from moco_d2.cli import command_parser, run_command
except ModuleNotFoundError as error:  # this Python is not that of the environment
    print(f"error: {error}; run `make env`, then .venv/bin/python {sys.argv[0]}", file=sys.stderr)
    sys.exit(2)


def parse_args() -> argparse.Namespace:
    """Return the flags of the command line."""
    parser = command_parser(
        "Answer whether checkpoints transfer to your data, within a budget of time.\n\n"
        "Detectors are fine-tuned from each checkpoint, from supervised and from random weights,\n"
        "with matched settings that fit the budget.\n\n"
        "DATA is a VOC year (VOC2007), the folder of one, a COCO annotation file, or a dataset as\n"
        "in a config: voc:FOLDER:SPLIT, coco:ANNOTATIONS.json:IMAGES, or a registered name.\n"
        "After a kill, the same command continues.",
        "tools/transfer.py mine.pth --train train.json --test test.json --budget 2h",
        "tools/transfer.py moco://v2_800ep mine.pth --train VOC2007 VOC2012 --test VOC2007 \\\n"
        "      --seeds 5 --gpus-per-run 1 --budget 20h --folder output/mine",
    )
    parser.add_argument(
        "checkpoints",
        metavar="CHECKPOINT",
        nargs="+",
        help="any file that tools/convert.py reads, or a name such as moco://v2_800ep",
    )
    for purpose, text in (("train", "fine-tune on"), ("test", "test on")):
        parser.add_argument(
            f"--{purpose}", metavar="DATA", nargs="+", required=True, help=f"data to {text}"
        )
    parser.add_argument(
        "--task", metavar="NAME", default="voc_C4", help="task of configs/task (default: voc_C4)"
    )
    parser.add_argument(
        "--seeds", type=int, default=5, metavar="N", help="runs of each row (default: 5)"
    )
    parser.add_argument(
        "--budget",
        metavar="TIME",
        help="2h, 90m or 1h30m for everything (default: the task's own schedule)",
    )
    parser.add_argument(
        "--gpus-per-run", type=int, default=1, metavar="N", help="GPUs of each run (0: CPU)"
    )
    parser.add_argument(
        "--supervised",
        metavar="CHECKPOINT",
        help="weights of the supervised row, or none (default: published ones of the same network)",
    )
    parser.add_argument(
        "--heads", type=int, metavar="N", help="attention heads of ViTs that do not say it"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("output/transfer"),
        metavar="DIR",
        help="output directory (default: output/transfer)",
    )
    parser.add_argument(
        "--plan-only", action="store_true", help="convert, measure, print the plan, and stop"
    )
    return parser.parse_args()


def main() -> int:
    """Run the command."""
    args = parse_args()
    from moco_d2.engine.signals import advise

    advise("the same command continues")
    from moco_d2.benchmark.transfer_command.budget import parse_budget

    budget = None if args.budget is None else parse_budget(args.budget)  # before slow imports
    from moco_d2.benchmark.transfer_command.command import answer
    from moco_d2.benchmark.transfer_command.question import Question

    question = Question(
        checkpoints=tuple(args.checkpoints),
        train=tuple(args.train),
        test=tuple(args.test),
        task=args.task,
        seeds=args.seeds,
        budget=budget,
        gpus_per_run=args.gpus_per_run,
        supervised=args.supervised,
        heads=args.heads,
    )
    return answer(question, args.folder, plan_only=args.plan_only)


if __name__ == "__main__":
    run_command(main)
