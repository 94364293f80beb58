#!/usr/bin/env python
"""Tables from the run records that fine-tuning leaves, and the paper's own tables."""

import argparse
from pathlib import Path

from moco_d2.errors import run_command

_FORMATS = ("markdown", "csv", "latex", "html")  # those of moco_d2.benchmark.tables
_EXAMPLES = """examples:
  tools/benchmark.py table output/voc_C4_*                          print the table of these runs
  tools/benchmark.py table output --format html --out tables.html   all runs below output, as a page
  tools/benchmark.py paper --task voc_C4                            what the paper printed
"""


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser(
        "table",
        help="mean, spread and differences from run records",
        epilog="example: tools/benchmark.py table output/voc_C4_* --format latex --out voc.tex",
    )
    table.add_argument(
        "records",
        nargs="+",
        metavar="RECORDS_FOLDER",
        help="searched for record.json at any depth",
    )
    paper = commands.add_parser(
        "paper",
        help="the published tables",
        epilog="example: tools/benchmark.py paper --task coco_FPN_1x",
    )
    paper.add_argument("--task", metavar="NAME", help="one task or table only, e.g. voc_C4")
    for command in (table, paper):
        command.add_argument("--format", choices=_FORMATS, default="markdown")
        command.add_argument("--out", type=Path, metavar="FILE", help="instead of printing")
    return parser.parse_args()


def main() -> None:
    args = _parse()
    # After parsing: --help answers at once.
    from moco_d2.benchmark.report import Section, render_report
    from moco_d2.benchmark.results import read_records
    from moco_d2.benchmark.tables import render, render_paper
    from moco_d2.files import write_text

    if args.command == "table":
        title, text = "Fine-tuning runs", render(read_records(args.records), args.format)
    else:
        title, text = "Published tables", render_paper(args.task, args.format)
    if args.format == "html":
        text = render_report(title=title, sections=[Section("Tables", tables=[text])])
    if args.out is None:
        print(text, end="")
    else:
        write_text(args.out, text)


if __name__ == "__main__":
    run_command(main)
