"""The section of the report with AP and losses over the iterations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from moco_d2.benchmark.html import Image, Section
from moco_d2.benchmark.records.run_records import Record
from moco_d2.benchmark.report.plots import ap_curves, loss_curves, points_of
from moco_d2.benchmark.tables.grouping import Runs, file_names, is_voc

# These curves are drawn side by side, in the order of the paper's tables.
_CURVES = ("AP", "AP50", "AP75", "mIoU")
_VOC_CURVES = ("AP50", "AP", "AP75", "mIoU")


def curve_section(tasks: Mapping[str, Runs], folder: Path) -> Section:
    """Return the curves of AP and of the losses of each task, whose figures are in `folder`."""
    names = file_names(tasks)
    title, images = "AP over iterations", list[Image]()
    without = []
    for task, runs in tasks.items():
        group = [record for of_one in runs.values() for record in of_one]
        curves = _curves(group)
        if not curves:
            without.append(task)
        for prefix, metrics in curves.items():
            path = folder / f"curves_{names[task]}_{len(images)}.svg"
            ap_curves(group, metrics, path)
            caption = f"{task}, {prefix}: mean over runs, and a band of one standard deviation"
            images.append(Image(path, caption, _described(caption, runs, metrics)))
        path = folder / f"losses_{names[task]}.svg"
        if ends := loss_curves(group, path):
            title = "AP and losses over iterations"
            caption = f"{task}, losses of training and, as val_loss, on images of no training"
            last = ", ".join(f"{name} {loss:.3g}" for name, loss in ends.items())
            images.append(Image(path, caption, f"{caption}. val_loss ends at: {last}."))
    text = ""
    if without:
        text = (
            f"No run of {', '.join(without)} was evaluated during training, so there is no curve. "
            "To get one, set TEST.EVAL_PERIOD in iterations: tools/train_net.py ... "
            "TEST.EVAL_PERIOD 2000"
        )
    return Section(title, text=text, images=images)


def _curves(records: Sequence[Record]) -> dict[str, list[str]]:
    """Return the metrics of each figure by their group, "bbox" or "voc_2007_test/bbox".

    A figure with only the points at the end of training would repeat the table.
    """
    curves: dict[str, list[str]] = {}
    names = _VOC_CURVES if is_voc(records) else _CURVES
    present = dict.fromkeys(m for r in records for m, v in r.metrics.items() if v is not None)
    for prefix in dict.fromkeys(m.rpartition("/")[0] for m in present):
        metrics = [m for n in names if (m := f"{prefix}/{n}") in present and _is_curve(records, m)]
        if metrics:
            curves[prefix] = metrics
    return curves


def _is_curve(records: Sequence[Record], metric: str) -> bool:
    return any(len(points_of([record], metric)) > 1 for record in records)


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
