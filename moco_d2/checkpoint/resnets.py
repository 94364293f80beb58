"""ResNets as a kind of network: mapping.py, recognition.py, proof.py and targets.py are theirs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from moco_d2.checkpoint.families import Input
from moco_d2.checkpoint.mapping import Architecture, detectron2_settings, expected_tensors
from moco_d2.checkpoint.network import Network, Request, plain
from moco_d2.checkpoint.proof import TOLERANCE, prove
from moco_d2.checkpoint.recognition import Extracted, extract
from moco_d2.checkpoint.targets import Detectron2, Target
from moco_d2.errors import UserError


class ResNets(Network[Architecture]):
    name = "resnet"
    reference = "torchvision"
    tolerance = TOLERANCE
    unseen = "strides, dilation, pooling, anti-aliasing, activations and the input format"

    def task(self, architecture: Architecture) -> str:
        return "voc_C4"

    def recognizes(self, checkpoint: Mapping[Any, Any]) -> bool:
        return True  # extract says what a file without one has

    def extract(
        self, checkpoint: Mapping[Any, Any], request: Request
    ) -> tuple[Extracted, Architecture]:
        return extract(
            checkpoint,
            request.branch,
            file_name=request.file_name,
            stated=request.stated,
            drop=request.drop,
        )

    def target(self, target: Target, architecture: Architecture) -> Target:
        Detectron2().check(architecture)  # it takes part in the proof for every target
        target.check(architecture)
        return target

    def check_depth(self, architecture: Architecture, depth: int) -> None:
        if depth != architecture.depth:
            raise UserError(
                f"it is a ResNet-{architecture.depth}, not a ResNet-{depth}; "
                f"use another checkpoint or set the depth to {architecture.depth}"
            )

    def convert(self, extracted: Extracted, architecture: Architecture) -> dict[str, Tensor]:
        return {
            name: plain(extracted.tensors[name].detach()) for name in expected_tensors(architecture)
        }

    def prove(
        self,
        content: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        extracted: Extracted,
        architecture: Architecture,
    ) -> dict[str, float]:
        return prove(content, tensors, architecture)

    def facts(self, architecture: Architecture) -> dict[str, Any]:
        return dataclasses.asdict(architecture)

    def architecture(self, report: Mapping[str, Any]) -> Architecture:
        fields = dataclasses.fields(Architecture)
        return Architecture(**{field.name: report[field.name] for field in fields})

    def count(self, architecture: Architecture) -> int:
        return len(expected_tensors(architecture))

    def settings(self, architecture: Architecture, pixels: Input) -> dict[str, Any]:
        return detectron2_settings(architecture, pixels)
