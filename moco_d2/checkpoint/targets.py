"""The formats of converted weights: one small class per framework."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from moco_d2.checkpoint.mapping import Architecture, own_builder_of, to_detectron2
from moco_d2.errors import UserError
from moco_d2.resnet import STEM_WIDTH

AUTHOR = "moco_d2"


class Target:
    """Names and layout of a file of weights.

    Attributes:
        name: The value of ``--to``.
        suffixes: The suffixes of its files, the usual one first.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = (".pth", ".safetensors")

    def usage(self, path: str | Path, architecture: Architecture) -> str:
        """Return how to use a file: words of a command line, or Python code."""
        raise NotImplementedError

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
    # Detectron2 itself would load nothing from a safetensors file, and say so in a warning only:
    # the file cannot hold ``matching_heuristics``.
    suffixes = (".pth", ".pkl")

    def usage(self, path: str | Path, architecture: Architecture) -> str:
        words = f"MODEL.WEIGHTS {shlex.quote(str(path))}"
        own = own_builder_of(architecture)
        return f"{words} MODEL.BACKBONE.NAME {own}" if own else words

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

    def usage(self, path: str | Path, architecture: Architecture) -> str:
        return (
            f"network = {_torchvision_network(architecture)}; "
            f"network.load_state_dict({_read_state(path)}, strict=False)  # no fc"
        )

    def check(self, architecture: Architecture) -> None:
        _check_stride(architecture, self.name)


class Timm(Target):
    name = "timm"

    def usage(self, path: str | Path, architecture: Architecture) -> str:
        widths = _widths(architecture, "cardinality", "base_width")
        options = {"checkpoint_path": str(path), "num_classes": 0, **widths}
        words = ", ".join(f"{key}={value!r}" for key, value in options.items())
        return f"timm.create_model('resnet{architecture.depth}', {words})"

    def check(self, architecture: Architecture) -> None:
        _check_stride(architecture, self.name)
        if architecture.width_factor != 1:
            raise UserError(
                f"it is a {architecture}, which timm does not build; choose --to torchvision"
            )


class MMDetection(Target):
    name = "mmdet"
    suffixes = (".pth",)

    def usage(self, path: str | Path, architecture: Architecture) -> str:
        options: dict[str, Any] = {"depth": architecture.depth}
        if architecture.groups > 1:
            width = int(architecture.width_per_group * architecture.width_factor)
            options |= {"groups": architecture.groups, "base_width": width}
        if architecture.width_factor != 1:
            width = int(STEM_WIDTH * architecture.width_factor)
            options |= {"stem_channels": width, "base_channels": width}
        options["style"] = "caffe" if architecture.stride_in_1x1 else "pytorch"
        options["init_cfg"] = {"type": "Pretrained", "checkpoint": str(path)}
        kind = "ResNeXt" if architecture.groups > 1 else "ResNet"
        return f"backbone = { ({'type': kind} | options)!r}"

    def check(self, architecture: Architecture) -> None:
        if architecture.groups == 1 and architecture.width_per_group != STEM_WIDTH:
            raise UserError(
                f"it is a {architecture}, which mmdetection does not build; choose another --to"
            )

    def content(
        self, tensors: Mapping[str, Tensor], provenance: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {"meta": {"author": AUTHOR}, **super().content(tensors, provenance)}


def _check_stride(architecture: Architecture, framework: str) -> None:
    if architecture.stride_in_1x1:
        raise UserError(
            f"it is a {architecture}, where {framework} has it in the 3x3 convolutions and would "
            "compute other features; choose --to detectron2 or mmdet"
        )


def _torchvision_network(architecture: Architecture) -> str:
    options = _widths(architecture, "groups", "width_per_group")
    depth = architecture.depth
    call = f"torchvision.models.resnet{depth}("
    if architecture.width_factor != 1:  # torchvision has no such argument
        call = f"moco_d2.resnet.build_resnet({depth}, "
        options = {"num_classes": 1000, **options, "width_factor": architecture.width_factor}
    return call + ", ".join(f"{key}={value}" for key, value in options.items()) + ")"


def _widths(architecture: Architecture, groups: str, width: str) -> dict[str, Any]:
    widths = architecture.groups, architecture.width_per_group
    return dict(zip((groups, width), widths, strict=True)) if widths != (1, STEM_WIDTH) else {}


def _read_state(path: str | Path) -> str:
    if Path(path).suffix == ".safetensors":
        return f"safetensors.torch.load_file({str(path)!r})"
    return f"torch.load({str(path)!r})['state_dict']"


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
