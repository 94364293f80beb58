"""How a config file is found, and how it becomes a checked config with the command line's words."""

import argparse
import functools
import itertools
import json
import math
import os
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from moco_d2.config.keys import KEYS, PAGE, add_moco_config, read_value
from moco_d2.config.plain import flatten, has_key
from moco_d2.config.safe_yaml import (
    UNREADABLE,
    decode,
    expand_home,
    is_folder,
    is_regular_file,
    read_config,
)
from moco_d2.config.shard_patterns import SHARDS_PREFIX, first_command
from moco_d2.errors import UserError, closest
from moco_d2.files import PACKAGE

COMMAND_LINE = "override on the command line"  # where a value comes from, in errors
_LONGEST_REASON = 400  # characters of another library's error

#: Keys that name data, which is opened, or with ``pipe:`` what writes it, which is run.
DATA_KEYS = ("DATASETS.TRAIN", "DATASETS.TEST", "MOCO.KNN.TRAIN", "MOCO.KNN.TEST")


def config_root() -> Path:
    """The folder of the packaged configs: ``configs/`` of a checkout, ``moco_d2/configs`` of an
    installation.
    """
    checkout = PACKAGE.parent / "configs"
    return checkout if checkout.is_dir() else Path(str(resources.files("moco_d2") / "configs"))


def find_config(name: str) -> Path:
    """The config file `name`: a path that exists, else a packaged one by file name
    (``voc_C4_moco.yaml``), else a task and an initialization of the packaged ones, composed
    (``lvis_v1_FPN_1x_moco_v2_800ep.yaml``: the file is written for this process and says
    ``_BASE_: [.../task/lvis_v1_FPN_1x.yaml, .../init/moco_v2_800ep.yaml]``). Capitals of packaged
    names do not matter: moco_IG1B is moco_ig1b.

    Raises:
        UserError: there is none; names the closest packaged configs.
    """
    path = expand_home(name)
    if is_regular_file(path):
        return path
    root = config_root()
    packaged = {p.name: p for p in sorted(root.rglob("*.yaml"))}
    wanted = path.name if path.suffix == ".yaml" else f"{path.name}.yaml"
    composed = task_configs()
    if (
        path.parent == Path()
        or not is_folder(path.parent)
        or Path(os.path.realpath(path.parent)) == root
    ):
        own = {known.lower(): known for known in packaged | composed}.get(wanted.lower())
        if own in packaged:
            return packaged[own]
        if own in composed:
            return _compose(own, composed[own])
    raise UserError(
        f"no config file {name!r} here or among the packaged ones; "
        + (closest(wanted, packaged | composed) or f"see {root}")
    )


def task_configs() -> dict[str, tuple[Path, Path]]:
    """Every fine-tuning run by name, ``{task}_{initialization}.yaml``, as the two packaged files
    that it consists of.
    """
    folders = (sorted((config_root() / name).glob("*.yaml")) for name in ("task", "init"))
    return {f"{t.stem}_{i.stem}.yaml": (t, i) for t, i in itertools.product(*folders)}


@functools.cache
def _composed_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="moco_d2_")  # removed when the process ends


def _compose(name: str, parts: tuple[Path, Path]) -> Path:
    file = Path(_composed_folder().name) / name
    file.write_text(f"_BASE_: [{', '.join(json.dumps(str(part)) for part in parts)}]\n")
    return file


def load_config(
    config_file: str | Path, overrides: list[str] | tuple[str, ...] = (), *, typed: bool = True
) -> Any:
    """Detectron2's config, merged with a file and ``KEY VALUE`` overrides, not frozen.

    A file is anybody's. It is read once, by safe_yaml.read_config, with limits; a tag that would
    build an object is refused, and so is data that is not on this machine, ``shards:pipe:COMMAND``
    above all: only a user's own words name that.

    Args:
        config_file: see find_config.
        overrides: count over the file.
        typed: the user has typed the overrides. False: they are of a file, too.

    Raises:
        UserError: unknown key (names the closest), a value that the key does not accept (see
            docs/config.md), odd number of overrides, unreadable yaml, data that a file may not
            name, or a DensePose config without the project.
    """
    from detectron2.config import get_cfg

    from moco_d2.config.densepose import add_densepose_config, uses_densepose

    cfg = get_cfg()
    add_moco_config(cfg)
    path = find_config(str(config_file))
    try:
        content = read_config(path)
        if uses_densepose(content):
            add_densepose_config(cfg)
        known = flatten(cfg)
        _check_content(content)
        _merge_content(content, path, cfg)
    except UNREADABLE as error:
        raise UserError(f"config {path}: {_explain(error, cfg)}") from error
    if len(overrides) % 2:
        raise UserError(
            f"overrides come in pairs, KEY VALUE KEY VALUE ...; got {len(overrides)} words, the "
            f"last is {overrides[-1]!r}"
        )
    try:
        for word in overrides[1::2]:
            decode(word)
        cfg.merge_from_list(_checked_words(overrides))
    except UNREADABLE as error:
        unknown = next((k for k in overrides[::2] if not has_key(cfg, k)), None)
        if unknown is not None:
            raise UserError(_unknown_key(unknown, cfg)) from error
        raise UserError(f"{COMMAND_LINE}: {_explain(error, cfg)}") from error
    settings = flatten(cfg)
    for key, value in settings.items():
        if value is None and known.get(key) is not None:
            raise UserError(f"config {path}: {key} has no value; give one, or leave it out")
        if _is_nan(value):
            where = COMMAND_LINE if key in overrides[::2] else f"config {path}"
            raise UserError(f"{where}: {key} must not be NaN, got {value!r:.80}")
    own = overrides[::2] if typed else ()
    for key in DATA_KEYS:
        check_data(key, settings[key], f"config {path}", anywhere=key in own, suite=not typed)
    return cfg


def load_config_of(args: argparse.Namespace, overrides: Sequence[str] = ()) -> Any:
    """`load_config` of the words of cli.argument_parser.

    Args:
        args: the parsed words; those of a suite say so with ``--overrides-from-file``.
        overrides: come before those in `args`.
    """
    typed = not getattr(args, "overrides_from_file", False)
    return load_config(args.config_file, [*overrides, *args.opts], typed=typed)


def _check_content(content: dict[str, Any]) -> None:
    """Check the values of a config file's content, and write them as they are merged, in place.

    Raises:
        ValueError: a key does not accept its value.
    """
    for key in KEYS:
        *sections, name = key.split(".")
        node: Any = content
        for section in sections:
            node = node.get(section) if isinstance(node, dict) else None
        if isinstance(node, dict) and node.get(name) is not None:
            node[name] = read_value(key, node[name])


def _checked_words(overrides: Sequence[str]) -> list[Any]:
    """Return KEY VALUE pairs of the command line with the values as they are merged.

    Raises:
        ValueError: a key does not accept its value.
    """
    words: list[Any] = []
    for key, word in zip(overrides[::2], overrides[1::2], strict=True):
        words += (key, read_value(key, word) if key in KEYS else word)
    return words


def _is_nan(value: Any) -> bool:
    """Whether a value, or a part of it, is NaN. Infinity is a value of CLIP_GRADIENTS.NORM_TYPE."""
    if isinstance(value, list | tuple):
        return any(map(_is_nan, value))
    return isinstance(value, float) and math.isnan(value)


def _merge_content(content: dict[str, Any], path: Path, cfg: Any) -> None:
    """Detectron2's merge_from_file, with what was read and checked in place of reading it again.

    Raises:
        KeyError, ValueError, AssertionError and others: as Detectron2 does.
    """
    version = content.get("VERSION", cfg.VERSION)
    if type(version) is not int or not 1 <= version <= cfg.VERSION:
        raise ValueError(f"VERSION must be a number from 1 to {cfg.VERSION}, got {version!r:.40}")
    vars(cfg)["load_yaml_with_base"] = lambda *_, **__: content
    try:
        cfg.merge_from_file(str(path.absolute()), allow_unsafe=False)
    finally:
        del vars(cfg)["load_yaml_with_base"]


def check_data(
    key: str, value: Any, where: str, *, anywhere: bool = False, suite: bool = False
) -> None:
    """Refuse names of data that are no text, and unless `anywhere`, data that is not on this
    machine: shards that a command writes or an address leads to, and any other address.

    What braces, variables and ``::`` in a pattern of shards stand for is what counts, by the
    reader's own rule of what it opens as a file.

    Args:
        key: one of DATA_KEYS, or a suite's own.
        value: what it says, decoded.
        where: the file, for the error.
        suite: it is a suite, or of one, which has no command line for such words.

    Raises:
        UserError: see above.
    """
    for name in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(name, str):
            raise UserError(f"{where}: {key} must name data as text, got {name!r:.80}")
        if anywhere:
            continue
        found = name if "://" in name else None
        if name.startswith(SHARDS_PREFIX):
            try:
                found = first_command(name.removeprefix(SHARDS_PREFIX))
            except ValueError as error:
                raise UserError(
                    f"{where}: {key} {name!r:.200} cannot be expanded: {error}"
                ) from error
        if found:
            advice = f"read it, and give {key} on the command line"
            if suite:
                advice = "copy the data to files or shards of this machine and name these"
                if key in DATA_KEYS:
                    pretext = name.startswith(SHARDS_PREFIX) or key.startswith("MOCO.")
                    tool = "pretrain" if pretext else "train_net"
                    advice += (
                        f", or run tools/{tool}.py without a suite and give {key} on its command "
                        "line"
                    )
            raise UserError(
                f"{where}: {key} would run or fetch {found!r:.200}, which is taken from no file: "
                f"{advice}"
            )


def packaged_hint(error: OSError) -> str:
    """For a file that is not there, as the end of a sentence: the packaged config of that name."""
    name = Path(str(error.filename)).name
    if not isinstance(error, FileNotFoundError) or not name:
        return ""
    packaged = next((p for p in sorted(config_root().rglob("*.yaml")) if p.name == name), None)
    return f"; the packaged one is {packaged.absolute()}" if packaged else ""


def _unknown_key(key: str, cfg: Any) -> str:
    name, meant = " ".join(str(key).split()), closest(key, flatten(cfg))
    return f"unknown config key {name:.200}; {f'{meant} ' if meant else ''}see {PAGE}"


def _explain(error: Exception, cfg: Any) -> str:
    """yacs' and yaml's own errors, shortened to a sentence."""
    if isinstance(error, OSError):
        hint = packaged_hint(error)
        return f"cannot read {error.filename!s:.200}: {error.strerror}{hint}"
    # A KeyError puts its message in quotes.
    text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
    prefix = "Non-existent config key: "
    if text.startswith(prefix):
        return _unknown_key(text.removeprefix(prefix), cfg)
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
