"""Whether the processes of a run are about to do the same thing.

On several machines each has a checkout, a config, weights and data of its own. Where they differ
training goes on all the same, and what it measures is nothing that anyone has asked for.
"""

import functools
import hashlib
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
_NAMED = 3  # differences in the sentence
_LENGTH = 60  # of a value in it
_ABSENT = "absent"


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Compare what the processes know. All must call; free in a single one.

    Args:
        facts: name -> value that prints as itself: numbers, strings, lists of them.

    Raises:
        UserError: in all processes: values differ. Names them, and which rank has which.
    """
    if comm.get_world_size() == 1:
        return
    of_ranks = comm.all_gather({name: str(value) for name, value in facts.items()})
    names = dict.fromkeys(name for of_rank in of_ranks for name in of_rank)
    differing = [name for name in names if len({of.get(name, _ABSENT) for of in of_ranks}) > 1]
    if not differing:
        return
    told = "; ".join(_who_has_what(name, of_ranks) for name in differing[:_NAMED])
    more = f"; and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
    raise UserError(
        f"the processes of this run do not agree: {told}{more}; start all of them with the same "
        "command, code, weights and data"
    )


def _who_has_what(name: str, of_ranks: list[Mapping[str, str]]) -> str:
    ranks: dict[str, list[int]] = {}
    for rank, of_rank in enumerate(of_ranks):
        ranks.setdefault(of_rank.get(name, _ABSENT), []).append(rank)
    shown = (
        f"{value[:_LENGTH]} on rank {', '.join(map(str, having))}"
        for value, having in ranks.items()
    )
    return f"{name} is {' and '.join(shown)}"


def of_run(cfg: CfgNode) -> dict[str, str]:
    """What has to be the same before anything is built: every key of the config, and the code."""
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
    """Of the values of tensors, on whatever device."""
    content = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        content.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        content.update(plain.flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()[:16]


def of_images(dicts: Iterable[Mapping[str, Any]]) -> str:
    """Fingerprint of Detectron2's dataset dicts: names and sizes of the images, classes and boxes
    of the annotations.
    """
    content, count = hashlib.sha256(), 0
    for image in dicts:
        boxes = [(a.get("category_id"), a.get("bbox")) for a in image.get("annotations", ())]
        size = image.get("height"), image.get("width")
        content.update(repr((image["file_name"], size, boxes)).encode())
        count += 1
    return f"{count} images, {content.hexdigest()[:16]}"
