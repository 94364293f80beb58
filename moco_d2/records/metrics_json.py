"""Reads Detectron2's metrics.json: one JSON object per line, for losses and evaluations.

Losses are written every 20 iterations. The file is not strict JSON, since it may contain NaN.
"""

import json
import logging
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_ROUNDING = 1e-6  # points
LONGEST_LINE = 1 << 20  # characters; an evaluation of LVIS with all classes has 50,000

_logger = logging.getLogger(__name__)

#: The groups of results of Detectron2's and DensePose's evaluators, as in ``bbox/AP``. Other
#: scalars may have a "/" in their name too.
EVALUATIONS = (
    "bbox",
    "segm",
    "keypoints",
    "sem_seg",
    "panoptic_seg",
    "box_proposals",
    "densepose_gps",
    "densepose_gpsm",
    "densepose_segm",
)


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Return the entries of a metrics.json, one per iteration, in order; [] if there is no file.

    Detectron2 may write an evaluation after the losses of a later iteration. If a run was resumed
    or started again in the same folder, the last entry of a repeated iteration is used. A damaged
    line is skipped with a warning. A kill can cut a line short, and stock Detectron2 then appends
    the next line to it after a resume.

    Raises:
        OSError: If the file cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        return []
    log: dict[int, dict[str, Any]] = {}
    trained = -1
    with path.open(encoding="utf-8", errors="replace") as lines:
        # The limit bounds memory, since a damaged file may be a single line.
        parts = iter(lambda: lines.readline(LONGEST_LINE), "")
        for number, line in enumerate(parts, start=1):
            entry = parse_line(line)
            if entry is None:
                _logger.warning("skipped line %d of %s: it is damaged", number, path)
                continue
            iteration = entry["iteration"]
            if "total_loss" in entry:
                if iteration <= trained:
                    log = {i: e for i, e in log.items() if i < iteration}
                trained = iteration
            log[iteration] = {**log.get(iteration, {}), **entry}
    return [log[iteration] for iteration in sorted(log)]


def parse_line(line: str | bytes) -> dict[str, Any] | None:
    """Return the entry in a line of metrics.json; None if it is damaged or has no iteration."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    valid = isinstance(entry, dict) and type(entry.get("iteration")) is int
    return entry if valid else None


def history(log: Iterable[dict[str, Any]], groups: Iterable[str]) -> list[dict[str, Any]]:
    """Return the evaluations during training.

    Args:
        log: The result of `read_log`.
        groups: The groups of metrics, ``("bbox", "segm")``, or ``("voc_2007_test/bbox", ...)`` with
            several test sets.

    Returns:
        ``[{"iteration": 99, "bbox/AP": 12.3, "sem_seg/mIoU": 45.6}, ...]``, with metrics from
        `percentage`.
    """
    prefixes = tuple(f"{group}/" for group in groups)
    evaluations = []
    for entry in log:
        results = {k: percentage(v) for k, v in entry.items() if k.startswith(prefixes)}
        if results:
            evaluations.append({"iteration": entry["iteration"], **results})
    return evaluations


def seconds_per_iteration(log: Iterable[dict[str, Any]]) -> float | None:
    """Return the median seconds of a training step without evaluations; None if there are no times.

    Each entry has the median of the 20 steps before it, from Detectron2's IterationTimer.
    """
    times = [t for entry in log if (t := finite(entry.get("time"))) is not None]
    return statistics.median(times) if times else None


def finite(value: Any) -> float | None:
    """Return a number as a float; None for NaN, infinity and anything else that JSON lacks."""
    if not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def percentage(value: Any) -> float | None:
    """Return a metric in percent; None for a negative number and for anything `finite` refuses.

    For objects that the dataset does not have, COCO reports -1 and LVIS -100. A value that exceeds
    100 by rounding becomes 100.
    """
    number = finite(value)
    if number is None or number < 0:
        return None
    return min(number, 100.0) if number < 100 + _ROUNDING else number
