"""Renders docs/weights.md from the table of published weights and the rules of names."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from moco_d2.checkpoint.cache import CACHE_VARIABLE
from moco_d2.checkpoint.hub import FILES
from moco_d2.checkpoint.hub_names import DEFAULT_REVISION
from moco_d2.checkpoint.published import MIRROR_VARIABLE, PUBLISHED, Published
from moco_d2.config.keys import KEYS
from moco_d2.config.load import packaged_parts
from moco_d2.config.plain import flatten
from moco_d2.config.safe_yaml import read_config

_FILES = ", ".join(" or ".join(f"`{file}`" for file in row) for row in FILES)
_COLUMNS = ("name", "network", "authors' file", "hash begins with", "`configs/init`", "extra keys")
_INTRODUCTION = f"""# Weights by name

`MODEL.WEIGHTS`, `tools/convert.py` and `tools/linear_eval.py` take these names as they take a
file:

```sh
tools/train_net.py --config voc_C4_moco.yaml MODEL.WEIGHTS moco://v2_800ep
tools/convert.py hf://USER/REPO/checkpoint.pth.tar weights/theirs.pth
```

A file is fetched on its first use, converted, proven (see [convert](convert.md)) and kept in the
folder `{CACHE_VARIABLE}` (default: `moco_d2/` in iopath's cache). Later uses need no network. The
record of a run has the name, the sha256 of the file, and the commit of a repository.

## Published weights

The hash is that of the authors' file, and it is compared before the file is used. The authors of
the unconfirmed ones publish no hash; their sha256 is in the records of the runs. `MODEL.WEIGHTS`
accepts these names also in config files and suites. `{MIRROR_VARIABLE}` is the address of a
folder that holds the files under their own names, for machines that cannot reach the authors'
servers. Without a network, the error names the file to fetch and the folder to put it into.

"""
_RULES = f"""
All of them have torchvision's input, RGB with the mean and standard deviation of ImageNet, and
the ResNets have the stride in the 3x3 convolution. The weights of torchvision are
`IMAGENET1K_V1`, a recipe close to that of the papers. `timm://deit_...` and `timm://deit3_...` are
supervised ViTs of DeiT's authors, under timm's names. A patch of 14 pixels is converted, but the
tasks `coco_vitdet_...` need 8 or 16.

## Other names

| name | what it is |
|---|---|
| `random://` | Random initial values of all parameters, which the seed determines. |
| `hf://USER/REPO[/FILE][@REVISION]` | A file of a repository of models on the Hugging Face hub. |

These are the rules of `hf://`, which needs the extra `hub` (`pip install 'moco_d2[hub]'`):

- REVISION is a branch, a tag or a commit (default: `{DEFAULT_REVISION}`). The commit that a
  branch has at the first use is recorded and stays; to follow the branch, delete its folder in
  the cache, or name a commit.
- Without FILE, the repository must have exactly one of {_FILES}. Otherwise the error lists the
  candidates.
- `config.json`, `preprocessor_config.json` and `config.yaml` beside the file are fetched too,
  because they may say that the network is no plain ResNet, or give its input.
- A large file is compared with the sha256 that the hub has of it. Then it passes the same reader
  and the same proof as a local file: nothing in it is executed. A file that is already in
  Detectron2's format is used as it is.
- Only a name that you type is fetched. A config file or a suite, which somebody else may have
  written, uses what is in the cache and fetches nothing.
- `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` have the meaning that huggingface_hub gives them.
  Without a network, the error names the file to fetch and the folder to put it into.

Anything else must be the path of a local file. An address (`https://`) is refused, since its
content could change unnoticed.
"""


def document() -> str:
    """Return the text of docs/weights.md."""
    rows = "".join(map(_row, PUBLISHED))
    return _INTRODUCTION + _line(_COLUMNS) + _line(("---",) * len(_COLUMNS)) + rows + _RULES


def _row(entry: Published) -> str:
    usual = {name: key.default for name, key in KEYS.items()}
    usual |= Published("", "", "", "").settings
    keys = [f"`{key} {value}`" for key, value in entry.settings.items() if value != usual[key]]
    inits = [f"`{path.stem}`" for path in _initializations(entry.name)]
    cells = (
        f"`{entry.name}`",
        str(entry.network),
        f"[{entry.file}]({entry.url})",
        f"{entry.algorithm} `{entry.hash}`" if entry.hash else "unconfirmed",
        ", ".join(inits) or "-",
        ", ".join(keys) or "-",
    )
    return _line(cells)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |\n"


def _initializations(name: str) -> list[Path]:
    """Return the packaged initializations that begin from these weights."""
    files = packaged_parts("init").values()
    return [file for file in files if flatten(read_config(file)).get("MODEL.WEIGHTS") == name]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write docs/weights.md.")
    parser.add_argument("--write", type=Path, default=Path("docs/weights.md"))
    parser.parse_args().write.write_text(document())
