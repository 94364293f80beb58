"""The job of tools/transfer.py: convert, fit to the budget, write the suite, run it, answer."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from moco_d2.benchmark.rendering import render
from moco_d2.benchmark.report.page import write_page
from moco_d2.benchmark.runs.children import in_child
from moco_d2.benchmark.runs.execution import TOOLS
from moco_d2.benchmark.runs.places import make_places
from moco_d2.benchmark.runs.runner import run
from moco_d2.benchmark.transfer_command.data import absolute
from moco_d2.benchmark.transfer_command.preparation import TOOL, prepare
from moco_d2.benchmark.transfer_command.question import (
    Question,
    absolute_names,
    checkpoint_hashes,
    run_task,
    task_settings,
)
from moco_d2.benchmark.transfer_command.state import (
    SUITE,
    asked_of,
    check_same,
    dataset_hashes,
    read_state,
)
from moco_d2.benchmark.transfer_command.weights import check_weights
from moco_d2.errors import UserError
from moco_d2.files import write_text
from moco_d2.locks import run_in

_MOST_SEEDS = 100


def answer(question: Question, folder: Path, *, plan_only: bool = False) -> int:
    """Answer the question in `folder`, and print the answer.

    The same call continues after a kill, and changes nothing once the answer is there.

    Args:
        question: The question.
        folder: Output directory: transfer.yaml (the suite), its runs, answer.md and report.html.
        plan_only: Whether to stop before the first run.

    Returns:
        The exit code of the runs; see runs.runner.run.

    Raises:
        UserError: If the question cannot be answered. The message says why.
    """
    folder = absolute(folder)
    task = task_settings(question.task)
    if not 0 < question.seeds <= _MOST_SEEDS:
        raise UserError(f"--seeds must be from 1 to {_MOST_SEEDS}, got {question.seeds}")
    if question.gpus_per_run < 0:
        raise UserError(f"--gpus-per-run must be at least 0, got {question.gpus_per_run}")
    make_places(question.gpus_per_run, None, runs=1, tools=TOOLS)  # are there as many GPUs?
    question = absolute_names(question)
    hashes = in_child({TOOL}, dataset_hashes, (*question.train, *question.test))
    with run_in(folder, setting="--folder"):
        asked = asked_of(dataclasses.asdict(question), hashes | checkpoint_hashes(question))
        state = read_state(folder, folder / run_task(question, task))
        if state is None:
            lines = prepare(question, asked, task, folder)
        else:
            check_same(asked, state["asked"], folder)
            check_weights(state["weights"], folder, question.heads)
            lines = [str(line) for line in state["lines"]]
    print("\n".join(lines), flush=True)
    if plan_only:
        return 0
    try:
        code = run(folder / SUITE, folder=folder, gpus_per_run=question.gpus_per_run)
    except SystemExit:  # after a signal
        print("stopped; the same command continues", flush=True)
        raise
    if code:
        print(
            "there is no answer yet: see the failed runs above; when their cause is mended, the "
            "same command continues"
        )
        return code
    print(_report(folder, lines))
    return 0


def _report(folder: Path, lines: Sequence[str]) -> str:
    """Write answer.md, the tables and report.html, and return the answer with its table."""
    from moco_d2.benchmark.records.run_records import read_records
    from moco_d2.benchmark.tables.answer import answers

    records = read_records([folder])
    table = render(records, "markdown")
    text = "\n\n".join([*answers(records), table.rstrip()])
    settings = "\n".join(f"- {line}" for line in lines)
    write_text(folder / "answer.md", f"# Answer\n\n{text}\n\n## Settings\n\n{settings}\n")
    write_text(folder / "table.csv", render(records, "csv"))
    write_text(folder / "table.tex", render(records, "latex"))
    page = folder / "report.html"
    write_page([folder], page)
    return f"\n{text}\n\nThe report is {page}"
