"""Lists the known kinds of checkpoints, for ``convert.py --list`` and docs/checkpoints.md."""

import argparse
from pathlib import Path

from moco_d2.checkpoint.families import FAMILIES, Family
from moco_d2.checkpoint.mapping import Architecture
from moco_d2.checkpoint.targets import TARGETS, Target

_INTRODUCTION = """# Checkpoints

`tools/convert.py SRC DST` converts any file that holds a complete ResNet (18, 34, 50, 101, 152,
ResNeXt, wide) and recognizes it by names and shapes. Every other tensor of the file must be known
to its family, or the file is refused; `--drop PATTERN` leaves out more tensors beside the network,
but none among its layers. Wrappers (`module.`, `_orig_mod.`, `model.`, `net.`, `ema_model.`,
FSDP's) may stand anywhere. The page [checkpoint_table.md](checkpoint_table.md) shows the result for
a file of each project.

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


def listing() -> str:
    """Return the text of ``convert.py --list``."""
    width = max(len(family.name) for family in FAMILIES)
    return "".join(
        f"{family.name:{width}}  {family.title}\n{'':{width}}  e.g. {family.example}\n"
        for family in FAMILIES
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
    )


def _target(target: Target) -> str:
    suffixes = ", ".join(f"`{suffix}`" for suffix in target.suffixes)
    usage = target.usage(f"backbone{target.suffixes[0]}", Architecture(50))
    return f"| `{target.name}` | {suffixes} | `{usage}` |\n"


def _row(family: Family) -> str:
    traits = family.traits
    pixels = traits.input
    stride = ", stride in 1x1" if traits.stride_in_1x1 else ""
    cells = (
        f"`{family.name}`",
        family.title,
        f"`{family.example}`",
        _locations(family.query) or "anywhere",
        _locations(family.key) or "-",
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
