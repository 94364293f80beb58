"""Finds the complete ViT in a checkpoint by its structure, or says why it is not converted."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from moco_d2.checkpoint.families import Input, Traits, without_wrappers
from moco_d2.checkpoint.network import Request
from moco_d2.checkpoint.recognition import MOST_NETWORKS, Extracted, check_values
from moco_d2.checkpoint.stated import stated_names
from moco_d2.checkpoint.tensor_dicts import tensors_by_dict
from moco_d2.checkpoint.vit.candidates import Candidate, assign, choose, find_candidates
from moco_d2.checkpoint.vit.heads import find_heads
from moco_d2.checkpoint.vit.mapping import MLP_RATIO, PREFIX, ViT, count_blocks, grid_of
from moco_d2.checkpoint.vit.names import (
    HEADS,
    REGISTERS,
    SPECIAL,
)
from moco_d2.checkpoint.vit.refusals import other_network, reason
from moco_d2.errors import UserError, printable

_NAMED = 3  # most names in a sentence
# Names of networks that have a plain ViT's tensors and compute other features.
_OTHER = re.compile(r"_rpn_|quickgelu|siglip|gelu_?tanh", re.IGNORECASE)
# Arguments of timm's ViT that change no feature of the blocks, or whose effect the shapes show.
_SHOWN = frozenset(
    (
        *("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes", "reg_tokens"),
        *("global_pool", "fc_norm", "class_token", "no_embed_class", "init_values", "qkv_bias"),
        *("dynamic_img_size", "drop_rate", "drop_path_rate", "mlp_ratio", "in_chans", "final_norm"),
    )
)
_HALF = Input("RGB", (127.5, 127.5, 127.5), (127.5, 127.5, 127.5))


def is_vit(checkpoint: Mapping[Any, Any]) -> bool:
    """Return whether a checkpoint has the blocks of a ViT, or is known to be another network."""
    states = tensors_by_dict(checkpoint)
    names = [name for state in states.values() for name in state]
    # What is beside a ResNet, whose BatchNorm has statistics, makes it no other network.
    is_resnet = any(name.endswith("running_mean") for name in names)
    return bool(find_candidates(states)) or (not is_resnet and other_network(names) is not None)


def extract(checkpoint: Mapping[Any, Any], request: Request) -> tuple[Extracted, ViT]:
    """Return the complete ViT of a checkpoint, and its architecture.

    Args:
        checkpoint: The file's dict.
        request: What to read in it.

    Raises:
        UserError: As network.Network.extract, and if nothing says the number of heads.
    """
    states = tensors_by_dict(checkpoint)
    candidates = find_candidates(states)
    every = [name for state in states.values() for name in state]
    if not candidates or len(candidates) > MOST_NETWORKS:
        raise UserError(reason(every) or "it is a ViT that is not read; see docs/checkpoints.md")
    for candidate in candidates:
        assign(candidate, checkpoint, list(states[candidate.container]), request.file_name)
    chosen = choose(candidates, states, request.branch)
    family, state = chosen.family, states[chosen.container]
    for where, name in stated_names(checkpoint, request.file_name, request.stated):
        if _OTHER.search(name):
            raise UserError(
                f"{where} says {printable(name)[:100]!r}, whose blocks compute something else than "
                "those of a plain ViT with the same tensors; use a checkpoint of a plain ViT"
            )
    dropped, leftover = _account(chosen, candidates, states, request.drop)
    if leftover and (text := reason(leftover)):
        raise UserError(text)
    if "pos_embed" not in chosen.keys:
        raise UserError(
            reason(every)
            or "it has no absolute positions (pos_embed), which Detectron2's ViT needs (DINOv3 and "
            "others have rotary ones); use a checkpoint with them"
        )
    tensors = {name: state[key] for name, key in chosen.keys.items()}
    registers = sum(_tokens(state, chosen.prefix + name) for name in REGISTERS)
    special = registers + sum(_tokens(state, chosen.prefix + name) for name in SPECIAL)
    vit = _architecture(tensors, special, chosen, checkpoint, request)
    _check_complete(chosen, tensors, vit, leftover)
    check_values({name: chosen.keys[name] for name in tensors}, tensors)
    traits = _traits(chosen, checkpoint, request, registers, vit)
    is_ours = chosen.prefix == PREFIX
    return (
        Extracted(
            family.name,
            chosen.container,
            "" if is_ours else chosen.prefix,
            "detectron2" if is_ours else chosen.names.name,
            tensors,
            dropped,
            traits,
        ),
        vit,
    )


def _account(
    chosen: Candidate,
    candidates: list[Candidate],
    states: Mapping[str, Mapping[str, Tensor]],
    drop: tuple[str, ...],
) -> tuple[dict[str, int], list[str]]:
    """Return the number of known companions by group, and the names of unknown tensors."""
    used = set(chosen.keys.values())
    others = [c for c in candidates if c is not chosen and c.container == chosen.container]
    dropped: Counter[str] = Counter()
    leftover = []
    for key in states[chosen.container]:
        if key in used:
            continue
        group = next(
            (f"{c.prefix}*" for c in others if c.prefix and key.startswith(c.prefix)), None
        )
        if group is None and key.startswith(chosen.prefix):
            group = next((h for h in HEADS if fnmatchcase(key[len(chosen.prefix) :], h)), None)
        if group is None:
            name = without_wrappers(key)
            # An unknown tensor among the blocks takes part in what the network computes.
            known = () if re.search(r"blocks\.|layers?\.", name) else drop
            group = next(
                (p for p in (*chosen.family.companions, *known) if fnmatchcase(name, p)), None
            )
        if group is None:
            leftover.append(key)
        else:
            dropped[group] += 1
    for container, state in states.items():
        if container != chosen.container:
            dropped[f"{container or 'top level'}: all"] += len(state)
    return dict(dropped), leftover


def _architecture(
    tensors: Mapping[str, Tensor],
    special: int,
    chosen: Candidate,
    checkpoint: Mapping[Any, Any],
    request: Request,
) -> ViT:
    patches = tensors.get("patch_embed.proj.weight")
    if (
        patches is None
        or patches.ndim != 4
        or patches.shape[1] != 3
        or patches.shape[2] != patches.shape[3]
    ):
        shape = "missing" if patches is None else str(list(patches.shape))
        raise UserError(
            f"its patches (patch_embed.proj.weight, {shape}) are no squares of color images, which "
            "Detectron2's ViT needs; use a checkpoint of such images"
        )
    width, patch = patches.shape[0], patches.shape[2]
    depth = count_blocks(tensors)
    if 0 in patches.shape or depth > len(tensors):
        raise UserError(
            f"its last block has number {depth - 1} and it has {len(tensors)} tensors of a ViT, so "
            "blocks are missing; use the complete checkpoint"
        )
    grid, extra = grid_of(tensors["pos_embed"], special)
    config = request.stated.config
    eps, activation = config.get("layer_norm_eps"), config.get("hidden_act", "gelu")
    arguments = config.get("model_args")
    other = [key for key in arguments if key not in _SHOWN] if isinstance(arguments, dict) else []
    if activation != "gelu" or other:
        said = printable(f"hidden_act {activation}" if activation != "gelu" else str(other))[:100]
        raise UserError(
            f"its config.json says {said}, with which its blocks may compute something else than "
            "those of Detectron2's ViT; use a checkpoint of a plain ViT"
        )
    hidden = tensors.get("blocks.0.mlp.fc1.weight")
    if hidden is not None and hidden.ndim == 2 and hidden.shape[0] != MLP_RATIO * width:
        raise UserError(
            f"its MLPs have {hidden.shape[0]} hidden channels, and those of Detectron2's ViT "
            f"{MLP_RATIO} times {width}; use a checkpoint with that ratio"
        )
    return ViT(
        width,
        depth,
        find_heads((width, depth), chosen.family, checkpoint, request),
        patch,
        grid,
        extra,
        apart=any(".attn.q." in name for name in tensors),
        bias=any(name.endswith((".attn.qkv.bias", ".attn.q.bias")) for name in tensors),
        scaled=any(name.endswith((".ls1", ".ls2")) for name in tensors),
        eps=float(eps) if isinstance(eps, float) and 0 <= eps < 1 else chosen.names.eps,
    )


def _check_complete(
    chosen: Candidate, tensors: Mapping[str, Tensor], vit: ViT, leftover: list[str]
) -> None:
    expected = vit.expected()
    problems = {
        "missing": [name for name in expected if name not in tensors],
        "of another shape": [
            f"{chosen.keys[name]} {list(tensors[name].shape)} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in tensors and tensors[name].shape != shape
        ],
        "unknown": [chosen.keys[name] for name in tensors if name not in expected] + leftover,
    }
    texts = [
        f"{len(names)} {problem} ({', '.join(names[:_NAMED])}"
        + (", ...)" if len(names) > _NAMED else ")")
        for problem, names in problems.items()
        if names
    ]
    if texts:
        advice = (
            "if they are no part of the backbone, leave them out with --drop PATTERN"
            if set(problems["unknown"]) == set(leftover) and len(texts) == 1 and leftover
            else "use the complete, unmodified checkpoint of a plain ViT"
        )
        raise UserError(f"read as a {vit}: {', '.join(texts)}; {advice}")


def _traits(
    chosen: Candidate, checkpoint: Mapping[Any, Any], request: Request, registers: int, vit: ViT
) -> Traits:
    for file in ("config.json", "preprocessor_config.json"):
        if why := request.stated.unreadable.get(file):
            raise UserError(
                f"the {file} beside it, which may state its input and its heads, cannot be read "
                f"({why}); correct it, or move it away"
            )
    traits, caveats = chosen.family.traits, []
    if request.stated.input:
        traits = replace(traits, input=request.stated.input)
    elif "augreg" in request.file_name:
        traits = replace(traits, input=_HALF)
        caveats.append("its file name says augreg, whose input has mean and std 127.5")
    elif chosen.family.name in ("timm_vit", "transformers_vit", "other_vit"):
        caveats.append(
            "nothing states its input: ImageNet's mean and std are assumed, while timm's augreg "
            "and Google's ViTs use 127.5 for both; put its config.json beside it"
        )
    if registers:
        caveats.append(
            f"its {registers} register tokens are left out, as the class token is, because "
            "Detectron2's ViT has patches only: the patches' features change"
        )
    if vit.patch & (vit.patch - 1):
        caveats.append(
            f"its patch has {vit.patch} pixels, and detectors with a feature pyramid need a power "
            "of two: use it as a backbone only"
        )
    if chosen.role == "key" and request.branch == "query":
        caveats.append(f"the only network in it is a moving average by its name ({chosen.prefix})")
    return replace(traits, caveats=(*traits.caveats, *caveats))


def _tokens(state: Mapping[str, Tensor], name: str) -> int:
    token = state.get(name)
    return token.shape[1] if token is not None and token.ndim == 3 else 0
