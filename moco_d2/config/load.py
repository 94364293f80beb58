"""Finds a config file, and makes a checked config from it and from command-line overrides."""

import argparse
import functools
import json
import logging
import math
import os
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moco_d2.config.keys import KEYS, PAGE, add_moco_config, read_value
from moco_d2.config.kinds import Text
from moco_d2.config.literals import decode
from moco_d2.config.plain import flatten, has_key
from moco_d2.config.safe_yaml import UNREADABLE, read_config
from moco_d2.config.shard_patterns import SHARDS_PREFIX, first_command
from moco_d2.errors import UserError, closest
from moco_d2.files import expand_home, is_folder, is_regular_file, shipped_folder

if TYPE_CHECKING:
    from detectron2.config import CfgNode

logger = logging.getLogger(__name__)

COMMAND_LINE = "override on the command line"  # the source of a value, in errors
_LONGEST_REASON = 400  # characters of another library's error

#: Keys that name data. The data is opened, or with ``pipe:`` a command is run that writes it.
DATA_KEYS = (
    *("DATASETS.TRAIN", "DATASETS.TEST", "MOCO.KNN.TRAIN", "MOCO.KNN.TEST"),
    "MOCO.VAL_LOSS_DATA",
)
# Keys of Detectron2 that name a place. A name may look like a number, as in OUTPUT_DIR 20261129.
_PLACES = ("OUTPUT_DIR", "MODEL.WEIGHTS")
# Keys that an initialization may set; `*` stands for any text.
_OF_INITIALIZATION = (
    *("MODEL.WEIGHTS", "MODEL.PIXEL_*", "MODEL.RESNETS.*", "MODEL.*.NORM", "INPUT.FORMAT"),
    *("MOCO.VIT.EMBED_DIM", "MOCO.VIT.DEPTH", "MOCO.VIT.HEADS", "MOCO.VIT.P*"),
    "VERSION",
)


def config_root() -> Path:
    """Return the folder of the packaged configs.

    It is ``configs/`` in a checkout and ``moco_d2/configs`` in an installation.
    """
    return shipped_folder("configs", "pretrain/base.yaml")


def find_config(name: str) -> Path:
    """Return the path of the config file `name`.

    The name is tried as a path, then as the file name of a packaged config
    (``voc_C4_moco.yaml``), then as a packaged task and initialization
    (``lvis_v1_FPN_1x_moco_v2_800ep.yaml``). In the last case a temporary file is written that says
    ``_BASE_: [.../task/lvis_v1_FPN_1x.yaml, .../init/moco_v2_800ep.yaml]``. Packaged names are
    case-insensitive.

    Raises:
        UserError: If there is no such file. The message names the closest packaged configs.
    """
    path = expand_home(name)
    if is_regular_file(path):
        return path
    root = config_root()
    packaged = {p.name: p for p in _packaged(root)}
    wanted = path.name if path.suffix == ".yaml" else f"{path.name}.yaml"
    composed = task_configs()
    if (
        path.parent == Path()
        or not is_folder(path.parent)
        or Path(os.path.realpath(path.parent)) == root
    ):
        lower = wanted.lower()
        match = next((known for known in (*packaged, *composed) if known.lower() == lower), None)
        if match in packaged:
            return packaged[match]
        if match in composed:
            return _compose(match, composed[match])
    raise UserError(
        f"there is no config file {name!r}, and no packaged config of this name; "
        + (closest(wanted, packaged | composed) or f"see {root}")
    )


@functools.cache
def _packaged(folder: Path) -> tuple[Path, ...]:
    """Return the configs in a packaged folder, which stay while a process runs, sorted."""
    return tuple(sorted(folder.rglob("*.yaml")))


def packaged_parts(folder: str) -> dict[str, Path]:
    """Return the configs of ``configs/task``, ``init`` or ``pretrain``: name -> file, sorted."""
    return {file.stem: file for file in _packaged(config_root() / folder)}


def task_configs() -> dict[str, tuple[Path, Path]]:
    """Return all fine-tuning configs: ``{task}_{initialization}.yaml`` -> two packaged files."""
    tasks, initializations = (packaged_parts(folder).items() for folder in ("task", "init"))
    return {f"{t}_{i}.yaml": (task, init) for t, task in tasks for i, init in initializations}


@functools.cache
def _composed_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="moco_d2_")  # removed when the process ends


def find_config_of(args: argparse.Namespace) -> Path:
    """Return `find_config` of ``args.config_file``; with ``args.task``, the task combined with it.

    With a task, the file describes only the initialization, as those of configs/init and of
    ``tools/convert.py --emit-config`` do: MODEL.WEIGHTS and what the network and its input need.

    Raises:
        UserError: If there is no such file or task, the file cannot be read, or it sets keys that
            a task sets.
    """
    path = find_config(args.config_file)
    task = getattr(args, "task", None)
    if not task:
        return path
    tasks = packaged_parts("task")
    own = expand_home(task)
    if not is_regular_file(own) and task not in tasks:
        advice = closest(task, tasks) or f"there are {', '.join(tasks)}"
        raise UserError(f"--task: there is no task {task!r:.200}; {advice}")
    try:
        settings = flatten(read_config(path))
    except UNREADABLE as error:
        raise UserError(
            f"config {path}: {' '.join(str(error).split())[:_LONGEST_REASON]}"
        ) from error
    of_task = [k for k in settings if not any(fnmatchcase(k, p) for p in _OF_INITIALIZATION)]
    if of_task:
        raise UserError(
            f"config {path}: it sets {of_task[0]:.200}, which the task of --task sets: remove it, "
            "or leave --task out; with --task, the file names MODEL.WEIGHTS and what its network "
            "needs (tools/convert.py --emit-config writes it)"
        )
    file = own if is_regular_file(own) else tasks[task]
    return _compose(f"{file.stem}_{path.stem}.yaml", (file.absolute(), path.absolute()))


def _compose(name: str, parts: tuple[Path, Path]) -> Path:
    file = Path(_composed_folder().name) / name
    file.write_text(f"_BASE_: [{', '.join(json.dumps(str(part)) for part in parts)}]\n")
    return file


def load_config(
    config_file: str | Path, overrides: list[str] | tuple[str, ...] = (), *, typed: bool = True
) -> Any:
    """Return Detectron2's config merged with a file and ``KEY VALUE`` overrides, not frozen.

    The file is untrusted. It is read once and with limits by safe_yaml.read_config. Tags that would
    build objects are refused. Data that is not on this machine is refused too, in particular
    ``shards:pipe:COMMAND``: it must be named on the command line. A file's MOCO.TRACKERS, which
    would send data away, is left out with a warning.

    Args:
        config_file: A path or a packaged name, see find_config.
        overrides: Words that override the file.
        typed: Whether the user typed the overrides. Otherwise they come from a file and are
            untrusted too.

    Raises:
        UserError: If a key is unknown (the message names the closest key) or does not accept its
            value (see docs/config.md), the number of overrides is odd, the yaml is unreadable, the
            file names data that it may not name, or a DensePose config lacks the project.
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
    if not str(cfg.OUTPUT_DIR).strip():
        where = COMMAND_LINE if "OUTPUT_DIR" in overrides[::2] else f"config {path}"
        raise UserError(f"{where}: OUTPUT_DIR is empty: name a folder")
    settings = flatten(cfg)
    for key, value in settings.items():
        if value is None and known.get(key) is not None:
            raise UserError(f"config {path}: {key} has no value; set one, or remove the key")
        if _is_nan(value):
            where = COMMAND_LINE if key in overrides[::2] else f"config {path}"
            raise UserError(f"{where}: {key} must not be NaN, got {value!r:.80}")
    trusted = overrides[::2] if typed else ()
    if cfg.MOCO.TRACKERS and "MOCO.TRACKERS" not in trusted:
        logger.warning(
            "%s: MOCO.TRACKERS names %s, to which only the command line may send a run; nothing is "
            "sent",
            path,
            ", ".join(cfg.MOCO.TRACKERS),
        )
        cfg.MOCO.TRACKERS = ()
    for key in DATA_KEYS:
        check_data(key, settings[key], f"config {path}", anywhere=key in trusted, suite=not typed)
    return cfg


@functools.cache
def reference_config(task: str) -> Any:
    """Return the packaged config of a task before any scaling; None for a user-defined task."""
    path = config_root() / "task" / f"{task}.yaml"
    return load_config(path) if path.is_file() else None


def load_config_of(args: argparse.Namespace, overrides: Sequence[str] = ()) -> Any:
    """Return `load_config` for the arguments of cli.argument_parser.

    Args:
        args: The parsed arguments; see `find_config_of`. ``--overrides-from-file`` marks overrides
            from a suite.
        overrides: More overrides, which another flag of the command line took.

    Raises:
        UserError: If a key is among both with two values, or as in load_config.
    """
    others = dict(zip(args.opts[::2], args.opts[1::2], strict=False))
    for key, value in zip(overrides[::2], overrides[1::2], strict=False):
        if others.get(key, value) != value:
            raise UserError(
                f"{COMMAND_LINE}: {key} is given as {value:.80} and as {others[key]:.80}; give it "
                "once"
            )
    typed = not getattr(args, "overrides_from_file", False)
    return load_config(find_config_of(args), [*overrides, *args.opts], typed=typed)


def is_typed(key: str, args: argparse.Namespace, overrides: Sequence[str] = ()) -> bool:
    """Return whether the user typed a key; the arguments are those of load_config_of."""
    words = [*overrides[::2], *args.opts[::2]]
    return key in words and not getattr(args, "overrides_from_file", False)


def _check_content(content: dict[str, Any]) -> None:
    """Check the values of a config file's content, and convert them for merging, in place.

    Raises:
        ValueError: If a key does not accept its value.
    """
    for key in (*KEYS, *_PLACES):
        *sections, name = key.split(".")
        node: Any = content
        for section in sections:
            node = node.get(section) if isinstance(node, dict) else None
        if isinstance(node, dict) and node.get(name) is not None:
            node[name] = _read(key, node[name])


def _checked_words(overrides: Sequence[str]) -> list[Any]:
    """Return KEY VALUE pairs of the command line with checked values, converted for merging.

    Raises:
        ValueError: If a key does not accept its value.
    """
    words: list[Any] = []
    for key, word in zip(overrides[::2], overrides[1::2], strict=True):
        words += (key, _read(key, word))
    return words


def _read(key: str, raw: Any) -> Any:
    """Return a checked value in the form that is merged into a config, or `raw` of another key."""
    if key in _PLACES:
        try:
            return repr(Text().read(raw))
        except ValueError as error:
            raise ValueError(f"{key} {error}") from error
    return read_value(key, raw) if key in KEYS else raw


def _is_nan(value: Any) -> bool:
    """Return whether a value or a part of it is NaN. CLIP_GRADIENTS.NORM_TYPE accepts infinity."""
    if isinstance(value, list | tuple):
        return any(map(_is_nan, value))
    return isinstance(value, float) and math.isnan(value)


def _merge_content(content: dict[str, Any], path: Path, cfg: "CfgNode") -> None:
    """Call Detectron2's merge_from_file with the checked content instead of reading the file again.

    Raises:
        KeyError, ValueError, AssertionError and others: If Detectron2 raises them.
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
    """Refuse names of data that are no text, and unless `anywhere`, data of other machines.

    Data of other machines is anything with an address, and shards that a command writes. A pattern
    of shards is checked after its braces, variables and ``::`` are expanded, by the same rule as
    in the reader of shards.

    Args:
        key: One of DATA_KEYS, or a suite's own key.
        value: The decoded value of the key.
        where: The file, for the error.
        anywhere: Whether the data may be on another machine.
        suite: Whether the value comes from a suite, which cannot set the key on a command line.

    Raises:
        UserError: If the data is refused.
    """
    for name in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(name, str):
            raise UserError(f"{where}: {key} must name data as text, got {name!r:.80}")
        if anywhere:
            continue
        refused = name if "://" in name else None
        if name.startswith(SHARDS_PREFIX):
            try:
                refused = first_command(name.removeprefix(SHARDS_PREFIX))
            except ValueError as error:
                raise UserError(
                    f"{where}: {key} {name!r:.200} cannot be expanded: {error}"
                ) from error
        if refused:
            advice = f"read it, and set {key} on the command line"
            if suite:
                advice = "copy the data to files or shards on this machine and name these"
                if key in DATA_KEYS:
                    pretext = name.startswith(SHARDS_PREFIX) or key.startswith("MOCO.")
                    tool = "pretrain" if pretext else "train_net"
                    advice += (
                        f", or run tools/{tool}.py without a suite and set {key} on its command "
                        "line"
                    )
            raise UserError(
                f"{where}: {key} would run or fetch {refused!r:.200}, which a file may not do: "
                f"{advice}"
            )


def packaged_hint(error: OSError) -> str:
    """Return a hint at the packaged config with the name of a missing file, or empty text."""
    name = Path(str(error.filename)).name
    if not isinstance(error, FileNotFoundError) or not name:
        return ""
    packaged = next((p for p in _packaged(config_root()) if p.name == name), None)
    return f"; the packaged one is {packaged.absolute()}" if packaged else ""


def _unknown_key(key: str, cfg: "CfgNode") -> str:
    name, hint = " ".join(str(key).split()), closest(key, flatten(cfg))
    if "." in key and has_key(cfg, key):  # a key of a file, where yaml has no dotted keys
        *sections, last = key.split(".")
        nested = ": {".join([*sections, f"{last}: VALUE"]) + "}" * len(sections)
        return f"{name:.200} is written with dots: write its sections, {nested}"
    return f"unknown config key {name:.200}; {f'{hint} ' if hint else ''}see {PAGE}"


def _explain(error: Exception, cfg: "CfgNode") -> str:
    """Return an error of yacs or yaml, shortened to a sentence."""
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
