"""Where each initialization loses AP50, as a section of the report: worse boxes, wrong classes, or
objects that are not found.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from moco_d2.benchmark.html import Image, Section, html_figure, html_table
from moco_d2.benchmark.records.matching import BASELINE, Matching
from moco_d2.benchmark.records.results import Record
from moco_d2.benchmark.report.plots import grouped_bars
from moco_d2.benchmark.statistics import Comparison, Summary, corrected, summarize
from moco_d2.benchmark.tables.cell_text import p_value
from moco_d2.benchmark.tables.comparison import compare_values, short_name
from moco_d2.benchmark.tables.grouping import file_names
from moco_d2.records.run_schema import ERROR_TYPES

TITLE = "Errors by kind"
_MEANING = {
    "Cls": "of the wrong class, where an object of another is (classification)",
    "Loc": "of the right class, but with an IoU of 0.1 to 0.5 only (localization)",
    "Both": "of the wrong class, and with such an IoU",
    "Dupe": "right, but of an object that a better detection has",
    "Bkg": "where nothing is",
    "Miss": "not found, and would not be by correcting a Cls or Loc error",
}
_INTRODUCTION = (
    "Points of AP50 that each kind of error costs: by how much AP50 would rise if every error of "
    "that kind alone were corrected (TIDE, Bolya et al., 2020; IoU thresholds 0.5 and 0.1), for "
    "the boxes of the last evaluation. The costs need not add up to what is missing to 100, and a "
    "detector that is better throughout may lose more to one kind, having more to lose."
)
_ABSENT = (
    "No record says what kinds of errors its detector made: that is found out at the end of a run, "
    "for boxes evaluated as VOC's or COCO's, and not known of imported runs and of records of "
    "version 1."
)
_AP50_NOTE = (
    "AP50 is COCO's here, the mean precision at 101 recalls, whatever the dataset: it is not the "
    "11-point AP50 of VOC 2007 in the tables above."
)

Runs = Mapping[str, Sequence[Record]]


def error_section(tasks: Mapping[str, Runs], folder: Path) -> Section:
    """A table and a figure for every test set whose errors are known.

    Args:
        tasks: runs by task and initialization, see grouping.by_task.
        folder: where the figures are written.
    """
    names = file_names(tasks)
    parts: list[str] = []
    for task, runs in tasks.items():
        everyone = [record for group in runs.values() for record in group]
        for dataset in sorted({name for r in everyone for name in r.errors or ()}):
            costs = _costs(runs, dataset)
            parts.append(_table(f"{task}: {short_name(dataset)}", costs, runs, dataset))
            path = folder / f"errors_{names[task]}_{len(parts) // 2}.svg"
            kinds = {i: {k: s for k, s in of.items() if k != "AP50"} for i, of in costs.items()}
            grouped_bars(kinds, path, ylabel="points of AP50 lost")
            image = Image(
                path,
                f"{task}: points of AP50 lost to each kind of error; whiskers: one standard "
                "deviation over runs",
                _described(task, kinds),
            )
            parts.append(html_figure(image))
    if not parts:
        return Section(TITLE, text=_ABSENT)
    meanings = html_table(
        ["kind", "a detection, or an object, that is"], _MEANING.items(), wrap=True
    )
    return Section(TITLE, text=_INTRODUCTION, tables=[meanings, *parts])


def _costs(runs: Runs, dataset: str) -> dict[str, dict[str, Summary]]:
    found = {}
    for initialization, group in runs.items():
        values = {kind: _values(group, dataset, kind) for kind in ("AP50", *ERROR_TYPES)}
        known = {kind: summarize(v for _, v in pairs) for kind, pairs in values.items() if pairs}
        if known:
            found[initialization] = known
    return found


def _values(group: Sequence[Record], dataset: str, kind: str) -> list[tuple[Record, float]]:
    return [
        (record, value)
        for record in group
        if (value := (record.errors or {}).get(dataset, {}).get(kind)) is not None
    ]


def _table(
    caption: str, costs: Mapping[str, Mapping[str, Summary]], runs: Runs, dataset: str
) -> str:
    kinds = ("AP50", *ERROR_TYPES)
    rows = [
        [f"{name} (n={max(s.n for s in of_one.values())})", *(_cell(of_one.get(k)) for k in kinds)]
        for name, of_one in costs.items()
    ]
    return html_table(
        ["initialization", *kinds],
        rows,
        caption=caption,
        notes=[*_differences(runs, dataset), _AP50_NOTE],
    )


def _cell(summary: Summary | None) -> str:
    if summary is None:
        return "–"
    spread = (
        "" if summary.std is None else f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{summary.std:.1f}"
    )
    return f"{summary.mean:.1f}{spread}"


def _differences(runs: Runs, dataset: str) -> Iterable[str]:
    """Which differences to the baseline the spread over runs supports."""
    others = [name for name in runs if name != BASELINE]
    if BASELINE not in runs or not others:
        return
    matching = Matching([record for group in runs.values() for record in group])
    family: dict[tuple[str, str], Comparison] = {}
    for name in others:
        for kind in ERROR_TYPES:
            ours = _values(runs[name], dataset, kind)
            theirs = _values(runs[BASELINE], dataset, kind)
            if ours and theirs:
                family[name, kind] = compare_values(ours, theirs, matching)
    tested = dict(zip(family, corrected(family.values()), strict=True))
    if not any(c.p is not None for c in tested.values()):
        if tested:
            yield "Runs without spread to test against: no difference is claimed."
        return
    unclear = []
    for name in others:
        clear = [
            f"{kind} ({c.difference:+.1f}, p {p_value(c.p_holm)})"
            for (of, kind), c in tested.items()
            if of == name and c.supported and c.p_holm is not None
        ]
        if clear:
            yield f"{name} against {BASELINE}: a different loss to {', '.join(clear)}."
        else:
            unclear.append(name)
    if unclear:
        yield f"No supported difference to {BASELINE}: {', '.join(unclear)}."
    tests = sorted({c.test for c in tested.values() if c.test})
    yield (
        f"Tests of the differences in points lost: {' and '.join(tests)}, corrected for "
        f"{len(tested)} comparisons (Holm), 5 % level."
    )


def _described(task: str, kinds: Mapping[str, Mapping[str, Summary]]) -> str:
    """What the figure shows, for who does not see it."""
    parts = [
        f"{name}: " + ", ".join(f"{kind} {summary.mean:.1f}" for kind, summary in of.items())
        for name, of in kinds.items()
    ]
    return f"Bars for {task}, points of AP50 lost. {'; '.join(parts)}."
