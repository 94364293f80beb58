"""The section of the report with the AP of each class."""

import csv
import io
import re
from collections.abc import Mapping, Sequence

from moco_d2.benchmark.html import Section, html_table
from moco_d2.benchmark.records.matching import first_baseline
from moco_d2.benchmark.records.run_records import Record
from moco_d2.benchmark.statistics import Summary, summarize
from moco_d2.benchmark.tables.cell_text import signed
from moco_d2.benchmark.tables.comparison import column_title
from moco_d2.benchmark.tables.formats import no_formula
from moco_d2.benchmark.tables.grouping import Runs, is_voc

TITLE = "AP of each class"
# A metric of a class, such as "bbox/AP50-car" or "sem_seg/IoU-car".
_OF_A_CLASS = re.compile(r"(.*/(?:AP\d*|IoU))-(.+)", re.DOTALL)
_MOST_CLASSES = 100  # of a table
_COLUMNS = ("task", "metric", "class", "initialization", "mean", "std", "n")
_INTRODUCTION = (
    "Mean ± standard deviation over runs, and in parentheses the difference to the supervised row. "
    "Single classes are not tested, so no order is claimed here: among many classes, some differ "
    "by chance."
)

#: Class -> initialization -> summary.
_Classes = dict[str, dict[str, Summary]]


def class_section(tasks: Mapping[str, Runs]) -> Section | None:
    """Return a table for each task and metric; None if no record has values of classes."""
    tables = []
    for task, runs in tasks.items():
        voc = is_voc(r for group in runs.values() for r in group)
        for metric, classes in _by_metric(runs).items():
            rows = [
                [name, *(_cell(of_one, initialization) for initialization in runs)]
                for name, of_one in list(classes.items())[:_MOST_CLASSES]
            ]
            notes = []
            if len(classes) > _MOST_CLASSES:
                notes.append(f"{len(classes) - _MOST_CLASSES} more classes are in classes.csv.")
            title = f"{task}: {column_title(metric, voc=voc)} of each class"
            tables.append(html_table(["class", *runs], rows, caption=title, notes=notes))
    return Section(TITLE, text=_INTRODUCTION, tables=tables) if tables else None


def classes_csv(tasks: Mapping[str, Runs]) -> str:
    """Return the unrounded values of all classes as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for task, runs in tasks.items():
        for metric, classes in _by_metric(runs).items():
            for name, of_one in classes.items():
                for initialization, s in of_one.items():
                    names = map(no_formula, (task, metric, name, initialization))
                    writer.writerow([*names, s.mean, s.std, s.n])
    return out.getvalue()


def _by_metric(runs: Runs) -> dict[str, _Classes]:
    values: dict[str, dict[str, dict[str, list[float]]]] = {}
    for initialization, group in runs.items():
        for metric, name, value in _values(group):
            of_class = values.setdefault(metric, {}).setdefault(name, {})
            of_class.setdefault(initialization, []).append(value)
    return {
        metric: {
            name: {initialization: summarize(v) for initialization, v in of_one.items()}
            for name, of_one in classes.items()
        }
        for metric, classes in values.items()
    }


def _values(group: Sequence[Record]) -> list[tuple[str, str, float]]:
    return [
        (match[1], match[2], value)
        for record in group
        for key, value in record.metrics.items()
        if value is not None and (match := _OF_A_CLASS.fullmatch(key))
    ]


def _cell(of_one: Mapping[str, Summary], initialization: str) -> str:
    summary = of_one.get(initialization)
    if summary is None:
        return "–"
    text = str(summary).replace(" ", "\N{NO-BREAK SPACE}")
    baseline = first_baseline(of_one)
    if baseline is not None and baseline != initialization:
        text += f" ({signed(summary.mean - of_one[baseline].mean)})"
    return text
