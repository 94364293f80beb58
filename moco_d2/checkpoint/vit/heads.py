"""Finds the number of attention heads, which no tensor of a ViT shows."""

import re
from collections.abc import Mapping
from typing import Any

from moco_d2.checkpoint.network import Request
from moco_d2.checkpoint.stated import stated_names
from moco_d2.checkpoint.vit.names import HUGE, OF_64, ViTFamily
from moco_d2.errors import UserError

# Names of architectures and of published files, in which heads follow from the size.
_NAMED = re.compile(
    r"deit_3_(?:small|base|large|huge)_|(?:vit|deit|deit3)_(?:tiny|small|base|large|huge)(?:_distilled)?_patch\d+"
    r"|dino_?(?:deit|vit)_?(?:small|base)\d+|dinov2_vit[sbl]\d+|mae_(?:pretrain|finetuned)_vit_"
)
_NAMED_SIZES = {**OF_64, HUGE: 16}
_OTHER_HEADS = re.compile(r"moco|mae_?lite|mae_tiny", re.IGNORECASE)


def named_heads(name: str, size: tuple[int, int]) -> int | None:
    """Return the heads of a network of this size (channels, blocks) by a name; None if unknown."""
    if not _NAMED.search(name) or _OTHER_HEADS.search(name):
        return None
    return _NAMED_SIZES.get(size)


def find_heads(
    size: tuple[int, int], family: ViTFamily, checkpoint: Mapping[Any, Any], request: Request
) -> int:
    """Return the number of heads: what the user, our run, the config, the family or a name says.

    Raises:
        UserError: If none of them says it, two contradict each other, or it does not fit.
    """
    config = request.stated.config
    arguments = config.get("model_args")
    said = {
        "--heads": request.heads,
        "its pretraining": _of_ours(checkpoint, "moco_d2"),
        "its conversion": _of_ours(checkpoint, "provenance"),
        "the config.json beside it": config.get("num_attention_heads"),
    }
    if isinstance(arguments, dict) and "num_heads" in arguments:
        said["the config.json beside it"] = arguments["num_heads"]
    if size in family.sizes:
        said[f"family {family.name!r}"] = family.sizes[size]
    elif type(said["the config.json beside it"]) is not int:
        for where, name in stated_names(checkpoint, request.file_name, request.stated):
            said.setdefault(where, named_heads(name, size))
    known = {where: number for where, number in said.items() if type(number) is int}
    width, depth = size
    if not known:
        raise UserError(
            f"no tensor of a ViT shows its number of attention heads, and neither family, name nor "
            f"config.json says it for {width} channels and {depth} blocks (MoCo v3's ViT-S has 12, "
            "DeiT's 6): name it with --heads N"
        )
    if len(set(known.values())) > 1:
        says = ", ".join(f"{where} says {number}" for where, number in known.items())
        raise UserError(f"its number of attention heads is contradictory: {says}; correct one")
    number = next(iter(known.values()))
    if number < 1 or width % number:
        raise UserError(
            f"{next(iter(known))} says {number} attention heads, which do not divide its {width} "
            "channels; name the right number with --heads N"
        )
    return number


def _of_ours(checkpoint: Mapping[Any, Any], entry: str) -> Any:
    """Return what a file of tools/pretrain.py or tools/convert.py says; None for another one."""
    ours = checkpoint.get(entry)
    vit = ours.get("vit") if isinstance(ours, dict) else None
    return vit.get("heads") if isinstance(vit, dict) else None
