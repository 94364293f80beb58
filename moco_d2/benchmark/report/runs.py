"""Sections of the report about the runs: their list, configs, cost, commands, environment."""

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moco_d2.benchmark.html import Section, html_code, html_link, html_table
from moco_d2.benchmark.records.run_records import Record
from moco_d2.benchmark.tables.answer import headline_metrics
from moco_d2.benchmark.tables.grouping import Runs
from moco_d2.benchmark.tables.table import Table
from moco_d2.config.plain import flatten, free_keys

_ABSENT = "–"
_LONGEST_VALUE = 160  # characters in a cell
_MOST_VALUES = 3  # different values in a cell
_MOST_ROWS = 80  # of a table
_MOST_COMMANDS = 40
_MOST_RUNS = 200  # of a table
# Units of time, the largest first, and their seconds.
_UNITS = (("h", 3600), ("min", 60), ("s", 1))


def run_section(tasks: Mapping[str, Runs], tables: Sequence[Table], page: Path) -> Section:
    """Return the result of each run with a link to its folder.

    Args:
        tasks: Runs by task and initialization, see grouping.by_task.
        tables: The table of each task, in the same order.
        page: The folder of the page. Links are relative to it.
    """
    parts = []
    for (task, runs), table in zip(tasks.items(), tables, strict=True):
        metrics = headline_metrics(table)
        group = [record for of_one in runs.values() for record in of_one]
        rows = [
            [
                f"{r.initialization}, seed {r.seed}",
                *(_ABSENT if (v := r.metrics.get(m)) is None else f"{v:.1f}" for m in metrics),
                duration([r.seconds]),
                r.finished.strftime("%Y-%m-%d %H:%M"),
                html_link("folder", os.path.relpath(r.path.parent, page)),
            ]
            for r in group[:_MOST_RUNS]
        ]
        notes = [f"{len(group) - _MOST_RUNS} more runs."] if len(group) > _MOST_RUNS else []
        columns = ["run", *metrics.values(), "time", "finished", "files"]
        parts.append(html_table(columns, rows, caption=task, notes=notes))
    text = "Links to folders are relative to this page, so they work as long as both stay in place."
    return Section("Runs", text=text, tables=parts)


def config_section(tasks: Mapping[str, Runs]) -> Section:
    """Return, for every task, the config keys that differ between its runs."""
    tables, matched = [], []
    for task, runs in tasks.items():
        configs = [(name, flatten(r.config)) for name, group in runs.items() for r in group]
        values: dict[str, dict[str, Counter[str]]] = {}
        for key in sorted({key for _, config in configs for key in config}):
            for name, config in configs:
                of_value = values.setdefault(key, {}).setdefault(_text(config.get(key)), Counter())
                of_value[name] += 1
        differing = {
            key: counts
            for key, counts in values.items()
            if len(counts) > 1 and key not in ("SEED", "OUTPUT_DIR")
        }
        (first, *_) = (r.config for group in runs.values() for r in group)
        if set(differing) <= set(free_keys(first)):
            matched.append(task)
        rows = [
            [key, value, _who(of_value, runs)]
            for key, counts in differing.items()
            for value, of_value in counts.items()
        ]
        same = len(values) - len(differing)
        notes = [f"{same} other keys are equal in all {len(configs)} runs."]
        if len(rows) > _MOST_ROWS:
            notes.insert(0, f"{len(rows) - _MOST_ROWS} more lines are left out.")
        if rows:
            columns = ["key", "value", "in runs from"]
            tables.append(
                html_table(columns, rows[:_MOST_ROWS], caption=task, notes=notes, wrap=True)
            )
    text = "Each run has its own SEED and OUTPUT_DIR, which are not compared. "
    if matched:
        text += f"Matched, the configs differ only in MODEL.WEIGHTS: {', '.join(matched)}. "
    other = [task for task in tasks if task not in matched]
    if other:
        text += f"Not matched, see the keys below: {', '.join(other)}."
    return Section("Configuration differences", text=text, tables=tables)


def _who(runs: Counter[str], all_runs: Runs) -> str:
    """Return the initializations of these runs: ``supervised, moco (2 of 5)``."""
    return ", ".join(
        name if number == len(all_runs[name]) else f"{name} ({number} of {len(all_runs[name])})"
        for name, number in runs.items()
    )


def cost_section(tasks: Mapping[str, Runs]) -> Section:
    """Return time, memory and hardware of every initialization."""
    columns = ["initialization", "runs", "iterations × images", "s / iteration", "a run takes"]
    columns += ["evaluation, s", "peak memory, GiB", "hardware"]
    tables, total, unknown = [], 0.0, 0
    for task, runs in tasks.items():
        rows = []
        for name, group in runs.items():
            seconds = [r.seconds for r in group]
            total += sum(s for s in seconds if s is not None)
            unknown += seconds.count(None)
            rows.append(
                [
                    name,
                    len(group),
                    distinct(f"{r.max_iter} × {r.ims_per_batch}" for r in group),
                    value_range(r.cost.get("seconds_per_iteration") for r in group),
                    duration(seconds),
                    value_range(r.cost.get("evaluation_seconds") for r in group),
                    value_range(r.cost.get("peak_memory_gib") for r in group),
                    distinct(hardware_of(r) for r in group),
                ]
            )
        tables.append(html_table(columns, rows, caption=task, wrap=True))
    text = f"Total time: {duration([total])}, with evaluations and without pauses. "
    if unknown:
        text += f"The time of {unknown} runs is not known. "
    text += (
        "If runs of one initialization differ, a cell has the smallest – largest value. Peak "
        "memory is that of the GPU, or of the process on a CPU."
    )
    return Section("Cost and hardware", text=text, tables=tables)


def command_section(records: Sequence[Record]) -> Section:
    """Return the command lines of the runs, rebuilt from the config if they were not recorded.

    Runs that differ only in SEED and OUTPUT_DIR share one command.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    rebuilt, imported = 0, []
    for record in records:
        if record.origin["how"] == "imported":
            imported.append(f"{record.task} {record.initialization} seed {record.seed}")
            continue
        rebuilt += not record.command
        key = (record.task, record.initialization, *_shared_words(_command(record)))
        groups.setdefault(key, []).append(record)
    commands = []
    for (task, initialization, *_), group in list(groups.items())[:_MOST_COMMANDS]:
        seeds = ", ".join(str(r.seed) for r in group)
        several = "; each with its own SEED and OUTPUT_DIR" * (len(group) > 1)
        title = f"{task}, {initialization}: seed{'s' * (len(group) > 1)} {seeds}{several}"
        commands.append((title, _command(group[0])))
    text = ["Relative paths are those of the folder in which a run was started."]
    if len(groups) > _MOST_COMMANDS:
        text.append(f"{len(groups) - _MOST_COMMANDS} more are in run.command of the records.")
    if rebuilt:
        text.append(
            f"Records without a command: {rebuilt}. The command here has their config and seed; "
            "all other settings are in config.yaml beside the record."
        )
    if imported:
        more = f" and {len(imported) - _MOST_COMMANDS} more" * (len(imported) > _MOST_COMMANDS)
        text.append(
            f"No command is known, because the run was imported: "
            f"{', '.join(imported[:_MOST_COMMANDS])}{more}."
        )
    return Section("Commands of the runs", text="\n\n".join(text), html=html_code(commands))


def _command(record: Record) -> str:
    if record.command:
        return record.command
    words = ["--config-file", f"{record.config_name}.yaml", "SEED", str(record.seed)]
    return f"tools/train_net.py {shlex.join(words)}"


def _shared_words(command: str) -> list[str]:
    """Return the words of a command without SEED, OUTPUT_DIR and --resume."""
    try:
        words = shlex.split(command)
    except ValueError:  # anybody may have written the record
        words = command.split()
    own = {i + 1 for i, word in enumerate(words) if word in ("SEED", "OUTPUT_DIR")}
    return [word for i, word in enumerate(words) if i not in own and word != "--resume"]


def environment_section(records: Sequence[Record]) -> Section:
    """Return the versions of the packages of the runs."""
    packages = sorted({name for r in records for name in r.environment})
    rows = []
    for name in packages:
        versions = Counter(_text(r.environment.get(name)) for r in records)
        shown = [
            version if len(versions) == 1 else f"{version} ({runs} runs)"
            for version, runs in versions.most_common(_MOST_VALUES)
        ]
        more = [f"{len(versions) - len(shown)} more"] if len(versions) > len(shown) else []
        rows.append([name, "; ".join(shown + more)])
    if not rows:
        return Section("Environment", text="No record has its environment: all were imported.")
    return Section("Environment", tables=[html_table(["package", "version"], rows, wrap=True)])


def hardware_of(record: Record) -> str:
    """Return the devices of a run: ``8 × NVIDIA H200``."""
    hardware = record.hardware
    name = _text(hardware.get("name") or hardware.get("device"))
    if hardware.get("device") == "cpu":
        cores = hardware.get("cpu_count")
        name += f", {_text(cores)} cores" if cores else ""
        return name if record.world_size in (None, 1) else f"{record.world_size} processes, {name}"
    return name if record.world_size is None else f"{record.world_size} × {name}"


def duration(seconds: Iterable[float | None]) -> str:
    """Return the shortest to the longest of the known times with their unit: ``3.1 – 3.4 h``."""
    known = [s for s in seconds if s is not None]
    if not known:
        return _ABSENT
    unit, size = next(((u, n) for u, n in _UNITS if max(known) >= n), _UNITS[-1])
    return f"{value_range(s / size for s in known)} {unit}"


def value_range(values: Iterable[Any]) -> str:
    """Return the smallest to the largest of the known numbers as text."""
    known = [v for v in values if isinstance(v, int | float)]
    if not known:
        return _ABSENT
    low, high = min(known), max(known)
    decimals = 3 if high < 0.1 else 2 if high < 10 else 1 if high < 100 else 0
    least, most = f"{low:.{decimals}f}", f"{high:.{decimals}f}"
    return least if least == most else f"{least}\N{NO-BREAK SPACE}– {most}"


def distinct(values: Iterable[Any]) -> str:
    """Return the different values as text that names the first ones."""
    texts = list(dict.fromkeys(map(_text, values)))
    more = f" and {len(texts) - _MOST_VALUES} more" if len(texts) > _MOST_VALUES else ""
    return "; ".join(texts[:_MOST_VALUES]) + more


def _text(value: Any) -> str:
    """Return any value of a record on one line of limited length."""
    if value is None:
        return _ABSENT
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return f"{text[:_LONGEST_VALUE]}…" if len(text) > _LONGEST_VALUE else text
