"""The section of the report with the AP50 that each initialization loses to each kind of error."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from moco_d2.benchmark.html import Image, Section, html_figure, html_table
from moco_d2.benchmark.records.matching import Matching, first_baseline
from moco_d2.benchmark.records.run_records import Record
from moco_d2.benchmark.records.test_sets import short_name
from moco_d2.benchmark.report.plots import grouped_bars
from moco_d2.benchmark.statistics import Comparison, Summary, corrected, summarize
from moco_d2.benchmark.tables.cell_text import p_value
from moco_d2.benchmark.tables.comparison import compare_rows
from moco_d2.benchmark.tables.grouping import Runs, file_names
from moco_d2.records.run_schema import ERROR_TYPES

TITLE = "Errors by kind"
_MEANING = {
    "Cls": "a detection at the place of an object, with the wrong class (classification)",
    "Loc": "a detection with the right class, but an IoU of only 0.1 to 0.5 (localization)",
    "Both": "a detection with the wrong class and such an IoU",
    "Dupe": "a correct detection of an object that has a better detection",
    "Bkg": "a detection of background",
    "Miss": "an object without a detection, even if Cls and Loc errors were corrected",
}
_INTRODUCTION = (
    "The cost of a kind of error is the rise of AP50, in points, if all errors of this kind alone "
    "were corrected (TIDE, Bolya et al., 2020; IoU thresholds 0.5 and 0.1). It is computed for the "
    "boxes of the last evaluation. The costs need not add up to 100 - AP50. A detector that is "
    "better in general may lose more to one kind of error, because it has more to lose."
)
_ABSENT = (
    "No record has the errors of its detector. They are computed at the end of a run, for boxes of "
    "VOC's or COCO's evaluation. Imported runs and records of version 1 do not have them."
)
_AP50_NOTE = (
    "AP50 here is that of COCO for every dataset: the mean precision at 101 recalls. It is not the "
    "11-point AP50 of VOC 2007 in the tables above."
)


def error_section(tasks: Mapping[str, Runs], folder: Path) -> Section:
    """Return a table and a figure for every test set whose errors are known.

    Args:
        tasks: Runs by task and initialization, see grouping.by_task.
        folder: Folder of the figures.
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
    meanings = html_table(["kind", "meaning"], _MEANING.items(), wrap=True)
    return Section(TITLE, text=_INTRODUCTION, tables=[meanings, *parts])


def _costs(runs: Runs, dataset: str) -> dict[str, dict[str, Summary]]:
    costs = {}
    for initialization, group in runs.items():
        values = {kind: _values(group, dataset, kind) for kind in ("AP50", *ERROR_TYPES)}
        known = {kind: summarize(v for _, v in pairs) for kind, pairs in values.items() if pairs}
        if known:
            costs[initialization] = known
    return costs


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
    return "–" if summary is None else str(summary).replace(" ", "\N{NO-BREAK SPACE}")


def _differences(runs: Runs, dataset: str) -> Iterable[str]:
    """Yield the differences to the baseline that the tests support."""
    baseline = first_baseline(runs)
    others = [name for name in runs if name != baseline]
    if baseline is None or not others:
        return
    matching = Matching([record for group in runs.values() for record in group])
    family: dict[tuple[str, str], Comparison] = {}
    for kind in ERROR_TYPES:
        values = {name: _values(group, dataset, kind) for name, group in runs.items()}
        pairs = [(name, baseline) for name in others]
        for (name, _), comparison in compare_rows(values, pairs, matching).items():
            family[name, kind] = comparison
    tested = dict(zip(family, corrected(family.values()), strict=True))
    if not any(c.p is not None for c in tested.values()):
        if tested:
            yield "There is no spread to test against, so no difference is claimed."
        return
    unclear = []
    for name in others:
        clear = [
            f"{kind} ({c.difference:+.1f}, p {p_value(c.p_holm)})"
            for (of, kind), c in tested.items()
            if of == name and c.supported and c.p_holm is not None
        ]
        if clear:
            yield f"{name} against {baseline}: a different loss to {', '.join(clear)}."
        else:
            unclear.append(name)
    if unclear:
        yield f"No supported difference to {baseline}: {', '.join(unclear)}."
    tests = sorted({c.test for c in tested.values() if c.test})
    yield (
        f"Tests of the differences in points lost: {' and '.join(tests)}, corrected for "
        f"{len(tested)} comparisons (Holm), 5 % level."
    )


def _described(task: str, kinds: Mapping[str, Mapping[str, Summary]]) -> str:
    """Return the content of the figure in words, for readers who cannot see it."""
    parts = [
        f"{name}: " + ", ".join(f"{kind} {summary.mean:.1f}" for kind, summary in of.items())
        for name, of in kinds.items()
    ]
    return f"Bars for {task}, points of AP50 lost. {'; '.join(parts)}."
