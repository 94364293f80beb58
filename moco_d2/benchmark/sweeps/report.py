"""The sweeps as a section of the report: figures with the paper's points, and tables."""

from collections.abc import Iterable
from pathlib import Path

from moco_d2.benchmark.html import Section, html_figure
from moco_d2.benchmark.records.pretext_records import read_pretext_records
from moco_d2.benchmark.sweeps.figures import figures
from moco_d2.benchmark.sweeps.tables import sweep_tables
from moco_d2.benchmark.tables.formats import to_html

_INTRODUCTION = (
    "What the features are worth in classification, over the settings that the papers vary. Only "
    "runs that differ in nothing else are in one figure, by the configs in their checkpoints. On "
    "another dataset than ImageNet accuracies have another scale, so that orders are compared "
    "instead: between neighbors on the x axis, and between series."
)


def sweep_section(paths: Iterable[str | Path], folder: Path) -> Section | None:
    """Figures and tables of all sweeps among `paths`; None where there are none.

    Args:
        paths: output folders.
        folder: where the figures are written.

    Raises:
        UserError: a path does not exist.
    """
    records = read_pretext_records(paths)
    images = figures(records, folder)
    if not images:
        return None
    parts = [
        part
        for image, table in zip(images, sweep_tables(records), strict=True)
        for part in (html_figure(image), to_html([table]))
    ]
    return Section("Sweeps of the pretraining", text=_INTRODUCTION, tables=parts)
