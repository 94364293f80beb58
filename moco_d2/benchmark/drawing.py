"""Styles, font sizes, legends and files of all figures.

The colors are the palette of Okabe and Ito, which color-blind readers can distinguish
(https://jfly.uni-koeln.de/color/). Styles differ in marker, line and hatch as well.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moco_d2.benchmark.tables.grouping import row_order
from moco_d2.errors import UserError
from moco_d2.files import atomic_write

#: Color, marker, line style and hatch.
STYLES = (
    ("#000000", "s", ":", ""),
    ("#0072B2", "^", "--", "//"),
    ("#D55E00", "o", "-", "\\\\"),
    ("#009E73", "D", "-.", ".."),
    ("#CC79A7", "v", (0, (5, 1)), "xx"),
    ("#56B4E9", "P", (0, (3, 1, 1, 1)), "++"),
    ("#E69F00", "X", (0, (1, 1)), "oo"),
)
# These names have the same style in every plot. Other names get the remaining styles.
_FIXED_STYLES = {"random": 0, "supervised": 1, "moco": 2}
_FORMATS = (".png", ".svg")
_SIZE = (6.4, 4.0)  # inches
# As wide as the report on a screen of 1280 pixels; on A4 its letters have 7 points.
_PAGE_SIZE = (8.4, 3.1)
_PAGE_LETTERS = 9  # points
_LONGEST_LABEL = 32
# Width of a legend on such a page, and width of a handle in it, both in letters.
_LETTERS_PER_LINE, _LETTERS_PER_HANDLE = 119, 8
_LEGEND_LINE = 0.18  # inches
_FOREST_ROW, _FOREST_MARGIN = 0.36, 0.95  # inches


def styles_of(names: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """Return a style for each name. The paper's three initializations have fixed styles.

    If there are more names than styles, the others get new combinations of colors, markers, lines
    and hatches.
    """
    names = list(names)
    free = [i for i in range(len(STYLES)) if i not in _FIXED_STYLES.values()]
    others = [n for n in sorted(names, key=row_order) if n not in _FIXED_STYLES]
    styles = {n: STYLES[i] for n, i in _FIXED_STYLES.items()}
    for k, name in enumerate(others):
        turn, color = divmod(k, len(free))
        rest = STYLES[free[(color + turn) % len(free)]]
        styles[name] = (STYLES[free[color]][0], *rest[1:])
    return {n: styles[n] for n in names}


def plain(label: str) -> str:
    """Return a label of limited length without mathematics, which matplotlib reads between $."""
    if len(label) > _LONGEST_LABEL:
        label = f"{label[:_LONGEST_LABEL]}…"
    return label.replace("$", r"\$")


def new_figure(xlabel: str, *ylabels: str, wide: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a figure with one panel for each of `ylabels`.

    A wide figure has the width of the report.
    """
    # Unlike pyplot, Figure has no global state and needs no window system.
    figure = Figure(figsize=_PAGE_SIZE if wide else _SIZE, layout="constrained")
    panels = figure.subplots(1, len(ylabels), squeeze=False)[0].tolist()
    for axes, ylabel in zip(panels, ylabels, strict=True):
        axes.set_xlabel(xlabel)
        axes.set_ylabel(plain(ylabel))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.locator_params(axis="x", nbins=4 if wide else 8)
        if wide:
            for item in (axes.xaxis.label, axes.yaxis.label):
                item.set_fontsize(_PAGE_LETTERS)
            axes.tick_params(labelsize=_PAGE_LETTERS)
    return figure, panels


def forest_figure(rows: Sequence[str], xlabels: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Return a figure with one panel for each of `xlabels`, which share the rows, and a line at 0.

    Row i is at y = i, and the first one is on top.
    """
    size = (_PAGE_SIZE[0], _FOREST_MARGIN + _FOREST_ROW * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(xlabels), squeeze=False, sharey=True)[0].tolist()
    for axes, xlabel in zip(panels, xlabels, strict=True):
        axes.set_xlabel(plain(xlabel), fontsize=_PAGE_LETTERS)
        axes.set_yticks(range(len(rows)), [plain(row) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.7)
        axes.tick_params(labelsize=_PAGE_LETTERS)
        axes.tick_params(axis="y", length=0)
        axes.axvline(0, color="#888888", linewidth=1, zorder=0)
        axes.grid(visible=True, axis="x", alpha=0.3)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.locator_params(axis="x", nbins=6)
        axes.margins(x=0.08)
    return figure, panels


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure with a legend of all labels above its panels; equal numbers give equal bytes.

    Args:
        figure: The figure.
        path: ``.png`` or ``.svg``.

    Raises:
        UserError: If `path` has another suffix or cannot be written.
    """
    path = Path(path)
    if path.suffix not in _FORMATS:
        raise UserError(f"{path.name} must end in {' or '.join(_FORMATS)}")
    entries = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    columns = _LETTERS_PER_LINE // (max(map(len, entries), default=0) + _LETTERS_PER_HANDLE)
    columns = min(max(columns, 1), max(len(entries), 1))
    lines = -(-len(entries) // columns)
    figure.set_figheight(figure.get_figheight() + (lines - 1) * _LEGEND_LINE)
    options = {"ncols": columns, "frameon": False, "fontsize": _PAGE_LETTERS}
    figure.legend(entries.values(), entries, loc="outside upper left", **options)
    # Without a date and random ids, equal numbers give equal files.
    date = {"Date": None} if path.suffix == ".svg" else {}
    with matplotlib.rc_context({"svg.hashsalt": "moco_d2"}), atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150, metadata=date)
