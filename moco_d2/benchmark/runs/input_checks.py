"""Checks of the data and the weights of all runs of a suite, before the first one starts."""

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from moco_d2.benchmark.runs.cell_state import placed
from moco_d2.benchmark.runs.children import in_child
from moco_d2.benchmark.runs.config_checks import distinct_runs
from moco_d2.benchmark.runs.suites import Cell
from moco_d2.benchmark.runs.trials import is_trial
from moco_d2.benchmark.runs.tuning import datasets
from moco_d2.errors import UserError

_TOOL = "train_net.py"
_MOST_LISTED = 12  # findings that one error lists


def check_inputs(
    cells: Iterable[Cell],
    folder: Path,
    processes: int,
    *,
    data: bool = True,
    in_this_process: bool = False,
) -> None:
    """Make all checks of tools/train_net.py, once per different config.

    Without them, a suite would start each run only to see it refused. Runs that need other runs of
    the suite are left out while those are not done, because their inputs do not exist yet; a run
    that needs only trials is checked with one of their learning rates.

    Args:
        cells: The runs that are left.
        folder: The folder of the suite, with its config files.
        processes: Number of processes of each run.
        data: Whether the datasets are read and checked, too.
        in_this_process: Whether this process registers and reads the datasets; by default it is a
            child process, whose memory ends with it.

    Raises:
        UserError: If a run would be refused. The message lists the runs with their findings.
    """
    cells = list(cells)
    left = {cell.name for cell in cells if not is_trial(cell)}
    ready = [cell for cell in cells if not left & set(cell.needs)]
    runs = list(distinct_runs(ready, folder, (_TOOL,)))
    if not runs:
        return
    work = [args for _, args in runs], processes, data
    found = _findings(*work) if in_this_process else in_child({_TOOL}, _findings, *work)
    with_finding: dict[str, list[str]] = {}
    for (cell, _), texts in zip(runs, found, strict=True):
        for text in texts:
            with_finding.setdefault(text, []).append(cell.name)
    if with_finding:
        raise UserError(*_listed(with_finding))


def _listed(with_finding: dict[str, list[str]]) -> list[str]:
    """Return a line for each finding, with the first run that has it."""
    lines = []
    for text, (name, *others) in with_finding.items():
        more = f" and {len(others)} other config(s)" if others else ""
        lines.append(f"{name}{more}: {text}")
    if len(lines) == 1:
        return lines
    left = len(lines) - _MOST_LISTED
    shown = [f"  {line}" for line in lines[:_MOST_LISTED]]
    beyond = [f"  and {left} more"] if left > 0 else []
    return [f"no run was started; the runs have {len(lines)} findings", *shown, *beyond]


def _findings(runs: Sequence[argparse.Namespace], processes: int, data: bool) -> list[list[str]]:
    """Return the reasons for which each of the runs would be refused."""
    return [_findings_of(args, processes, data) for args in runs]


def _findings_of(args: argparse.Namespace, processes: int, data: bool) -> list[str]:
    from moco_d2.transfer.plan import load_run, plan_run
    from moco_d2.transfer.preflight.changes import apply_changes
    from moco_d2.transfer.preflight.check import check, check_arrival

    try:
        plan = plan_run(load_run(args), processes)
        _, findings = apply_changes(plan, check(plan, data=data))
        findings = findings or check_arrival(plan)
    except UserError as error:
        return [" ".join(str(error).split())]
    return [str(finding) for finding in findings]


def check_parts(cells: Iterable[Cell], folder: Path) -> None:
    """Check that the trials of each task use disjoint parts of its training images.

    Raises:
        UserError: If they do not. The message has the numbers of images.
    """
    cells = list(cells)
    trials = {cell.name: cell for cell in cells if is_trial(cell)}
    tasks = {}
    for cell in cells:
        trial = next((trials[name] for name in cell.needs if name in trials), None)
        if trial is not None and (whole := datasets(cell, "TRAIN")):
            sets = (whole, datasets(trial, "TRAIN"), datasets(trial, "TEST"))
            tasks[cell.task] = [[placed(name, cell, folder) for name in names] for names in sets]
    if tasks:
        in_child({_TOOL}, _check_images, tasks)


def _check_images(tasks: Mapping[str, list[list[str]]]) -> None:
    for task, names in tasks.items():
        whole, train, test = map(_files, names)
        if outside := len((train | test) - whole):
            raise UserError(
                f"tune: {outside} images of {' + '.join(names[1] + names[2])} are not training "
                f"images of {task}; name parts of {' + '.join(names[0])}"
            )
        if shared := len(train & test):
            raise UserError(
                f"tune: {shared} images of {' + '.join(names[1])} are also in "
                f"{' + '.join(names[2])}; name two parts without common images"
            )


def _files(names: list[str]) -> set[str]:
    from moco_d2.transfer.data.registered import load_dicts, register_datasets

    register_datasets(tuple(names))
    return {os.path.realpath(sample["file_name"]) for name in names for sample in load_dicts(name)}
