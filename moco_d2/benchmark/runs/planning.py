"""The plan of a suite: its grid, the state of each run, and the cost of the remaining runs.

The cost of a run is estimated from up to three sources, each of which is named in the plan:
published seconds per step (published_costs.yaml), steps timed on this machine, and finished runs
of the suite.
"""

import dataclasses
import functools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from moco_d2.benchmark.runs import cell_lock, cell_state, run_log
from moco_d2.benchmark.runs.config_checks import check_configs
from moco_d2.benchmark.runs.display import duration
from moco_d2.benchmark.runs.execution import TOOLS
from moco_d2.benchmark.runs.measuring import hardware_of, measure_tasks, read_timing
from moco_d2.benchmark.runs.places import make_places, visible_gpus
from moco_d2.benchmark.runs.suite_values import file_settings
from moco_d2.benchmark.runs.suites import Cell, Suite, load_suite
from moco_d2.benchmark.runs.trials import is_trial
from moco_d2.benchmark.tables import power
from moco_d2.benchmark.tables.comparison import planned_metrics
from moco_d2.config.load import task_configs
from moco_d2.config.safe_yaml import load_yaml
from moco_d2.errors import UserError
from moco_d2.records.metrics_json import finite

_MOST_POINTS = 100  # of AP
_PUBLISHED = Path(__file__).with_name("published_costs.yaml")
# A suite may change these keys of the packaged configs without changing the cost of a step.
_LENGTH = {"SEED", "MODEL.WEIGHTS", "SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.CHECKPOINT_PERIOD"}
_MARKS = {"done": "done", "partial": "begun", "missing": "-", "conflict": "other"}


def plan(
    suite: str | Path,
    *,
    folder: Path | None = None,
    gpus_per_run: int = 1,
    measure: bool = False,
    find: float | None = None,
    spread: float | None = None,
) -> str:
    """Return the plan as text.

    Args:
        suite: See suites.load_suite.
        folder: Output directory. Default: output/SUITE.
        gpus_per_run: See runner.run.
        measure: Whether to time a few steps of each task on this machine. Otherwise the plan shows
            the last measurement, if there is one.
        find: A difference in points; the plan then says how many seeds it needs.
        spread: Standard deviation between seeds for `find`, points. Default: the published one.

    Raises:
        UserError: If `find` or `spread` is not above 0, there is no such suite, it has a config
            that cannot be loaded, or there are too few GPUs to measure.
    """
    for flag, points in (("--find", find), ("--spread", spread)):
        if points is not None and not 0 < points <= _MOST_POINTS:
            raise UserError(f"{flag} must be above 0 and at most {_MOST_POINTS}, got {points:g}")
    loaded = load_suite(suite)
    folder = (Path("output") / loaded.name if folder is None else folder).absolute()
    processes = max(1, gpus_per_run)
    check_configs(loaded.cells, folder, loaded.files, processes=processes, planned=True)
    states = {
        cell.name: cell_state.examine(cell, folder, processes=processes) for cell in loaded.cells
    }
    problems = measure_tasks(loaded, folder, gpus_per_run) if measure else {}
    return "\n".join(
        [
            f"{loaded.name}: {loaded.title}",
            "",
            *_grid(loaded, folder, states),
            "",
            *_costs(loaded, folder, states, gpus_per_run, problems),
            "",
            *_power(loaded, find, spread),
        ]
    ).rstrip()


# ---- grid ----------------------------------------------------------------------------------------


def _grid(suite: Suite, folder: Path, states: dict[str, cell_state.State]) -> Iterator[str]:
    seeds = list(dict.fromkeys(cell.seed for cell in suite.cells))
    places: dict[tuple[str, str], dict[int, str]] = {}
    for cell in suite.cells:
        status = states[cell.name].status
        running = status != "conflict" and cell_lock.is_running(cell, folder)
        mark = "running" if running else _MARKS[status]
        trial = f", {cell.name.rpartition('/')[2]}" if is_trial(cell) else ""
        places.setdefault((cell.task, cell.initialization + trial), {})[cell.seed] = mark
    rows = [("task", "initialization", *(f"seed {seed}" for seed in seeds))]
    for (task, initialization), marks in places.items():
        rows.append((task, initialization, *(marks.get(seed, "") for seed in seeds)))
    yield from _columns(rows)
    counts = Counter(state.status for state in states.values())
    yield ""
    yield (
        f"{len(states)} runs, in {folder}: {counts['done']} done, {counts['partial']} begun, "
        f"{counts['missing']} to start"
    )
    for state in states.values():
        if state.status == "conflict":
            yield f"in the way: {state.problem}"


def _columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _power(suite: Suite, find: float | None, spread: float | None) -> Iterator[str]:
    """Yield what the grid can find, for each task that is fine-tuned."""
    tasks: dict[str, list[Cell]] = {}
    for cell in suite.cells:
        if cell.kind == "transfer" and not is_trial(cell):
            tasks.setdefault(cell.task, []).append(cell)
    for task, cells in tasks.items():
        rows = sorted({cell.initialization for cell in cells})
        seeds = len({cell.seed for cell in cells})
        metrics = len(planned_metrics(cells[0].settings, suite.design))
        if len(rows) > 1:
            yield f"{task}: {power.sentence(task, rows, seeds, metrics, suite.design)}"
            if find is not None:
                of_task = power.published_spread(task) if spread is None else spread
                text = power.seeds_sentence(rows, metrics, suite.design, find, of_task)
                yield f"{task}: {text}"


# ---- costs ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimated cost of a run.

    Attributes:
        source: Source of the estimate, in a few words.
        seconds: Duration of a run.
        gpus: Number of GPUs; 0 is the CPU.
        here: Whether the estimate is for this machine.
        note: A sentence that explains the estimate.
    """

    source: str
    seconds: float
    gpus: int
    here: bool
    note: str = ""


def _costs(
    suite: Suite,
    folder: Path,
    states: dict[str, cell_state.State],
    gpus_per_run: int,
    problems: dict[str, str],
) -> Iterator[str]:
    left = [cell for cell in suite.cells if states[cell.name].status != "done"]
    if not left:
        yield "all runs are done"
        return
    yield "remaining runs:"
    notes: dict[str, None] = {}
    for task in dict.fromkeys(cell.task for cell in left):
        cells = [cell for cell in left if cell.task == task]
        iterations = {cell.iterations for cell in cells if cell.iterations is not None}
        steps = f" of {min(iterations)} iterations" if len(iterations) == 1 else ""
        yield f"  {task}: {len(cells)} run(s){steps}"
        estimates = list(_estimates(suite, cells, folder, gpus_per_run))
        for estimate in estimates:
            at_a_time = _at_a_time(suite, gpus_per_run) if estimate.here else 1
            yield f"    {estimate.source}: {_cost_text(estimate, len(cells), at_a_time)}"
            if estimate.note:
                notes[estimate.note] = None
        if task in problems:
            yield f"    not measured: {problems[task]}"
        if not estimates:
            yield "    no published or measured cost"
    yield from notes


def _cost_text(estimate: Estimate, runs: int, at_a_time: int) -> str:
    """Return time and GPU-hours of one run and of all runs."""

    def hours(count: int) -> str:
        if not estimate.gpus:
            return ""
        number = estimate.gpus * estimate.seconds * count / 3600
        return f", {number:.{1 if number < 100 else 0}f} GPU-hours"

    at_a_time = min(at_a_time, runs)
    all_seconds = math.ceil(runs / at_a_time) * estimate.seconds
    how = f"{at_a_time} at a time" if at_a_time > 1 else "one after another"
    return (
        f"a run {duration(estimate.seconds)}{hours(1)}; "
        f"all, {how}, {duration(all_seconds)}{hours(runs)}"
    )


def _estimates(
    suite: Suite, cells: list[Cell], folder: Path, gpus_per_run: int
) -> Iterator[Estimate]:
    task, iterations = cells[0].task, cells[0].iterations
    published = published_costs()
    entry = published["tasks"].get(task)
    if entry and iterations and all(map(_is_published_step, cells)):
        yield Estimate(
            f"published, {entry['seconds']:.3f} s an iteration on {published['hardware']} "
            f"({entry['of']})",
            entry["seconds"] * iterations,
            published["gpus"],
            here=False,
            note=f"published: {published['source']}; steps alone, without evaluation and PreciseBN",
        )
    timing = read_timing(folder, task, gpus_per_run)
    if timing:
        seconds = timing["seconds_per_iteration"]
        yield Estimate(
            f"measured, {seconds:.3g} s an iteration on {hardware_of(timing, gpus_per_run)} "
            f"(median of {timing['steps']}; {timing['images_per_batch']} images a step, "
            f"{timing['iterations']} iterations)",
            seconds * timing["iterations"],
            gpus_per_run if timing["on_gpu"] else 0,
            here=True,
            note="measured: steps alone, without evaluation and PreciseBN",
        )
    finished = list(_finished_seconds([c for c in suite.cells if c.task == task], folder))
    if finished:
        yield Estimate(
            f"{len(finished)} finished run(s)",
            statistics.fmean(finished),
            gpus_per_run if gpus_per_run and visible_gpus() else 0,
            here=True,
        )


@functools.cache
def published_costs() -> dict[str, Any]:
    """Return the content of published_costs.yaml."""
    return load_yaml(_PUBLISHED)


@functools.cache
def _packaged_settings(name: str) -> dict[str, Any] | None:
    files = task_configs().get(name)
    return file_settings(*files) if files else None


def _is_published_step(cell: Cell) -> bool:
    """Return whether a step of the cell costs what a step of the packaged config costs."""
    packaged = _packaged_settings(f"{cell.task}_{cell.initialization}.yaml")
    if cell.kind != "transfer" or packaged is None:
        return False
    keys = (packaged.keys() | cell.settings.keys()) - _LENGTH
    return all(str(packaged.get(key)) == str(cell.settings.get(key)) for key in keys)


def _finished_seconds(cells: Iterable[Cell], folder: Path) -> Iterator[float]:
    """Yield the duration of each cell that has run from beginning to end without a kill."""
    names = {cell.name: len(cell.commands) for cell in cells}
    spent: dict[str, list[dict[str, Any]]] = {}
    for line in run_log.read_log(folder):
        if line["cell"] in names and line["event"] in ("started", "ended"):
            spent.setdefault(line["cell"], []).append(line)
    for name, lines in spent.items():
        ended = [line for line in lines if line["event"] == "ended" and line.get("exit_code") == 0]
        seconds = [finite(line.get("seconds")) for line in ended]
        known = [s for s in seconds if s is not None]  # anybody may have written the log
        if len(known) == names[name] and len(lines) == 2 * len(known):
            yield sum(known)


def _at_a_time(suite: Suite, gpus_per_run: int) -> int:
    try:
        return len(make_places(gpus_per_run, None, runs=len(suite.cells), tools=TOOLS))
    except UserError:  # this machine has too few GPUs
        return 1
