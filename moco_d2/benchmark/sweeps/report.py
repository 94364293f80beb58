"""The section of the report with figures and tables of the sweeps."""

from collections.abc import Iterable
from pathlib import Path

from moco_d2.benchmark.html import Section, html_figure
from moco_d2.benchmark.records.pretext_records import read_pretext_records
from moco_d2.benchmark.sweeps.figures import figures
from moco_d2.benchmark.sweeps.tables import sweep_tables
from moco_d2.benchmark.tables.formats import to_html

_INTRODUCTION = (
    "Each figure shows the accuracy of features in classification over a setting that the papers "
    "vary. All other settings of its runs are equal, by the configs in their checkpoints. On "
    "another dataset than ImageNet accuracies have another scale, so orders are compared: between "
    "neighbors on the x axis, and between series."
)


def sweep_section(paths: Iterable[str | Path], folder: Path) -> Section | None:
    """Return figures and tables of all sweeps in `paths`, or None if there are none.

    Args:
        paths: Output folders.
        folder: Folder of the figures.

    Raises:
        UserError: If a path does not exist.
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
