#!/usr/bin/env python3
"""From a grid of fine-tuning runs to the paper's tables."""

import argparse
from pathlib import Path

from moco_d2.cli import command_parser, run_command

_FORMATS = ("markdown", "csv", "latex", "html")  # those of moco_d2.benchmark.rendering
_EXAMPLES = """
  tools/benchmark.py plan table_2b                           the runs of Table 2b and their cost
  tools/benchmark.py run table_2b --gpus-per-run 8           whatever of them is missing
  tools/benchmark.py run smoke                               two small tasks on drawn images
  tools/benchmark.py table output/table_2b --format latex    the table of these runs
  tools/benchmark.py report output/table_2b --out page.html  tables, curves, detections, errors
  tools/benchmark.py compare output/a output/b               what differs between two runs
  tools/benchmark.py paper --task voc_C4                     what the paper printed
"""


def parse_args() -> argparse.Namespace:
    """Return the flags of the command line."""
    parser = command_parser(__doc__, *map(str.strip, _EXAMPLES.strip().splitlines()))
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, text: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=text, description=text, epilog=f"example: tools/benchmark.py {example}"
        )

    plan = add("plan", "the runs of a suite, what is done and what the rest costs", "plan smoke")
    run = add("run", "run what is missing of a suite", "run smoke --folder output/smoke")
    for command in (plan, run):
        command.add_argument("suite", metavar="SUITE", help="a name, or your own YAML file")
        command.add_argument(
            "--folder", type=Path, metavar="DIR", help="of its outputs; default: output/SUITE"
        )
        command.add_argument(
            "--gpus-per-run", type=int, default=1, metavar="N", help="of each run; 0: CPU"
        )
    plan.add_argument(
        "--measure", action="store_true", help="time a few steps of each task on this machine"
    )
    run.add_argument("--jobs", type=int, metavar="N", help="runs at a time; default: what fits")
    run.add_argument(
        "--submit",
        nargs="*",
        metavar="KEY=VALUE",
        help="a job a run through submitit, as in tools/train_net.py",
    )

    table = add(
        "table",
        "mean, spread, differences and significance from run records",
        "table output/voc_C4_* --format latex --out voc.tex",
    )
    report = add(
        "report", "one self-contained page", "report output/voc_C4 --out output/voc_C4/report.html"
    )
    for command in (table, report):
        command.add_argument(
            "records", nargs="+", metavar="FOLDER", help="searched for records at any depth"
        )
    report.add_argument("--out", type=Path, required=True, metavar="FILE", help="the HTML page")
    paper = add("paper", "the published tables", "paper --task coco_FPN_1x")
    paper.add_argument("--task", metavar="NAME", help="one task or table only, e.g. voc_C4")
    for command in (table, paper):
        command.add_argument("--format", choices=_FORMATS, default="markdown")
        command.add_argument("--out", type=Path, metavar="FILE", help="instead of printing")

    compare = add("compare", "what differs between two runs", "compare output/a output/b")
    compare.add_argument("runs", nargs=2, metavar="RUN", help="output folder or record.json")

    imported = add(
        "import",
        "make a record of a Detectron2 run made elsewhere",
        "import other/run --task voc_C4 --initialization moco",
    )
    imported.add_argument("run", type=Path, metavar="DIR", help="has metrics.json and config.yaml")
    imported.add_argument("--task", required=True, metavar="NAME", help="e.g. voc_C4")
    imported.add_argument(
        *("--initialization", "--initialisation"), required=True, metavar="NAME", help="e.g. moco"
    )
    imported.add_argument(
        "--out", type=Path, metavar="FILE", help="default: record.json beside metrics.json"
    )
    return parser.parse_args()


def main() -> int | None:
    """Run the command."""
    args = parse_args()
    # Each imports after parsing what it needs: --help answers at once.
    return _COMMANDS[args.command](args)


def _plan(args: argparse.Namespace) -> None:
    from moco_d2.benchmark.runs.planning import plan

    print(
        plan(
            args.suite,
            folder=args.folder,
            gpus_per_run=args.gpus_per_run,
            measure=args.measure,
        )
    )


def _run(args: argparse.Namespace) -> int:
    from moco_d2.benchmark.runs.runner import run

    return run(
        args.suite,
        folder=args.folder,
        gpus_per_run=args.gpus_per_run,
        jobs=args.jobs,
        submit=args.submit,
    )


def _table(args: argparse.Namespace) -> None:
    from moco_d2.benchmark.rendering import render_folders

    _write(render_folders(args.records, args.format), "Runs", args)


def _paper(args: argparse.Namespace) -> None:
    from moco_d2.benchmark.rendering import render_paper

    _write(render_paper(args.task, args.format), "Published tables", args)


def _write(text: str, title: str, args: argparse.Namespace) -> None:
    from moco_d2.files import write_text

    if args.format == "html":
        from moco_d2.benchmark.html import Section, render_report

        text = render_report(title=title, sections=[Section("Tables", tables=[text])])
    if args.out is None:
        print(text, end="")
    else:
        write_text(args.out, text)


def _report(args: argparse.Namespace) -> None:
    from moco_d2.benchmark.report.page import write_page

    write_page(args.records, args.out)


def _compare(args: argparse.Namespace) -> None:
    from moco_d2.benchmark.records.compare import compare

    print(compare(*args.runs), end="")


def _import(args: argparse.Namespace) -> None:
    from moco_d2.benchmark.records.importing import import_run

    print(
        import_run(
            args.run, task=args.task, initialization=args.initialization, destination=args.out
        )
    )


_COMMANDS = {
    "plan": _plan,
    "run": _run,
    "table": _table,
    "report": _report,
    "paper": _paper,
    "compare": _compare,
    "import": _import,
}

if __name__ == "__main__":
    run_command(main)
