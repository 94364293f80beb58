"""Curves and bars as PNG or SVG. Runs differ in color, marker and line style."""

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from moco_d2.benchmark.drawing import STYLES, new_figure, plain, save, styles_of
from moco_d2.benchmark.records.matching import newest
from moco_d2.benchmark.records.run_records import Record
from moco_d2.benchmark.statistics import Summary, summarize
from moco_d2.benchmark.tables.comparison import column_title
from moco_d2.benchmark.tables.grouping import by_initialization, is_voc, row_order
from moco_d2.config.plain import flatten
from moco_d2.errors import UserError
from moco_d2.records.metrics_json import finite, read_log

# Keys of the pretext loss in metrics.json: of MoCo, of supervised pretraining, and the sum.
_LOSS_KEYS = ("loss_contrastive", "loss_classification", "total_loss")
_KNN_KEY = "knn_accuracy"  # a fraction in [0, 1]
# Keys of the losses of fine-tuning in metrics.json, by their names in the legend.
_TRAINING, _VALIDATION = "total_loss", "val_loss"
_DETECTOR_LOSSES = {_TRAINING: "total_loss", _VALIDATION: "val_loss/total_loss"}
_LARGEST_LOSS = 1e6  # of a damaged file; matplotlib cannot scale an axis to any number


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.json, as metrics_json.read_log does.

    Raises:
        UserError: If the file cannot be read or has no complete line.
    """
    try:
        log = read_log(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}; it is Detectron2's metrics.json") from error
    if not log:
        raise UserError(f"{path} has no line of metrics; give the metrics.json of a finished run")
    return log


def training_curves(
    pretext_metrics: Iterable[Mapping[str, Any]],
    path: str | Path,
    *,
    dictionary_size: int | None = None,
) -> None:
    """Draw the first loss of _LOSS_KEYS in nats over iterations, with the chance level ln(K + 1).

    Args:
        pretext_metrics: Lines of ``metrics.json``, see read_metrics.
        path: ``.png`` or ``.svg``.
        dictionary_size: K, the number of negatives of a query (paper eq. 1). Without it there is no
            chance level.

    Raises:
        UserError: If no line has a loss, or `path` has another suffix.
    """
    lines = list(pretext_metrics)
    key = next((k for k in _LOSS_KEYS if any(k in line for line in lines)), None)
    if key is None:
        raise UserError(
            f"the metrics have no {' or '.join(_LOSS_KEYS)}; give those of a pretraining run"
        )
    figure, (axes,) = new_figure("iteration", f"{key} (nats)")
    x, y = _series(lines, key)
    axes.plot(x, y, color=STYLES[2][0], label=key, marker="o" if len(x) == 1 else "")
    if dictionary_size is not None:
        axes.axhline(
            math.log(dictionary_size + 1),
            color="#555555",
            linestyle="--",
            label=f"chance, ln({dictionary_size} + 1) = {math.log(dictionary_size + 1):.2f}",
        )
    save(figure, path)


def knn_curve(
    runs: Mapping[str, Iterable[Mapping[str, Any]]],
    path: str | Path,
    *,
    chance: float | None = None,
) -> None:
    """Draw kNN accuracy over iterations, with one line per pretraining run.

    Args:
        runs: Name of a run -> lines of ``metrics.json``.
        path: ``.png`` or ``.svg``.
        chance: 1 / number of classes, drawn as a line if not None.

    Raises:
        UserError: If no line has a kNN accuracy, or `path` has another suffix.
    """
    figure, (axes,) = new_figure("iteration", "kNN accuracy")
    styles = styles_of(runs)
    for name, lines in runs.items():
        x, y = _series(lines, _KNN_KEY)
        if x:
            color, marker, line, _ = styles[name]
            axes.plot(x, y, color=color, marker=marker, linestyle=line, label=plain(name))
    if not axes.lines:
        raise UserError(f"the metrics have no {_KNN_KEY}; set MOCO.KNN.TRAIN and MOCO.KNN.TEST")
    if chance is not None:
        axes.axhline(chance, color="#555555", linewidth=1, label=f"chance, {chance:.2f}")
    save(figure, path)


def ap_curves(records: Iterable[Record], metric: str | Sequence[str], path: str | Path) -> None:
    """Draw metrics in percent over fine-tuning iterations: mean and band of one standard deviation.

    The final metrics are the point at max_iter. If some runs lack an evaluation, its point is the
    mean of the other runs.

    Args:
        records: Runs of one task.
        metric: One or several metrics, e.g. ``bbox/AP50``. Metrics that no run has are left out.
        path: ``.png`` or ``.svg``.

    Raises:
        UserError: If there are several tasks, no run has any of the metrics, or `path` has another
            suffix.
    """
    records, _ = newest(records)
    tasks = sorted({r.task for r in records})
    if len(tasks) > 1:
        raise UserError(f"records of several tasks ({', '.join(tasks)}); draw one at a time")
    wanted = [metric] if isinstance(metric, str) else list(metric)
    metrics = [m for m in wanted if any(points_of([r], m) for r in records)]
    if not metrics:
        raise UserError(f"no run has the metric {' or '.join(map(repr, wanted))}")
    voc = is_voc(records)
    runs = by_initialization(records)
    figure, panels = new_figure(
        "iteration", *(f"{column_title(m, voc=voc)} (%)" for m in metrics), wide=len(metrics) > 1
    )
    styles = styles_of(runs)
    for axes, one in zip(panels, metrics, strict=True):
        for name, group in runs.items():
            points = points_of(group, one)
            if points:
                label = f"{name} (n={max(s.n for s in points.values())})"
                _curve(axes, points, styles[name], label)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), max(high, 1))  # percent; below 0 is nothing
    save(figure, path)


def loss_curves(records: Iterable[Record], path: str | Path) -> dict[str, float]:
    """Draw the losses of fine-tuning over iterations: mean, and band of one standard deviation.

    Runs without MOCO.VAL_LOSS are left out. The losses are those of metrics.json beside a record.

    Args:
        records: Runs of one task.
        path: ``.png`` or ``.svg``. Nothing is written if no run has a validation loss.

    Returns:
        Initialization -> mean of the last validation loss.
    """
    runs = {
        name: [losses for r in group if (losses := _losses_of(r))[_VALIDATION]]
        for name, group in by_initialization(list(records)).items()
    }
    runs = {name: group for name, group in runs.items() if group}
    if not runs:
        return {}
    figure, (axes,) = new_figure("iteration", "loss", wide=True)
    ends = {}
    for name, (color, marker, line, _) in styles_of(runs).items():
        training, validation = (
            _summaries(of[key] for of in runs[name]) for key in _DETECTOR_LOSSES
        )
        _curve(axes, training, (color, "", ":", ""), f"{name}, {_TRAINING}")
        _curve(axes, validation, (color, marker, line, ""), f"{name}, {_VALIDATION}")
        ends[name] = validation[max(validation)].mean
    save(figure, path)
    return ends


def _losses_of(record: Record) -> dict[str, dict[int, float]]:
    """Return the losses of _DETECTOR_LOSSES by the number of finished iterations."""
    log: list[dict[str, Any]] = []
    if flatten(record.config).get("MOCO.VAL_LOSS"):
        with contextlib.suppress(OSError):
            log = read_log(record.path.parent / "metrics.json")
    return {
        name: {
            min(entry["iteration"] + 1, record.max_iter): loss
            for entry in log
            if 0 <= entry["iteration"] <= record.max_iter
            and (loss := finite(entry.get(key))) is not None
            and abs(loss) <= _LARGEST_LOSS
        }
        for name, key in _DETECTOR_LOSSES.items()
    }


def _curve(axes: Axes, points: Mapping[int, Summary], style: tuple[Any, ...], label: str) -> None:
    color, marker, line, _ = style
    x = list(points)
    mean = [s.mean for s in points.values()]
    spread = [s.std or 0.0 for s in points.values()]
    axes.plot(x, mean, color=color, marker=marker, linestyle=line, label=plain(label))
    if len(x) > 1:
        low = [m - s for m, s in zip(mean, spread, strict=True)]
        high = [m + s for m, s in zip(mean, spread, strict=True)]
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    else:  # a band needs two points
        axes.errorbar(x, mean, yerr=spread, color=color, capsize=4)


def grouped_bars(
    values: Mapping[str, Mapping[str, Summary]], path: str | Path, *, ylabel: str
) -> None:
    """Draw one bar per initialization in each group, such as a kind of error.

    A whisker is the standard deviation over runs.

    Args:
        values: Initialization -> group -> summary. The order of groups is kept.
        path: ``.png`` or ``.svg``.
        ylabel: Label of the y axis.

    Raises:
        UserError: If there is nothing to draw, or `path` has another suffix.
    """
    groups = list(dict.fromkeys(group for of_one in values.values() for group in of_one))
    if not groups:
        raise UserError(f"no {ylabel} to draw")
    figure, (axes,) = new_figure("", ylabel, wide=True)
    styles = styles_of(values)
    names = sorted(values, key=row_order)
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        color, _, _, hatch = styles[name]
        present = [g for g in groups if g in values[name]]
        axes.bar(
            [groups.index(g) + (i - (len(names) - 1) / 2) * width for g in present],
            [values[name][g].mean for g in present],
            width * 0.9,
            yerr=[values[name][g].std or 0.0 for g in present],
            error_kw={"capsize": 2, "elinewidth": 1},
            facecolor="white",
            edgecolor=color,
            hatch=hatch * 2,
            label=plain(name),
        )
    axes.set_xticks(range(len(groups)), [plain(g) for g in groups])
    axes.grid(visible=False, axis="x")
    axes.set_ylim(0, max(axes.get_ylim()[1], 1))
    save(figure, path)


def points_of(runs: Sequence[Record], metric: str) -> dict[int, Summary]:
    """Return the summary over runs for each number of finished iterations."""
    curves = []
    for run in runs:
        # Detectron2 counts iterations from 0, so an evaluation at 99 comes after 100 iterations.
        # The one after training counts as one more.
        curve = {
            min(int(iteration) + 1, run.max_iter): e.get(metric)
            for e in run.history
            if (iteration := e["iteration"]) is not None
        }
        if run.metrics.get(metric) is not None:
            curve[run.max_iter] = run.metrics[metric]
        curves.append({i: value for i, value in curve.items() if value is not None})
    return _summaries(curves)


def _summaries(curves: Iterable[Mapping[int, float]]) -> dict[int, Summary]:
    """Return the summary over curves at each of their points."""
    values: dict[int, list[float]] = {}
    for curve in curves:
        for iteration, value in curve.items():
            values.setdefault(iteration, []).append(value)
    return {i: summarize(values[i]) for i in sorted(values)}


def _series(lines: Iterable[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    points = [(line["iteration"] + 1, line[key]) for line in lines if line.get(key) is not None]
    return [x for x, _ in points], [y for _, y in points]
