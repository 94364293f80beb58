"""The report: one self-contained HTML page about folders of runs."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from moco_d2.benchmark import rendering
from moco_d2.benchmark.html import Image, Section, write_report
from moco_d2.benchmark.records.matching import newest
from moco_d2.benchmark.records.results import Record, read_records
from moco_d2.benchmark.report.detections import detection_section
from moco_d2.benchmark.report.errors import error_section
from moco_d2.benchmark.report.plots import ap_curves
from moco_d2.benchmark.report.runs import (
    command_section,
    config_section,
    cost_section,
    environment_section,
)
from moco_d2.benchmark.sweeps.report import sweep_section
from moco_d2.benchmark.tables.grouping import Runs, by_task, file_names, is_voc

# These curves are drawn side by side, in the order of the paper's tables.
_CURVES = ("AP", "AP50", "AP75", "mIoU")
_VOC_CURVES = ("AP50", "AP", "AP75", "mIoU")


def write_page(folders: Iterable[str | Path], out: str | Path) -> None:
    """Write the page about all runs in `folders`, fine-tuning and sweeps of pretraining, to `out`.

    The file is written atomically.

    Raises:
        UserError: If a folder does not exist, there are no records, or `out` cannot be written.
    """
    folders = list(folders)
    with tempfile.TemporaryDirectory() as scratch:
        sweeps = sweep_section(folders, Path(scratch))
        records = read_records(folders, required=sweeps is None)
        sections = page_sections(records, Path(scratch)) if records else []
        if sweeps:
            sections.insert(1, sweeps)
        subjects = [*by_task(records), *(["sweeps of pretraining"] if sweeps else [])]
        write_report(out, title=f"Benchmark: {', '.join(subjects)}", sections=sections)


def page_sections(records: Sequence[Record], folder: Path) -> list[Section]:
    """Return the sections of the page.

    A section whose data are missing in the records says why, and how to get the data.

    Args:
        records: Runs of any tasks.
        folder: Folder of the figures, which must exist until the page is written.
    """
    counted, _ = newest(records)  # the tables use the same records
    tasks = by_task(counted)
    return [
        Section("Results", text=_summary(tasks), tables=[rendering.render(records, "html")]),
        _curve_section(tasks, folder),
        error_section(tasks, folder),
        detection_section(tasks, folder),
        config_section(tasks),
        cost_section(tasks),
        command_section([r for runs in tasks.values() for group in runs.values() for r in group]),
        environment_section(counted),
    ]


def _summary(tasks: Mapping[str, Runs]) -> str:
    parts = []
    for task, runs in tasks.items():
        group = [record for of_one in runs.values() for record in of_one]
        seeds = sorted({record.seed for record in group})
        parts.append(
            f"{task}: {len(group)} runs, from {', '.join(runs)} "
            f"(seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))})."
        )
    return "\n\n".join(parts)


def _curve_section(tasks: Mapping[str, Runs], folder: Path) -> Section:
    names = file_names(tasks)
    images: list[Image] = []
    without = []
    for task, runs in tasks.items():
        group = [record for of_one in runs.values() for record in of_one]
        if not any(record.history for record in group):
            without.append(task)
        for prefix, metrics in _curves(group).items():
            path = folder / f"curves_{names[task]}_{len(images)}.svg"
            ap_curves(group, metrics, path)
            caption = f"{task}, {prefix}: mean over runs, and a band of one standard deviation"
            images.append(Image(path, caption, _described(caption, runs, metrics)))
    text = ""
    if without:
        text = (
            f"No run of {', '.join(without)} was evaluated during training, so its curve is only "
            "the point at the end. To get a curve, set TEST.EVAL_PERIOD in iterations: "
            "tools/train_net.py ... TEST.EVAL_PERIOD 2000"
        )
    return Section("AP over iterations", text=text, images=images)


def _curves(records: Sequence[Record]) -> dict[str, list[str]]:
    """Return the metrics of each figure by their group, "bbox" or "voc_2007_test/bbox"."""
    curves: dict[str, list[str]] = {}
    names = _VOC_CURVES if is_voc(records) else _CURVES
    present = dict.fromkeys(m for r in records for m, v in r.metrics.items() if v is not None)
    for prefix in dict.fromkeys(m.rpartition("/")[0] for m in present):
        metrics = [f"{prefix}/{name}" for name in names if f"{prefix}/{name}" in present]
        if metrics:
            curves[prefix] = metrics
    return curves


def _described(caption: str, runs: Runs, metrics: Sequence[str]) -> str:
    """Return the ends of the curves in words, for readers who cannot see the figure."""
    ends = []
    for metric in metrics:
        values = {
            name: [v for r in group if (v := r.metrics.get(metric)) is not None]
            for name, group in runs.items()
        }
        at = ", ".join(f"{name} {sum(v) / len(v):.1f}" for name, v in values.items() if v)
        ends.append(f"{metric} ends at: {at}")
    return f"{caption}. {'; '.join(ends)}."
