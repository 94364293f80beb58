"""Lists the known kinds of checkpoints, for ``convert.py --list`` and docs/checkpoints.md."""

import argparse
from pathlib import Path

from moco_d2.checkpoint.families import FAMILIES, Family
from moco_d2.checkpoint.targets import TARGETS

_INTRODUCTION = """# Checkpoints

`tools/convert.py SRC DST` converts any file that holds a complete ResNet (18, 34, 50, 101, 152,
ResNeXt, wide) and recognizes it by names and shapes. Every other tensor of the file must be known
to its family, or the file is refused; `--drop PATTERN` leaves more tensors out. Wrappers
(`module.`, `_orig_mod.`, `model.`, `net.`, `ema_model.`, FSDP's) may stand anywhere. The page
[checkpoint_table.md](checkpoint_table.md) shows the result for a file of each project.

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
    targets = "".join(
        f"| `{target.name}` | {', '.join(f'`{s}`' for s in target.suffixes)} | `{target.usage}` |\n"
        for target in TARGETS.values()
    )
    return (
        _INTRODUCTION
        + "| family | files of | example | network | `--branch key` | names | input |\n"
        + "|---|---|---|---|---|---|---|\n"
        + rows
        + "\n## Targets\n\n| `--to` | files | use |\n|---|---|---|\n"
        + targets
    )


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
