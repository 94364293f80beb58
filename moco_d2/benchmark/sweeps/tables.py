"""Tables of the sweeps: one row per series, one column per place, the paper's rows last."""

from collections.abc import Iterable
from dataclasses import replace

from moco_d2.benchmark.records.pretext_records import PretextRecord
from moco_d2.benchmark.statistics import agreement_band, summarize
from moco_d2.benchmark.sweeps.agreement import agreement, agreement_table, paper_std
from moco_d2.benchmark.sweeps.definitions import X, place_name
from moco_d2.benchmark.sweeps.studies import Study, order_of, studies
from moco_d2.benchmark.tables.table import Cell, Row, Table

_HEAD = "top-1 (%)"


def sweep_tables(records: Iterable[PretextRecord]) -> list[Table]:
    """Return one table per sweep, in the papers' order."""
    return [_table(study) for study in studies(records)]


def _table(study: Study) -> Table:
    sweep, paper = study.sweep, study.sweep.points()
    together = study.on_the_papers_scale
    shown = [*study.values.values(), *(() if together else paper.values())]
    places = sorted({x for s in shown for x in s}, key=lambda place: order_of(sweep, place))
    rows = []
    for series in study.values:
        cells = tuple(_cell(study, series, place) for place in places)
        published = together and series in paper
        rows.append(Row(series, cells, paper=sweep.source if published else None))
    if not together:
        rows += [
            Row(
                f"paper: {series}, {sweep.paper_label}",
                tuple(Cell(place_name(place), mean=points.get(place)) for place in places),
            )
            for series, points in paper.items()
        ]
    names = tuple(map(place_name, places))
    notes = [agreement(study)]
    if study.untrained:
        untrained = summarize(study.untrained)
        notes.append(f"The same network without pretraining: {untrained} (n={untrained.n}).")
    return Table(
        task=sweep.name,
        title=f"{sweep.title} ({study.title}, {study.evaluation['protocol']})",
        metrics=names,
        columns=names,
        rows=tuple(rows),
        notes=(*notes, *study.notes),
        head=f"{sweep.xlabel or 'recipe'}; {_HEAD}",
        text=agreement_table(study),
    )


def _cell(study: Study, series: str, place: X) -> Cell:
    name = place_name(place)
    if place not in study.values[series]:
        return Cell(name)
    summary = study.summary(series, place)
    published = study.sweep.points().get(series, {}).get(place)
    cell = Cell(name, summary.mean, summary.std, summary.n)
    if published is None or not study.on_the_papers_scale:
        return cell
    band = agreement_band(summary, paper_std())
    return replace(cell, published=published, gap=summary.mean - published, band=band)
