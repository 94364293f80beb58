"""Renders the table of config keys as docs/config.md."""

import argparse
from pathlib import Path

from moco_d2.config.keys import DETECTRON2_GROUP, MOCO_GROUPS, Group, Key

_INTRODUCTION = """# Config keys

Every setting of a run is a key of its config. This page says what each key does and which values it
accepts. Set a key in a yaml file, or on the command line as `KEY VALUE` after all flags. The
command line overrides the file:

```sh
tools/pretrain.py --config-file moco_v2_R50_200ep.yaml DATASETS.TRAIN my/images MOCO.TEMPERATURE 0.1
```

The same settings in your own file, for `--config-file mine.yaml`:

```yaml
_BASE_: configs/pretrain/moco_v2_R50_200ep.yaml  # relative to the folder of mine.yaml
DATASETS:
  TRAIN: my/images
MOCO:
  TEMPERATURE: 0.1
```

Values are checked when the config is loaded, in a file exactly as on the command line. On a wrong
value the tool prints one line, `config mine.yaml: MOCO.DATA.SHARE must be in (0, 1], got 2`, and
exits with code 2. No key accepts NaN, not even a key of Detectron2.

A key that accepts names, such as `DATASETS.TRAIN`, takes one name without quotes (`my/images`) and
several names as a tuple (`"('voc_2007_trainval', 'voc_2012_trainval')"`). Text that begins with a
quote, `(` or `[` is read as Python. All other text is a name, even if it looks like a number
(`DATASETS.TRAIN 2007`). In a yaml file, such a name needs quotes.

In the column *default from*, `main_moco.py` is the official code. Its defaults are the recipe v1,
and the files in `configs/pretrain` set what other recipes change.
"""

_DETECTRON2 = """
All keys of Detectron2 (`MODEL`, `INPUT`, ...) keep their meaning and their defaults. A value must
have the type of the default. The values of these keys are checked, too:
"""


def document() -> str:
    """Return the text of docs/config.md."""
    sections = [f"\n## {group.title}\n\n{_table(group)}" for group in MOCO_GROUPS]
    keys = "".join(
        f"| `{key.name}` | {_cell(str(key.allowed))} | {_cell(key.meaning)} |\n"
        for key in DETECTRON2_GROUP.keys
    )
    return (
        _INTRODUCTION
        + "".join(sections)
        + f"\n## {DETECTRON2_GROUP.title}\n{_DETECTRON2}\n"
        + "| key | value | meaning |\n|---|---|---|\n"
        + keys
    )


def _table(group: Group) -> str:
    head = "| key | default | value | meaning | default from |\n|---|---|---|---|---|\n"
    return head + "".join(_row(key) for key in group.keys)


def _row(key: Key) -> str:
    default = '`""`' if key.default == "" else f"`{key.default}`"
    cells = (f"`{key.name}`", default, str(key.allowed), key.meaning, key.source)
    return f"| {' | '.join(map(_cell, cells))} |\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write docs/config.md.")
    parser.add_argument("--write", type=Path, default=Path("docs/config.md"))
    parser.parse_args().write.write_text(document())
