#!/usr/bin/env python3
"""Compare our ViT and its simple feature pyramid with those of Detectron2's main.

Both have the same tensors and images. A step is a forward and a backward pass. Main's is that of
the installed Detectron2, or of the checkout that the environment variable DETECTRON2_MAIN names.

    DETECTRON2_MAIN=CHECKOUT python benchmarks/vit.py
"""

import functools
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import moco_d2  # noqa: F401  isort: skip  before Detectron2

import torch
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from harness import check, finish, parser, ratio, take_turns
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from moco_d2.transfer.modeling.feature_pyramid import SCALES, SimpleFeaturePyramid
from moco_d2.transfer.modeling.vit import EPS, OUTPUT, ViT

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.transfer.mains_vit import CHECKOUT, mains_vit

IMAGES = 2


class Calls(TorchDispatchMode):
    """Counts the calls of operators, and the elements that they return in new memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.calls[func.overloadpacket.__name__] += 1
            results = result if isinstance(result, tuple | list) else (result,)
            self.elements += sum(x.numel() for x in results if isinstance(x, torch.Tensor))
        return result


def backbone(vit: Any, pyramid: Any, sizes: dict[str, Any], **more: Any) -> nn.Module:
    """Return a backbone with windows and relative positions, as the tasks coco_vitdet_Ti have."""
    net = vit(**sizes, use_rel_pos=True, **more)
    return pyramid(
        net,
        in_feature=OUTPUT,
        out_channels=256,
        scale_factors=SCALES,
        top_block=LastLevelMaxPool(),
        norm="LN",
        square_pad=sizes["img_size"],
    )


def step(network: nn.Module, images: torch.Tensor) -> None:
    """Compute the gradients of a sum."""
    network.zero_grad(set_to_none=True)
    torch.stack([level.square().mean() for level in network(images).values()]).sum().backward()


def compare(module: Any, sizes: dict[str, Any], repeats: int) -> tuple[list[Any], list[list[Any]]]:
    """Return the checks and the rows of one image size."""
    norm = functools.partial(nn.LayerNorm, eps=EPS)
    ours = backbone(ViT, SimpleFeaturePyramid, sizes)
    theirs = backbone(module.ViT, module.SimpleFeaturePyramid, sizes, norm_layer=norm)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    side = sizes["img_size"]
    images = torch.randn(IMAGES, 3, side, side, generator=torch.Generator().manual_seed(0))
    networks = {"ours": ours, "main's": theirs}

    def act(network: nn.Module) -> Callable[[], None]:
        return lambda: step(network, images)

    seconds = take_turns({name: act(of) for name, of in networks.items()}, repeats)
    rows = []
    for name, network in networks.items():
        with Calls() as counted:
            step(network, images)
        calls = counted.calls
        rows.append([
            f"{name}, {side} pixels", f"{statistics.median(seconds[name]):.3f}",
            sum(calls.values()), calls["clone"] + calls["copy_"] + calls["_to_copy"],
            f"{counted.elements / 1e6:,.0f}",
        ])  # fmt: skip
    figure = ratio(seconds["ours"], seconds["main's"])
    return [check(f"ours / main's, {side} pixels", figure, at_most=1.03)], rows


def main() -> None:
    """Measure and print."""
    args = parser(__doc__, repeats=7).parse_args()
    sides, depth = ((320, 640), 12) if not args.small else ((96,), 3)
    checks, rows = [], []
    with mains_vit() as module:
        if module is None:
            sys.exit(f"there is no ViT of Detectron2's main: name a checkout by {CHECKOUT}")
        for side in sides:
            sizes = {"img_size": side, "patch_size": 16, "embed_dim": 192, "depth": depth}
            every = 3  # the last one attends to the whole image
            windowed = [i for i in range(depth) if (i + 1) % every]
            more = {"num_heads": 3, "window_size": 14, "window_block_indexes": windowed}
            found, table = compare(module, sizes | more, args.repeats)
            checks += found
            rows += table
    finish(
        args,
        title=f"ViT-Ti with a simple feature pyramid: a step of {IMAGES} images",
        checks=checks,
        tables=[{
            "title": "The same in operators",
            "columns": ["network", "seconds", "calls", "copies", "million elements written"],
            "rows": rows,
        }],
        notes=["The limit of 1.03 is 1.00 plus the noise of the machine."],
    )  # fmt: skip


if __name__ == "__main__":
    main()
