#!/usr/bin/env python3
"""Convert any self-supervised or supervised ResNet or ViT checkpoint into verified weights."""

import argparse
import sys

try:
    from moco_d2.cli import command_parser, run_command
except ModuleNotFoundError as error:  # this Python is not that of the environment
    print(f"error: {error}; run `make env`, then .venv/bin/python {sys.argv[0]}", file=sys.stderr)
    sys.exit(2)
from moco_d2.errors import UserError


def parse_args() -> argparse.Namespace:
    """Return the flags of the command line."""
    parser = command_parser(
        "Convert the ResNet or ViT in a checkpoint of any project to Detectron2 weights.\n"
        "Exit code 0: the conversion is complete and verified. On any problem the tool prints one\n"
        "line, exits with code 2 and writes nothing.",
        "tools/convert.py output/moco_v2/checkpoint_final.pth.tar weights/moco.pth \\\n"
        "      --report weights/moco.json",
        "tools/convert.py moco://v2_800ep backbone.safetensors --to torchvision",
    )
    parser.add_argument(
        "src",
        metavar="SRC",
        nargs="?",
        help="checkpoint (torch.save, safetensors, npz, pkl), or a name: moco://v2_800ep, "
        "hf://USER/REPO/FILE@REVISION",
    )
    parser.add_argument(
        "dst",
        metavar="DST",
        nargs="?",
        help="file to write: .pth, .pkl (Detectron2) or .safetensors (torchvision, timm)",
    )
    parser.add_argument(
        "--to",
        choices=("detectron2", "torchvision", "timm", "mmdet"),
        default="detectron2",
        help="framework whose tensor names are written (default: detectron2)",
    )
    parser.add_argument(
        "--branch",
        choices=("query", "key"),
        default="query",
        help="network to convert: query, or key for its moving average (momentum, target, teacher)",
    )
    parser.add_argument(
        "--drop",
        metavar="PATTERN",
        action="append",
        default=[],
        help="leave out these tensors beside the network, e.g. 'my_head.*' (repeatable)",
    )
    parser.add_argument(
        "--heads",
        metavar="N",
        type=int,
        help="number of attention heads of a ViT, where no name and no config.json says it",
    )
    parser.add_argument("--report", metavar="FILE.json", help="also write the report as JSON")
    parser.add_argument(
        "--emit-config",
        metavar="FILE.yaml",
        help="also write the Detectron2 config keys that these weights need",
    )
    parser.add_argument("--list", action="store_true", help="print the known kinds of checkpoints")
    return parser.parse_args()


def main() -> None:
    """Run the command."""
    args = parse_args()
    if args.list:
        from moco_d2.checkpoint.documentation import listing

        print(listing(), end="")
        return
    if args.src is None or args.dst is None:
        raise UserError("tools/convert.py needs SRC and DST; see --help, and --list for the kinds")
    # torch and detectron2 take seconds to import, so --help does not wait for them.
    from moco_d2.checkpoint.convert import convert, summary
    from moco_d2.checkpoint.weights_by_name import source_file

    report = convert(
        source_file(args.src),
        args.dst,
        to=args.to,
        report=args.report,
        emit_config=args.emit_config,
        branch=args.branch,
        drop=tuple(args.drop),
        heads=args.heads,
    )
    print(summary(report, args.dst, args.to, args.emit_config))


if __name__ == "__main__":
    run_command(main)
