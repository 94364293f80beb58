"""The paper's figure of each sweep, with measured points beside the published ones.

On the paper's scale (ImageNet, ResNet-50, linear protocol) both are in one panel. On another scale
there are two panels with the same x axis, and only orders can be compared.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from moco_d2.benchmark.drawing import STYLES, new_figure, plain, save
from moco_d2.benchmark.html import Image
from moco_d2.benchmark.records.pretext_records import PretextRecord
from moco_d2.benchmark.statistics import Summary
from moco_d2.benchmark.sweeps.definitions import (
    END_TO_END,
    MEMORY_BANK,
    MOCO,
    SHORT_FROM,
    X,
    place_name,
)
from moco_d2.benchmark.sweeps.studies import Study, order_of, studies

# MoCo has the same color in every plot.
_STYLES = {
    MOCO: STYLES[2],
    END_TO_END: STYLES[1],
    MEMORY_BANK: STYLES[3],
    "with MLP": STYLES[2],
    "without MLP": STYLES[5],
}
_PROTOCOLS = {
    "linear": "linear top-1 (%)",
    "linear-fast": "linear top-1 on cached features (%)",
    "knn": "kNN top-1 (%)",
    "finetune": "top-1 after fine-tuning (%)",
}
_MOST_TICKS = 6
_LETTERS = 9  # points, as in drawing.py
# Space on both sides of the outermost places, as a fraction of the axis.
_MARGIN = 0.06


def figures(records: Iterable[PretextRecord], folder: Path) -> list[Image]:
    """Draw the figure of every sweep that has two points to compare among `records`.

    Args:
        records: Results of any sweeps.
        folder: Folder of the figures, which are SVG files.

    Returns:
        The figures in the papers' order, each with a caption; none if there is no sweep.

    Raises:
        UserError: If `folder` cannot be written.
    """
    images: list[Image] = []
    for study in studies(records):
        path = folder / f"sweep_{study.sweep.name}_{len(images)}.svg"
        draw(study, path)
        images.append(Image(path, caption(study), described(study)))
    return images


def caption(study: Study) -> str:
    """Return the caption of a figure."""
    most = max(len(trials) for points in study.values.values() for trials in points.values())
    values = "mean and standard deviation over seeds" if most > 1 else "single runs"
    return f"{study.sweep.title}. Hollow: {study.sweep.source}; filled: here, {values}."


def described(study: Study) -> str:
    """Return the numbers in words, for readers who cannot see the figure."""
    parts = [f"{study.sweep.title}: {study.title}, {_protocol(study)}"]
    for series, points in study.values.items():
        values = ", ".join(
            f"{place_name(place)} {study.summary(series, place)}" for place in points
        )
        parts.append(f"{series}: {values}")
    return "; ".join(parts)


def draw(study: Study, path: str | Path) -> None:
    """Draw one study.

    Args:
        study: Points of a sweep.
        path: ``.png`` or ``.svg``.

    Raises:
        UserError: If `path` has another suffix or cannot be written.
    """
    sweep, paper = study.sweep, study.sweep.points()
    places = sorted(
        {x for points in (*study.values.values(), *paper.values()) for x in points}
        | {x for points in sweep.missing.values() for x in points},
        key=lambda place: order_of(sweep, place),
    )
    together = study.on_the_papers_scale
    labels = [_protocol(study)] if together else [sweep.paper_label, _protocol(study)]
    figure, panels = new_figure(sweep.xlabel, *labels, wide=not together)
    paper_panel, panel = panels[0], panels[-1]
    for series, points in paper.items():
        label = f"{series} (paper)" if together else series
        published = {place: Summary(value, None, 1) for place, value in points.items()}
        _line(paper_panel, study, places, series, published)
        paper_panel.lines[-1].set(markerfacecolor="white", label=label)
    for series, trials in study.values.items():
        summaries = {place: study.summary(series, place) for place in trials}
        _line(panel, study, places, series, summaries)
        panel.lines[-1].set_label(series)
    for failed in sweep.missing.values():
        for place, how in failed.items():
            _note(paper_panel, _position(places, place), f"paper: {how}")
    if study.untrained:
        mean = sum(study.untrained) / len(study.untrained)
        label = f"not pretrained, {mean:.1f}"
        panel.axhline(mean, color="#555555", linestyle=(0, (4, 2)), linewidth=1, label=label)
    for axes in panels:
        _axis(axes, study, places)
    if not together:
        paper_panel.set_title(sweep.source, fontsize=_LETTERS)
        # Each part is shortened separately.
        title = ", ".join(plain(part) for part in study.title.split(", "))
        panel.set_title(f"here: {title}", fontsize=_LETTERS)
    save(figure, path)


def _protocol(study: Study) -> str:
    return _PROTOCOLS[study.evaluation["protocol"]]


def _line(
    axes: Axes, study: Study, places: Sequence[X], series: str, points: Mapping[X, Summary]
) -> None:
    color, marker, line, _ = _STYLES.get(series, STYLES[0])
    ordered = sorted(points, key=lambda place: order_of(study.sweep, place))
    x = [_position(places, place) for place in ordered]
    mean = [points[place].mean for place in ordered]
    spread = [points[place].std or 0.0 for place in ordered]
    if any(spread):
        axes.errorbar(x, mean, yerr=spread, color=color, linestyle="", capsize=3, linewidth=1)
    line = "" if study.sweep.nominal else line
    # The caller expects this line as the last one.
    axes.plot(x, mean, color=color, marker=marker, linestyle=line, markersize=5, linewidth=1.2)


def _note(axes: Axes, x: float, text: str) -> None:
    axes.text(
        *(x, 0.04, f"× {text}"),
        transform=axes.get_xaxis_transform(),
        rotation=90,
        fontsize=_LETTERS - 1,
        ha="center",
        va="bottom",
        color="#555555",
    )


def _position(places: Sequence[X], place: X) -> float:
    """Return the position on the axis: the number itself, or the index of a category."""
    return places.index(place) if isinstance(place, str) else float(place)


def _axis(axes: Axes, study: Study, places: Sequence[X]) -> None:
    """Set up the x axis, in the same way for every panel of a figure."""
    at = [_position(places, place) for place in places]
    if study.sweep.log:
        axes.set_xscale("log")
        margin = (max(at) / min(at)) ** _MARGIN
        axes.set_xlim(min(at) / margin, max(at) * margin)
    else:
        margin = (max(at) - min(at)) * _MARGIN or 1
        axes.set_xlim(min(at) - margin, max(at) + margin)
    if isinstance(places[0], str) or len(places) <= _MOST_TICKS or not study.sweep.log:
        axes.xaxis.set_major_locator(FixedLocator(at))
    else:  # the paper's dictionary sizes among them
        axes.xaxis.set_major_locator(LogLocator(base=4 if max(at) < SHORT_FROM else 10))
    names = {_position(places, place): place_name(place) for place in places}
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: names.get(x, place_name(x))))
    axes.xaxis.set_minor_locator(NullLocator())
    if study.sweep.nominal:  # the labels are words
        for label in axes.get_xticklabels():
            label.set(rotation=30, ha="right")
