"""The known kinds of checkpoints, for ``convert.py --list`` and docs/checkpoints.md."""

import argparse
from pathlib import Path

from moco_d2.checkpoint.families import FAMILIES, Family
from moco_d2.checkpoint.targets import TARGETS

_INTRODUCTION = """# Checkpoints

`tools/convert.py SRC DST` takes any file that holds a complete ResNet (18, 34, 50, 101, 152,
ResNeXt, wide) and recognizes it by names and shapes. What else is in the file is known by its
family, or is the reason for a refusal; `--drop PATTERN` leaves more behind. Wrappers (`module.`,
`_orig_mod.`, `model.`, `net.`, `ema_model.`, FSDP's) may stand anywhere. What comes of a file of
each project: [checkpoint_table.md](checkpoint_table.md).

A place is `container:prefix`: the dict inside the file, and what stands before the names.

"""


def listing() -> str:
    """A line of text for each family."""
    width = max(len(family.name) for family in FAMILIES)
    return "".join(
        f"{family.name:{width}}  {family.title}\n{'':{width}}  e.g. {family.example}\n"
        for family in FAMILIES
    )


def document() -> str:
    """docs/checkpoints.md."""
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
        _places(family.query) or "anywhere",
        _places(family.key) or "-",
        ", ".join(dialect.name for dialect in family.dialects),
        f"{pixels.format}, mean {_numbers(pixels.pixel_mean)}, std {_numbers(pixels.pixel_std)}"
        + stride,
    )
    return "| " + " | ".join(cells) + " |\n"


def _places(places: tuple[str, ...]) -> str:
    return ", ".join(f"`{place}`" for place in places)


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write docs/checkpoints.md.")
    parser.add_argument("--write", type=Path, default=Path("docs/checkpoints.md"))
    parser.parse_args().write.write_text(document())
