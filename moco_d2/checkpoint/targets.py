"""What a converted backbone is written as: one small class a framework."""

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
        name: as in ``--to``.
        suffixes: of its files, the usual one first.
        usage: how the file ``{file}`` is used.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = (".pth", ".safetensors")
    usage: ClassVar[str]

    def check(self, architecture: Architecture) -> None:
        """Refuse a network that the framework cannot build.

        Raises:
            UserError: it cannot.
        """

    def content(
        self, tensors: Mapping[str, Tensor], provenance: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What the file holds.

        Args:
            tensors: torchvision name -> tensor.
            provenance: JSON types.
        """
        return {"state_dict": dict(tensors), "provenance": dict(provenance)}


class Detectron2(Target):
    name = "detectron2"
    suffixes = (".pth", ".pkl", ".safetensors")
    usage = "MODEL.WEIGHTS {file}"

    def check(self, architecture: Architecture) -> None:
        if architecture.is_basic and architecture.width_factor != 1:
            raise UserError(
                f"it is a {architecture}, and Detectron2 builds ResNet-18 and 34 of the plain "
                "width only; pretrain a wider ResNet-50"
            )

    def content(
        self, tensors: Mapping[str, Tensor], provenance: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {
            "model": {to_detectron2(name): tensor for name, tensor in tensors.items()},
            "__author__": AUTHOR,
            # Lets Detectron2 find res5 in roi_heads (C4) and in backbone.bottom_up (FPN).
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
    """The target called `name`, for a file called `path`.

    Raises:
        UserError: there is none, or its files are called otherwise.
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
