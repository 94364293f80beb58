"""Lists the known kinds of checkpoints, for ``convert.py --list`` and docs/checkpoints.md."""

import argparse
from pathlib import Path

from moco_d2.checkpoint.families import FAMILIES, Family
from moco_d2.checkpoint.mapping import Architecture
from moco_d2.checkpoint.targets import TARGETS, Target
from moco_d2.checkpoint.vit.names import FAMILIES as VIT_FAMILIES
from moco_d2.checkpoint.vit.names import ViTFamily
from moco_d2.checkpoint.vit.refusals import REASONS

_INTRODUCTION = """# Checkpoints

`tools/convert.py SRC DST` converts any file that holds a complete ResNet (18, 34, 50, 101, 152,
ResNeXt, wide) or a plain [vision transformer](#vision-transformers), and recognizes it by names and
shapes. Every other tensor of the file must be known to its family, or the file is refused; `--drop
PATTERN` leaves out more tensors beside the network, but none among its layers. Wrappers (`module.`,
`_orig_mod.`, `model.`, `net.`, `ema_model.`, FSDP's) may stand anywhere. The page
[checkpoint_table.md](checkpoint_table.md) shows the result for a file of each project.

The proof compares Detectron2's features with those of torchvision's network. It cannot see what no
tensor shows: strides, dilation, pooling, anti-aliasing, activations and the input format. So a file
is refused if its name, its entry `arch` or the `config.json` beside it names another network with
the same tensors, such as timm's `resnetaa50` and `resnetblur50`. A `config.json` or
`preprocessor_config.json` beside it also gives mean and standard deviation, and beside a detector
of Detectron2 its `config.yaml` gives the input format and the stride. A name with `caffe` or `msra`
means BGR, std 1 and the stride in the 1x1 convolution. What the report says counts: the table has
only the usual input of a family.

A location is `container:prefix`: the path of a dict inside the file, and the prefix of the names.

"""

_VITS = """
## Vision transformers

A file with a complete plain ViT becomes weights of `build_vit_simple_fpn_backbone`, the backbone of
the tasks `coco_vitdet_...`, and of ViTDet in Detectron2's main, which has the same names.

No tensor shows the number of attention heads. A family with one number for each size says it, or
the `config.json` beside the file, or the name of the file or of the architecture
(`deit_small_patch16_224`); otherwise the tool asks for `--heads N`. Two of them that contradict
each other are an error.

LayerScale (DINOv2, DeiT-3) is a factor for each channel of a branch. It is multiplied into the rows
of `attn.proj` and `mlp.fc2`, weights and biases, which computes the same. Detectron2's ViT has no
place for it: left out, features have a cosine of 0.72 with those of the source (a random network).
Separate queries, keys and values become one layer. Class token, distillation token, register tokens
(with a caveat), the last norm and all heads are left out. Absolute positions keep their grid, and
Detectron2 interpolates them. Relative positions of the detector begin at zero.

The proof compares all blocks on one image of 224 pixels: the source's tensors as they are, without
its class token, and Detectron2's ViT with the converted file agree to 1e-4 in float32. Of such an
image, 14 x 14 patches of 16 pixels are one window of the detector, so that blocks with a window of
14 and global ones compute the same. The proof cannot see the number of heads, activations and the
input format. A patch of 14 pixels is converted and proven, but a detector with a feature pyramid
needs a power of two.

| family | files of | example | network | `--branch key` | names | heads by channels |
|---|---|---|---|---|---|---|
"""
_REFUSED_VITS = """
These networks are recognized and refused. Detectors are built here for ResNets and plain ViTs only;
the reasons are:

"""


def listing() -> str:
    """Return the text of ``convert.py --list``."""
    families = (*FAMILIES, *VIT_FAMILIES)
    width = max(len(family.name) for family in families)
    return "".join(
        f"{family.name:{width}}  {family.title}\n{'':{width}}  e.g. {family.example}\n"
        for family in families
    )


def document() -> str:
    """Return the text of docs/checkpoints.md."""
    rows = "".join(_row(family) for family in FAMILIES)
    targets = "".join(_target(target) for target in TARGETS.values())
    return (
        _INTRODUCTION
        + "| family | files of | example | network | `--branch key` | names | input |\n"
        + "|---|---|---|---|---|---|---|\n"
        + rows
        + "\n## Targets\n\n| `--to` | files | use |\n|---|---|---|\n"
        + targets
        + _VITS
        + "".join(_vit_row(family) for family in VIT_FAMILIES)
        + _REFUSED_VITS
        + "".join(f"- {text}\n" for _, text in REASONS)
    )


def _origin(family: Family | ViTFamily) -> tuple[str, ...]:
    """Return the cells that the tables of ResNets and of ViTs begin with."""
    return (
        f"`{family.name}`",
        family.title,
        f"`{family.example}`",
        _locations(family.query) or "anywhere",
        _locations(family.key) or "-",
    )


def _vit_row(family: ViTFamily) -> str:
    heads = ", ".join(f"{width}: {number}" for (width, _), number in family.sizes.items())
    cells = (
        *_origin(family),
        ", ".join(names.name for names in family.names),
        heads or "from a name, `config.json` or `--heads`",
    )
    return "| " + " | ".join(cells) + " |\n"


def _target(target: Target) -> str:
    suffixes = ", ".join(f"`{suffix}`" for suffix in target.suffixes)
    usage = target.usage(f"backbone{target.suffixes[0]}", Architecture(50))
    return f"| `{target.name}` | {suffixes} | `{usage}` |\n"


def _row(family: Family) -> str:
    traits = family.traits
    pixels = traits.input
    stride = ", stride in 1x1" if traits.stride_in_1x1 else ""
    cells = (
        *_origin(family),
        ", ".join(dialect.name for dialect in family.dialects),
        f"{pixels.format}, mean {_numbers(pixels.pixel_mean)}, std {_numbers(pixels.pixel_std)}"
        + stride,
    )
    return "| " + " | ".join(cells) + " |\n"


def _locations(locations: tuple[str, ...]) -> str:
    return ", ".join(f"`{location}`" for location in locations)


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write docs/checkpoints.md.")
    parser.add_argument("--write", type=Path, default=Path("docs/checkpoints.md"))
    parser.parse_args().write.write_text(document())
