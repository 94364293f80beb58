"""Detectron2's metrics.json: a JSON object a line, every 20 iterations and after an evaluation.

It is no strict JSON: NaN is written as such.
"""

import json
import logging
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_ROUNDING = 1e-6  # points
LONGEST_LINE = 1 << 20  # characters; an evaluation of LVIS, class by class, has 50,000

_logger = logging.getLogger(__name__)

#: What Detectron2's evaluators, and DensePose's, call their results: ``bbox/AP``. Other scalars
#: have a "/" in their name, too.
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
    """The lines of a metrics.json, one an iteration, in their order; [] if there is no such file.

    Detectron2 itself writes an evaluation after the losses of a later iteration. Where a run was
    resumed, or begun again in the same folder, what it went through twice counts as it was the last
    time. A line that a kill has cut short, to which stock Detectron2 adds the next when it is
    resumed, is passed over with a warning.

    Raises:
        OSError: the file cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        return []
    log: dict[int, dict[str, Any]] = {}
    trained = -1
    with path.open(encoding="utf-8", errors="replace") as lines:
        # In parts, none longer than a line can be: a file may be one line.
        parts = iter(lambda: lines.readline(LONGEST_LINE), "")
        for number, line in enumerate(parts, start=1):
            entry = parse_line(line)
            if entry is None:
                _logger.warning("passed over %s, line %d: damaged", path, number)
                continue
            iteration = entry["iteration"]
            if "total_loss" in entry:
                if iteration <= trained:
                    log = {i: e for i, e in log.items() if i < iteration}
                trained = iteration
            log[iteration] = {**log.get(iteration, {}), **entry}
    return [log[iteration] for iteration in sorted(log)]


def parse_line(line: str | bytes) -> dict[str, Any] | None:
    """Return a line of a metrics.json; None for one that is damaged or names no iteration."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    valid = isinstance(entry, dict) and type(entry.get("iteration")) is int
    return entry if valid else None


def history(log: Iterable[dict[str, Any]], groups: Iterable[str]) -> list[dict[str, Any]]:
    """Evaluations during training: ``[{"iteration": 99, "bbox/AP": 12.3, "sem_seg/mIoU": 45.6},
    ...]``, each metric as `percentage` gives it.

    Args:
        log: from `read_log`.
        groups: that evaluations give, ``("bbox", "segm")``; of several test sets,
            ``("voc_2007_test/bbox", ...)``.
    """
    prefixes = tuple(f"{group}/" for group in groups)
    found = []
    for entry in log:
        results = {k: percentage(v) for k, v in entry.items() if k.startswith(prefixes)}
        if results:
            found.append({"iteration": entry["iteration"], **results})
    return found


def seconds_per_iteration(log: Iterable[dict[str, Any]]) -> float | None:
    """Median time of a training step without evaluations; None if nothing was timed.

    Each line has the median of the 20 steps before it, from Detectron2's IterationTimer.
    """
    times = [t for entry in log if (t := finite(entry.get("time"))) is not None]
    return statistics.median(times) if times else None


def finite(value: Any) -> float | None:
    """A number; None for NaN, infinity and whatever is none: JSON has no such numbers."""
    if not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def percentage(value: Any) -> float | None:
    """A metric in percent; None for what `finite` refuses and for a negative number.

    -1 is COCO's, and -100 LVIS's, for a metric of objects that the dataset does not have. What
    rounding has added to 100 is cut off.
    """
    number = finite(value)
    if number is None or number < 0:
        return None
    return min(number, 100.0) if number < 100 + _ROUNDING else number
