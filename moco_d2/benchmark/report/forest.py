"""The forest plot of a task: each tested difference with its confidence interval."""

from pathlib import Path

from matplotlib.axes import Axes

from moco_d2.benchmark.drawing import forest_figure, plain, save
from moco_d2.benchmark.html import Image
from moco_d2.benchmark.statistics import Comparison
from moco_d2.benchmark.tables.answer import headline_metrics, headline_pairs
from moco_d2.benchmark.tables.cell_text import signed
from moco_d2.benchmark.tables.table import Table

_MOST_ROWS = 12
_MOST_PANELS = 3
_SUPPORTED, _OPEN = "#0072B2", "#555555"


def forest_image(table: Table, path: Path) -> Image | None:
    """Draw the differences of a table and return the image; None if no pair is compared.

    A row is a pair, in the order of the sentence above the table, and a panel is a metric: those of
    the sentence, or the first three of the table if it has only one. Of those, only the metric of
    the sentence may claim an order, so the points of the others are open.

    Args:
        table: A table of run records.
        path: ``.png`` or ``.svg``.
    """
    pairs = headline_pairs(table)[:_MOST_ROWS]
    metrics = headline_metrics(table)
    if len(metrics) == 1:
        metrics = dict(list(zip(table.metrics, table.columns, strict=True))[:_MOST_PANELS])
    else:
        metrics = dict(list(metrics.items())[:_MOST_PANELS])
    rows = [(f"{a} − {b}", [table.comparison(a, b, m) for m in metrics]) for a, b in pairs]
    rows = [(name, comparisons) for name, comparisons in rows if any(comparisons)]
    if not rows:
        return None
    figure, panels = forest_figure(
        [name for name, _ in rows], [f"{name}, difference in points" for name in metrics.values()]
    )
    for i, axes in enumerate(panels):
        for row, (_, comparisons) in enumerate(rows):
            if (comparison := comparisons[i]) is not None:
                _draw(axes, row, comparison)
    _legend(panels[0])
    save(figure, path)
    return Image(
        path,
        f"{table.task}: differences with 95 % confidence intervals. Right of 0, the first of the "
        "pair is better.",
        _described(table.task, list(metrics.values()), rows),
    )


def _draw(axes: Axes, row: int, comparison: Comparison) -> None:
    color = _SUPPORTED if comparison.supported else _OPEN
    if comparison.low is not None and comparison.high is not None:
        axes.plot([comparison.low, comparison.high], [row, row], color=color, linewidth=2)
    fill = color if comparison.supported else "white"
    marker = "o" if comparison.test else "x"
    axes.plot(
        [comparison.difference],
        [row],
        marker=marker,
        markersize=7,
        color=color,
        markerfacecolor=fill,
        markeredgewidth=1.5,
    )
    axes.annotate(
        plain(signed(comparison.difference)),
        (comparison.difference, row),
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
        fontsize=8,
    )


def _legend(axes: Axes) -> None:
    """Add the three kinds of points to the legend that save() draws."""
    for label, color, marker, fill in (
        ("order supported", _SUPPORTED, "o", _SUPPORTED),
        ("no order claimed", _OPEN, "o", "white"),
    ):
        axes.plot([], [], marker=marker, color=color, markerfacecolor=fill, label=label)


def _described(task: str, names: list[str], rows: list[tuple[str, list[Comparison | None]]]) -> str:
    """Return the content of the figure in words, for readers who cannot see it."""
    texts = []
    for pair, comparisons in rows:
        values = []
        for name, c in zip(names, comparisons, strict=True):
            if c is None:
                continue
            interval = "" if c.low is None or c.high is None else f" [{c.low:+.1f}, {c.high:+.1f}]"
            values.append(f"{name} {signed(c.difference)}{interval}")
        texts.append(f"{pair}: {', '.join(values)}")
    return f"Differences for {task} in points. {'; '.join(texts)}."
