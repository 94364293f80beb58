"""Check that the processes of a run have the same code, config, weights and data.

On several machines, each has its own copies. If they differ, training goes on, but its result is
wrong.
"""

import functools
import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from moco_d2.config.plain import flatten, to_plain
from moco_d2.errors import UserError
from moco_d2.files import PACKAGE
from moco_d2.version import __version__

_PACKAGE = PACKAGE
_NAMED = 3  # differences that the message names
_LENGTH = 60  # characters of a value in the message
_ABSENT = "absent"


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Compare values over all processes, which must all call this. One process compares nothing.

    Args:
        facts: Name -> value. Values are compared as text, so numbers, strings and lists of them
            are allowed.

    Raises:
        UserError: If values differ, in all processes. The message names values and ranks.
    """
    if comm.get_world_size() == 1:
        return
    by_rank = comm.all_gather({name: str(value) for name, value in facts.items()})
    names = dict.fromkeys(name for values in by_rank for name in values)
    differing = [name for name in names if len({v.get(name, _ABSENT) for v in by_rank}) > 1]
    if not differing:
        return
    differences = "; ".join(_describe(name, by_rank) for name in differing[:_NAMED])
    more = f"; and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
    raise UserError(
        f"the processes of this run do not agree: {differences}{more}; start all of them with the "
        "same command, code, weights and data"
    )


def _describe(name: str, by_rank: list[Mapping[str, str]]) -> str:
    ranks: dict[str, list[str]] = {}
    for rank, values in enumerate(by_rank):
        ranks.setdefault(values.get(name, _ABSENT), []).append(str(rank))
    parts = (f"{value[:_LENGTH]} on rank {', '.join(of)}" for value, of in ranks.items())
    return f"{name} is {' and '.join(parts)}"


def of_run(cfg: CfgNode) -> dict[str, str]:
    """Return the facts that must agree before anything is built: the config and the code."""
    return {**flatten(to_plain(cfg)), **_of_code()}


@functools.cache
def _of_code() -> dict[str, str]:
    import detectron2

    content = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        content.update(path.relative_to(_PACKAGE).as_posix().encode())
        content.update(path.read_bytes())
    return {
        "the code of moco_d2": f"{__version__} {content.hexdigest()[:16]}",
        "torch": str(torch.__version__),
        "Detectron2": detectron2.__version__,
    }


def fingerprint(tensors: Iterable[torch.Tensor]) -> str:
    """Return a fingerprint of the values of tensors, which does not depend on the device."""
    content = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        content.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        content.update(plain.flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()[:16]


def of_images(dicts: Iterable[Mapping[str, Any]]) -> str:
    """Return a fingerprint of Detectron2's dataset dicts.

    It covers names (without folders) and sizes of the images, and classes and boxes of the
    annotations.
    """
    content, count = hashlib.sha256(), 0
    for image in dicts:
        boxes = [(a.get("category_id"), a.get("bbox")) for a in image.get("annotations", ())]
        size = image.get("height"), image.get("width")
        name = os.path.basename(image["file_name"])  # noqa: PTH119 - for a million images
        content.update(repr((name, size, boxes)).encode())
        count += 1
    return f"{count} images, {content.hexdigest()[:16]}"
