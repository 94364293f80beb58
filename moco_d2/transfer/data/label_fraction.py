"""A fixed part of the training images: MOCO.LABEL_FRACTION."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

# A change of this text, or of the function, is another draw: tasks with fractions need new names.
_DRAW = "moco_d2 label fraction"


def draw(dicts: Sequence[Mapping[str, Any]], fraction: float) -> list[Any]:
    """Return a fraction of the images, at least one, in their order.

    The images are those whose names have the smallest hashes. So every run of a dataset has the
    same ones, whatever its seed, machine and weights, and a small fraction is part of each larger
    one.

    Args:
        dicts: Detectron2's dataset dicts.
        fraction: A number in (0, 1].
    """
    if fraction == 1:
        return list(dicts)
    names = [os.path.basename(d["file_name"]) for d in dicts]  # noqa: PTH119 - for a million images
    keys = [hashlib.sha256(f"{_DRAW} {name}".encode()).digest() for name in names]
    order = sorted(range(len(dicts)), key=lambda i: (keys[i], i))
    return [dicts[i] for i in sorted(order[: max(1, round(fraction * len(dicts)))])]
