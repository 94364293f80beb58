"""YAML of strangers: plain values only, and no more of them than the file has room for.

A safe loader builds no objects, but a few hundred bytes of aliases can still stand for billions of
values, and brackets without end for a stack without one.
"""

from pathlib import Path
from typing import Any

import yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Detectron2's whole config, written out, has under 1000 values, 5 deep.
_MOST_VALUES = 100_000
_DEEPEST = 50


def load_yaml(path: str | Path) -> Any:
    """The content of a YAML file, of plain types.

    Raises:
        ValueError: it unfolds to too many values, nests too deep, or is not text.
        yaml.YAMLError: it is no YAML, or a tag in it would build an object.
        OSError: it cannot be read.
    """
    text = Path(path).read_text(encoding="utf-8")
    check_size(text)
    return yaml.load(text, Loader=_LOADER)  # noqa: S506 - a safe one


def check_size(text: str) -> None:
    """Refuse what would not fit into memory or the stack, without building it.

    Raises:
        ValueError: it unfolds to too many values, or nests too deep.
        yaml.YAMLError: it is no YAML.
    """
    sizes: dict[str, int] = {}  # of what an anchor stands for, its aliases unfolded
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and values so far
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            open_nodes.append((event.anchor, 1))
            if event.anchor is not None:  # inside itself, it stands for no end of values
                sizes[event.anchor] = _MOST_VALUES
            if len(open_nodes) > _DEEPEST:
                raise ValueError(f"it nests deeper than {_DEEPEST} levels")
            continue
        if isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
        elif isinstance(event, yaml.AliasEvent):
            anchor, size = None, sizes.get(event.anchor, 0)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            anchor, size = open_nodes.pop()
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        if size >= _MOST_VALUES:
            raise ValueError(f"it unfolds to more than {_MOST_VALUES} values")
        if open_nodes:
            outer, total = open_nodes[-1]
            open_nodes[-1] = outer, total + size


def check_config_file(path: str | Path, _including: tuple[Path, ...] = ()) -> None:
    """Check a config file and those it names under ``_BASE_``, before a library reads them.

    Raises:
        ValueError: as check_size; a file is its own base, or one is not on this machine.
        yaml.YAMLError, OSError: as load_yaml.
    """
    path = Path(path).expanduser().resolve()
    if path in _including:
        raise ValueError(f"{path} is its own _BASE_")
    content = load_yaml(path)
    bases = content.get("_BASE_", []) if isinstance(content, dict) else []
    for base in bases if isinstance(bases, list) else [bases]:
        if "://" in str(base):
            raise ValueError(f"its _BASE_ {base} is not on this machine; fetch and read it first")
        check_config_file(path.parent / Path(str(base)).expanduser(), (*_including, path))
