"""ViTs as a kind of network."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from torch import Tensor

from moco_d2.checkpoint.families import Input
from moco_d2.checkpoint.network import Network, Request
from moco_d2.checkpoint.recognition import Extracted
from moco_d2.checkpoint.targets import AUTHOR, Detectron2, Target
from moco_d2.checkpoint.vit.mapping import PREFIX, ViT, to_detectron2
from moco_d2.checkpoint.vit.proof import TOLERANCE, prove
from moco_d2.checkpoint.vit.recognition import extract, is_vit
from moco_d2.errors import UserError


class _Detectron2(Target):
    """Weights for the ViT below a simple feature pyramid, in v0.6 and in main."""

    name = Detectron2.name
    suffixes = Detectron2.suffixes

    def usage(self, path: str | Path, architecture: Any) -> str:
        return f"MODEL.WEIGHTS {quote(str(path))}"

    def content(
        self, tensors: Mapping[str, Tensor], provenance: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {
            "model": {PREFIX + name: tensor for name, tensor in tensors.items()},
            "__author__": AUTHOR,
            "matching_heuristics": True,
            "provenance": dict(provenance),
        }


#: Channels of a ViT -> its size in the names of tasks.
_SIZES = {192: "Ti", 384: "S", 768: "B", 1024: "L"}


class ViTs(Network[ViT]):
    name = "vit"
    reference = "timm"
    tolerance = TOLERANCE
    unseen = "the number of heads, activations and the input format"

    def task(self, architecture: ViT) -> str:
        return f"coco_vitdet_{_SIZES.get(architecture.width, 'B')}_25ep"

    def recognizes(self, checkpoint: Mapping[Any, Any]) -> bool:
        return is_vit(checkpoint)

    def extract(self, checkpoint: Mapping[Any, Any], request: Request) -> tuple[Extracted, ViT]:
        return extract(checkpoint, request)

    def target(self, target: Target, architecture: ViT) -> Target:
        if target.name != Detectron2.name:
            raise UserError(
                f"it is a {architecture}, which is written for Detectron2 only; leave out --to"
            )
        return _Detectron2()

    def check_depth(self, architecture: ViT, depth: int) -> None:
        raise UserError(f"it is a {architecture}, not a ResNet-{depth}; use a ResNet's checkpoint")

    def convert(self, extracted: Extracted, architecture: ViT) -> dict[str, Tensor]:
        return to_detectron2(extracted.tensors, architecture)

    def prove(
        self,
        content: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        extracted: Extracted,
        architecture: ViT,
    ) -> dict[str, float]:
        settings = self.settings(architecture, extracted.traits.input)
        return prove(content, extracted.tensors, architecture, settings)

    def facts(self, architecture: ViT) -> dict[str, Any]:
        return {"network": self.name, "vit": dataclasses.asdict(architecture)}

    def architecture(self, report: Mapping[str, Any]) -> ViT:
        return ViT(**report["vit"])

    def count(self, architecture: ViT) -> int:
        return len(architecture.expected())

    def settings(self, architecture: ViT, pixels: Input) -> dict[str, Any]:
        return architecture.settings(pixels)
