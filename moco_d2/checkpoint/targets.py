"""The formats of converted weights: one small class per framework."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from moco_d2.checkpoint.mapping import Architecture, to_detectron2
from moco_d2.errors import UserError

AUTHOR = "moco_d2"


class Target:
    """Names and layout of a file of weights.

    Attributes:
        name: The value of ``--to``.
        suffixes: The suffixes of its files, the usual one first.
        usage: How to use the file ``{file}``.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = (".pth", ".safetensors")
    usage: ClassVar[str]

    def check(self, architecture: Architecture) -> None:
        """Refuse a network that the framework cannot build.

        Raises:
            UserError: If the framework cannot build it.
        """

    def content(
        self, tensors: Mapping[str, Tensor], provenance: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the content of the file.

        Args:
            tensors: torchvision name -> tensor.
            provenance: The report of the conversion, in JSON types.
        """
        return {"state_dict": dict(tensors), "provenance": dict(provenance)}


class Detectron2(Target):
    name = "detectron2"
    suffixes = (".pth", ".pkl", ".safetensors")
    usage = "MODEL.WEIGHTS {file}"

    def check(self, architecture: Architecture) -> None:
        if architecture.is_basic and architecture.width_factor != 1:
            raise UserError(
                f"it is a {architecture}, but Detectron2 builds ResNet-18 and 34 only in plain "
                "width; pretrain a wider ResNet-50"
            )

    def content(
        self, tensors: Mapping[str, Tensor], provenance: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {
            "model": {to_detectron2(name): tensor for name, tensor in tensors.items()},
            "__author__": AUTHOR,
            # With it Detectron2 maps res5 to roi_heads (C4) or to backbone.bottom_up (FPN).
            "matching_heuristics": True,
            "provenance": dict(provenance),
        }


class Torchvision(Target):
    name = "torchvision"
    usage = 'network.load_state_dict(torch.load("{file}")["state_dict"], strict=False)  # no fc'


class Timm(Target):
    name = "timm"
    usage = 'timm.create_model("resnet{depth}", checkpoint_path="{file}", num_classes=0)'


class MMDetection(Target):
    name = "mmdet"
    suffixes = (".pth",)
    usage = 'backbone=dict(init_cfg=dict(type="Pretrained", checkpoint="{file}"))'

    def content(
        self, tensors: Mapping[str, Tensor], provenance: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {"meta": {"author": AUTHOR}, **super().content(tensors, provenance)}


TARGETS: dict[str, Target] = {
    target.name: target for target in (Detectron2(), Torchvision(), Timm(), MMDetection())
}


def find_target(name: str, path: str | Path) -> Target:
    """Return the target `name` for the file `path`.

    Raises:
        UserError: If there is no such target, or its files have other suffixes.
    """
    if name not in TARGETS:
        raise UserError(f"--to {name!r} is not one of {', '.join(TARGETS)}; choose one of them")
    target, path = TARGETS[name], Path(path)
    if path.is_dir():
        example = path / f"backbone{target.suffixes[0]}"
        raise UserError(f"{path} is a folder; name the file to write, e.g. {example}")
    if path.suffix not in target.suffixes:
        raise UserError(
            f"cannot write {path}: {name} weights end in {' or '.join(target.suffixes)}; "
            f"name it {path.with_suffix(target.suffixes[0])}"
        )
    return target
