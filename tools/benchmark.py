#!/usr/bin/env python3
"""Plan and run grids of fine-tuning runs, and make the paper's tables from their records."""

import argparse
import re
import sys
from pathlib import Path

try:
    from moco_d2.cli import as_called, command_parser, run_command
except ModuleNotFoundError as error:  # this Python is not that of the environment
    print(f"error: {error}; run `make env`, then .venv/bin/python {sys.argv[0]}", file=sys.stderr)
    sys.exit(2)

_FORMATS = ("markdown", "csv", "latex", "html")  # as in moco_d2.benchmark.rendering
_EXAMPLES = """
  tools/benchmark.py plan table_2b                           runs of Table 2b with their cost
  tools/benchmark.py run table_2b --gpus-per-run 8           start those that are not done
  tools/benchmark.py run smoke                               two small tasks, generated images
  tools/benchmark.py table output/table_2b --format latex    the table of these runs
  tools/benchmark.py report output/table_2b --out page.html  tables, curves, detections, errors
  tools/benchmark.py board output --out board.md             all initializations x tasks
  tools/benchmark.py verify output/a                         a record against its run
  tools/benchmark.py compare output/a output/b               differences between two runs
  tools/benchmark.py paper --task voc_C4                     the published table
"""


def parse_args() -> argparse.Namespace:
    """Return the flags of the command line."""
    parser = command_parser(__doc__, *map(str.strip, _EXAMPLES.strip().splitlines()))
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, text: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=as_called(f"example: tools/benchmark.py {example}"),
        )

    plan = add("plan", "show the runs of a suite, their states and their cost", "plan smoke")
    run = add("run", "start all unfinished runs of a suite", "run smoke --folder output/smoke")
    for command in (plan, run):
        command.add_argument("suite", metavar="SUITE", help="name of a suite, or a YAML file")
        command.add_argument(
            "--folder", type=Path, metavar="DIR", help="output directory (default: output/SUITE)"
        )
        command.add_argument(
            "--gpus-per-run", type=int, default=1, metavar="N", help="GPUs of each run (0: CPU)"
        )
    plan.add_argument(
        "--measure", action="store_true", help="time a few steps of each task on this machine"
    )
    plan.add_argument(
        "--find", type=float, metavar="POINTS", help="say how many seeds find such a difference"
    )
    plan.add_argument(
        "--spread",
        type=float,
        metavar="POINTS",
        help="standard deviation between seeds for --find (default: the published one)",
    )
    run.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="parallel runs (default: as the hardware allows)",
    )
    run.add_argument(
        "--submit",
        nargs="*",
        metavar="KEY=VALUE",
        help="submit one job per run through submitit, as in tools/train_net.py",
    )

    table = add(
        "table",
        "print mean, spread, differences and significance of run records",
        "table output/voc_C4_* --format latex --out voc.tex",
    )
    table.add_argument(
        "--images",
        action="store_true",
        help="also print each difference with its interval over seeds and test images",
    )
    report = add(
        *("report", "write one self-contained page about run records"),
        "report output/voc_C4 --out output/voc_C4/report.html",
    )
    board = add(
        *("board", "write one page of all initializations x tasks, with rank ranges"),
        "board output/table_2b output/table_5a --out board.html",
    )
    for command in (table, report, board):
        command.add_argument(
            "records", nargs="+", metavar="FOLDER", help="folder with records at any depth"
        )
    report.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="HTML page to write"
    )
    board.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help=".md or .html page to write"
    )
    paper = add("paper", "print the published tables", "paper --task coco_FPN_1x")
    paper.add_argument("--task", metavar="NAME", help="task or table, e.g. voc_C4 (default: all)")
    for command in (table, paper):
        command.add_argument("--format", choices=_FORMATS, default="markdown")
        command.add_argument("--out", type=Path, metavar="FILE", help="default: print")

    compare = add("compare", "print the differences between two runs", "compare output/a output/b")
    compare.add_argument("runs", nargs=2, metavar="RUN", help="output folder or record.json")

    verify = add(
        *("verify", "check a record: config, weights, code, and the kept model, evaluated again"),
        "verify output/voc_C4/moco/seed1 output/voc_C4/moco/seed2",
    )
    verify.add_argument(
        "runs", nargs="+", metavar="RECORD", help="record.json, or its output folder"
    )
    verify.add_argument(
        "--weights", metavar="FILE", help="weights that the run started from (default: its own)"
    )
    verify.add_argument(
        "--no-evaluation", action="store_true", help="do not evaluate model_final.pth"
    )

    export = add(
        *("export", "write a row as a model card and as .eval_results of the Hugging Face hub"),
        "export output/table_2b --initialization moco --out output/card",
    )
    export.add_argument("records", nargs="+", metavar="FOLDER", help="folder with records")
    export.add_argument("--initialization", required=True, metavar="NAME", help="e.g. moco")
    export.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="for README.md and .eval_results/"
    )
    export.add_argument("--dataset-id", metavar="OWNER/NAME", help="a benchmark of the hub")
    export.add_argument("--task-id", metavar="ID", help="a task in its eval.yaml")
    export.add_argument("--source-url", metavar="URL", help="where the results are explained")

    imported = add(
        "import",
        "write the record of a Detectron2 run from elsewhere",
        "import other/run --task voc_C4 --initialization moco",
    )
    imported.add_argument("run", type=Path, metavar="DIR", help="with metrics.json and config.yaml")
    imported.add_argument("--task", required=True, metavar="NAME", help="e.g. voc_C4")
    imported.add_argument("--initialization", required=True, metavar="NAME", help="e.g. moco")
    imported.add_argument(
        "--out", type=Path, metavar="FILE", help="default: record.json beside metrics.json"
    )
    # The old spelling. As a second name of the flag it would make abbreviations ambiguous.
    words = [re.sub(r"^--initialis(?=a|$|=)", "--initializ", word) for word in sys.argv[1:]]
    return parser.parse_args(words)


def main() -> int | None:
    """Run the command."""
    args = parse_args()
    # Each command imports its modules after parsing, so --help is fast.
    return _COMMANDS[args.command](args)


def _plan(args: argparse.Namespace) -> None:
    from moco_d2.benchmark.runs.planning import plan

    print(
        plan(
            args.suite,
            folder=args.folder,
            gpus_per_run=args.gpus_per_run,
            measure=args.measure,
            find=args.find,
            spread=args.spread,
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

    _write(render_folders(args.records, args.format, images=args.images), "Runs", args)


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


def _board(args: argparse.Namespace) -> None:
    from moco_d2.benchmark.board.page import write_board

    write_board(args.records, args.out)


def _compare(args: argparse.Namespace) -> None:
    from moco_d2.benchmark.records.compare import compare

    print(compare(*args.runs), end="")


def _verify(args: argparse.Namespace) -> int:
    from moco_d2.benchmark.board.verify import verify

    evaluate = not args.no_evaluation
    return max(verify(run, weights=args.weights, evaluate=evaluate) for run in args.runs)


def _export(args: argparse.Namespace) -> None:
    from moco_d2.benchmark.board.export import export

    for path in export(
        args.records,
        args.initialization,
        args.out,
        dataset_id=args.dataset_id,
        task_id=args.task_id,
        source_url=args.source_url,
    ):
        print(path)


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
    "board": _board,
    "paper": _paper,
    "compare": _compare,
    "verify": _verify,
    "export": _export,
    "import": _import,
}

if __name__ == "__main__":
    run_command(main)
