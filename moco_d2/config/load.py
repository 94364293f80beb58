"""Our keys in Detectron2's config, all under ``cfg.MOCO``, and how a config file is found.

Keys of Detectron2 that pretraining uses with their usual meaning: DATASETS.TRAIN,
DATALOADER.NUM_WORKERS, SOLVER.{IMS_PER_BATCH, BASE_LR, MOMENTUM, WEIGHT_DECAY, GAMMA,
CHECKPOINT_PERIOD, AMP.ENABLED}, MODEL.DEVICE, SEED, OUTPUT_DIR. Numbers without another source are
the defaults of the official code's main_moco.py.
"""

import argparse
import functools
import itertools
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

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
from moco_d2.files import PACKAGE, sha256_of_json

_LONGEST_REASON = 400  # characters of another library's error

#: What may differ between two runs of one task without making them unmatched.
FREE_KEYS = ("MODEL.WEIGHTS", "SEED", "OUTPUT_DIR")
#: Keys that name data, which is opened, or with ``pipe:`` what writes it, which is run.
DATA_KEYS = ("DATASETS.TRAIN", "DATASETS.TEST", "MOCO.KNN.TRAIN", "MOCO.KNN.TEST")


def add_moco_config(cfg: Any) -> None:  # noqa: PLR0915 - a list of keys
    """Add ``cfg.MOCO`` to a Detectron2 config, in place. Does nothing if it is there already."""
    if "MOCO" in cfg:
        return
    CN = type(cfg)
    cfg.MOCO = CN()

    # ---- pretraining and fine-tuning -------------------------------------------------------------
    # Number type of autocast when SOLVER.AMP.ENABLED: "bfloat16", or "float16" with scaled
    # gradients.
    cfg.MOCO.AMP_DTYPE = "bfloat16"
    # Forward and backward passes a step: each has SOLVER.IMS_PER_BATCH / ACCUMULATION images, over
    # all processes. BatchNorm, and EndToEnd's negatives, are those of one pass; the optimizer, the
    # key encoder and the dictionary change once a step, with the keys of all.
    cfg.MOCO.ACCUMULATION = 1

    # ---- fine-tuning -----------------------------------------------------------------------------
    # Name of the task in run records and tables ("voc_C4"). Set by configs/task/*.yaml.
    cfg.MOCO.TASK = ""
    # How VOC detections are evaluated: "compatible", Detectron2's numbers bit for bit, as in the
    # paper (scores rounded to 3 decimals, boxes to 0.1 pixels), or "exact" (nothing rounded, and
    # the same result in whatever order and on however many processes the images are evaluated).
    cfg.MOCO.VOC_EVALUATION = "compatible"
    # Semantic segmentation: smallest and largest ratio by which a training image is scaled before
    # INPUT.CROP. (): INPUT.MIN_SIZE_TRAIN counts, as in detection.
    cfg.MOCO.RANDOM_SCALE = ()
    # Lowest score of a detection that --predict draws.
    cfg.MOCO.DRAW_SCORE = 0.5

    # ---- pretraining -----------------------------------------------------------------------------
    # "moco", or "supervised": the same network, images and schedule with labels, the matched
    # baseline.
    cfg.MOCO.PRETEXT = "moco"
    # Length in epochs; 0 means SOLVER.MAX_ITER iterations.
    cfg.MOCO.EPOCHS = 200
    # Images a step for which SOLVER.BASE_LR and all numbers of iterations (SOLVER.MAX_ITER and
    # CHECKPOINT_PERIOD, MOCO.LR_STEP_EVERY and KNN.PERIOD) are given. At another
    # SOLVER.IMS_PER_BATCH the rate is scaled with it, and the iterations inversely (official
    # README: lr 0.015 at batch 128). 0: they are taken as they stand.
    cfg.MOCO.REFERENCE_BATCH = 0
    # "step" (x SOLVER.GAMMA at MOCO.LR_STEPS) or "cosine" (half a period, to 0), both set once an
    # epoch; or "step_every" (x SOLVER.GAMMA every MOCO.LR_STEP_EVERY iterations).
    cfg.MOCO.LR_SCHEDULE = "step"
    # Epochs at which the step schedule decays.
    cfg.MOCO.LR_STEPS = (120, 160)
    # Iterations between two decays of "step_every".
    cfg.MOCO.LR_STEP_EVERY = 0
    # Epochs, or parts of one, in which the rate rises from SOLVER.WARMUP_FACTOR of it to all of it.
    # None in the paper; wanted for batches far beyond the recipe's.
    cfg.MOCO.WARMUP_EPOCHS = 0.0
    # Momentum m of the key encoder, paper eq. 2.
    cfg.MOCO.MOMENTUM = 0.999
    # Temperature of the contrastive loss, paper eq. 1.
    cfg.MOCO.TEMPERATURE = 0.07
    # Each view is query once and key once; the loss is the sum of both directions (authors' CIFAR
    # demo). A step costs twice as much.
    cfg.MOCO.SYMMETRIC = False
    # Memory format of the convolutions; faster wherever it was measured, the numbers agree to
    # rounding.
    cfg.MOCO.CHANNELS_LAST = True
    # torch.compile the encoders: minutes at the start, faster steps on a GPU.
    cfg.MOCO.COMPILE = False

    cfg.MOCO.ENCODER = CN()
    # torchvision's name: resnet18, resnet34, resnet50, resnet101, resnet152.
    cfg.MOCO.ENCODER.ARCH = "resnet50"
    # torchvision's width_per_group, Detectron2's MODEL.RESNETS.WIDTH_PER_GROUP. Bottleneck networks
    # only.
    cfg.MOCO.ENCODER.WIDTH_PER_GROUP = 64
    # Groups of the 3x3 convolutions, Detectron2's MODEL.RESNETS.NUM_GROUPS: ResNeXt-50 32x8d is
    # resnet50 with GROUPS 32 and WIDTH_PER_GROUP 8.
    cfg.MOCO.ENCODER.GROUPS = 1
    # Multiplies every number of channels: 2 and 4 are the paper's R50w2x and R50w4x.
    cfg.MOCO.ENCODER.WIDTH_FACTOR = 1
    # A 3x3 stem without pooling, for images of 32 pixels (authors' CIFAR demo); Detectron2 has no
    # such network.
    cfg.MOCO.ENCODER.SMALL_STEM = False
    # Dimension C of the embedding.
    cfg.MOCO.ENCODER.DIM = 128
    # Two-layer projection head (v2) instead of a linear one (v1).
    cfg.MOCO.ENCODER.MLP = False

    cfg.MOCO.CHECKPOINT = CN()
    # Checkpoints to keep beside the final one: the last N; 0 keeps all. A ResNet-50's has 0.4 GB.
    cfg.MOCO.CHECKPOINT.KEEP_LAST = 2
    # And every M-th of those that SOLVER.CHECKPOINT_PERIOD makes, for good; 0: none.
    cfg.MOCO.CHECKPOINT.KEEP_EVERY = 0
    # Parts that begin anew at --resume, because their size was changed: "queue", "head".
    cfg.MOCO.CHECKPOINT.REINITIALISE = ()

    cfg.MOCO.DICTIONARY = CN()
    # Where the keys come from (paper Figure 2): "Queue" (MoCo), "MemoryBank" or "EndToEnd".
    cfg.MOCO.DICTIONARY.NAME = "Queue"
    # Number of keys K. Queue: that it holds. MemoryBank: negatives drawn from it a step; it holds
    # one key an image. EndToEnd: not used, the keys are those of the batch. 0: the paper's 65536,
    # or fewer for a dataset of less than 0.8 million images, so that few of an image's negatives
    # are the image itself.
    cfg.MOCO.DICTIONARY.SIZE = 65536
    # MemoryBank: share of the old representation in the new one (InstDisc's 0.5).
    cfg.MOCO.DICTIONARY.BANK_MOMENTUM = 0.5

    # Groups that BatchNorm's batch is split into on one process, so that ShuffleBN works there:
    # each group has statistics of its own, as each GPU has. 1 on several processes; 8 reproduces
    # the paper's 8 GPUs on one device. 0: chosen so, 32 images a group where the batch allows.
    cfg.MOCO.BN_SPLITS = 1

    cfg.MOCO.AUGMENTATION = CN()
    # "v1" (InstDisc) or "v2" (with blur).
    cfg.MOCO.AUGMENTATION.NAME = "v1"
    # "workers": all of it on the CPU workers, with torchvision. "device": they crop, and the rest
    # is done on MODEL.DEVICE for the whole batch, with kornia: for few CPU cores a GPU.
    cfg.MOCO.AUGMENTATION.WHERE = "workers"
    # Side of a view, pixels.
    cfg.MOCO.AUGMENTATION.SIZE = 224
    # Area of the random crop as a share of the image.
    cfg.MOCO.AUGMENTATION.CROP_SCALE = (0.2, 1.0)
    # Range of the blur's sigma, pixels; v2 only.
    cfg.MOCO.AUGMENTATION.BLUR_SIGMA = (0.1, 2.0)

    cfg.MOCO.DATA = CN()
    # Share of the images that are used, for comparing sizes of one dataset: drawn at random, but
    # the same in every run, and smaller shares lie within larger ones. Not for shards.
    cfg.MOCO.DATA.SHARE = 1.0
    # Share of the images that may be unreadable. They are skipped and named; more of them stop the
    # run.
    cfg.MOCO.DATA.MAX_UNREADABLE = 0.01
    # Images in a set of tar shards ("shards:data/{0000..0099}.tar", or "shards:pipe:COMMAND", which
    # runs a shell command), of which every shard is taken to hold an equal part. 0: count them in
    # the files, which must be local; the workers of all processes do.
    cfg.MOCO.DATA.SHARD_IMAGES = 0
    # Images of a shard set that a worker holds, undecoded, and shuffles together. The shards' order
    # is shuffled too; 0 leaves the order inside them alone.
    cfg.MOCO.DATA.SHARD_SHUFFLE = 1000

    cfg.MOCO.KNN = CN()
    # Class folders whose features are compared: a labelled set to search in and one to classify. ""
    # turns it off.
    cfg.MOCO.KNN.TRAIN = ""
    cfg.MOCO.KNN.TEST = ""
    # Epochs between two evaluations; 0: MOCO.KNN.PERIOD counts.
    cfg.MOCO.KNN.EPOCHS = 0
    # Iterations between two evaluations; 0: only at the start and at the end.
    cfg.MOCO.KNN.PERIOD = 0
    # Neighbours and temperature of the weighted vote (authors' CIFAR demo: 200 and 0.1).
    cfg.MOCO.KNN.NEIGHBOURS = 200
    cfg.MOCO.KNN.TEMPERATURE = 0.1

    cfg.MOCO.MONITOR = CN()
    # Lowest and highest loss that the recipe ends with, as published for its dataset and dictionary
    # size; a warning says where a run ends outside. (): none is known.
    cfg.MOCO.MONITOR.EXPECTED_LOSS = ()
    # Test images of the sheet OUTPUT_DIR/neighbours/*.png: each with its nearest training images,
    # at every kNN evaluation. 0: no sheet.
    cfg.MOCO.MONITOR.NEIGHBOURS = 8


def config_root() -> Path:
    """The folder of the packaged configs: ``configs/`` of a checkout, ``moco_d2/configs`` of an
    installation.
    """
    checkout = PACKAGE.parent / "configs"
    return checkout if checkout.is_dir() else Path(str(resources.files("moco_d2") / "configs"))


def find_config(name: str) -> Path:
    """The config file `name`: a path that exists, else a packaged one by file name
    (``voc_C4_moco.yaml``), else a task and an initialisation of the packaged ones, composed
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
    """Every fine-tuning run by name, ``{task}_{initialisation}.yaml``, as the two packaged files
    that it consists of.
    """
    folders = (sorted((config_root() / name).glob("*.yaml")) for name in ("task", "init"))
    return {f"{t.stem}_{i.stem}.yaml": (t, i) for t, i in itertools.product(*folders)}


@functools.cache
def _composed_folder() -> tempfile.TemporaryDirectory:
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
        UserError: unknown key (names the closest), wrong type, odd number of overrides, unreadable
            yaml, data that a file may not name, or a DensePose config without the project.
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
        cfg.merge_from_list(list(overrides))
    except UNREADABLE as error:
        unknown = next((k for k in overrides[::2] if not has_key(cfg, k)), None)
        if unknown is not None:
            raise UserError(_unknown_key(unknown, cfg)) from error
        raise UserError(f"override on the command line: {_explain(error, cfg)}") from error
    settings = flatten(cfg)
    for key, value in settings.items():
        if value is None and known.get(key) is not None:
            raise UserError(f"config {path}: {key} has no value; give one, or leave it out")
    own = overrides[::2] if typed else ()
    for key in DATA_KEYS:
        check_data(key, settings[key], f"config {path}", anywhere=key in own, suite=not typed)
    return cfg


def load_config_of(args: argparse.Namespace, overrides: Sequence[str] = ()) -> Any:
    """`load_config` of the words of launch.argument_parser.

    Args:
        args: the parsed words; those of a suite say so with ``--overrides-from-file``.
        overrides: come before those in `args`.
    """
    typed = not getattr(args, "overrides_from_file", False)
    return load_config(args.config_file, [*overrides, *args.opts], typed=typed)


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


def has_key(cfg: Any, dotted: str) -> bool:
    """Whether ``cfg`` has the key ``A.B.C``."""
    node = cfg
    for part in dotted.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """A config as ``{"MODEL.WEIGHTS": value, ...}``."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def to_plain(cfg: Any) -> dict[str, Any]:
    """A config as nested dicts of JSON types (tuples become lists, NaN and infinity become
    strings).
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        return value

    return plain(cfg)


def matched_sha256(resolved: Mapping[str, Any]) -> str:
    """Fingerprint of a plain config (to_plain) without FREE_KEYS: equal for matched runs."""

    def without(node: Any, path: Sequence[str]) -> Any:
        if not isinstance(node, Mapping):
            return node
        return {
            key: without(value, path[1:]) if key == path[0] else value
            for key, value in node.items()
            if [key] != path
        }

    rest: Any = resolved
    for dotted in FREE_KEYS:
        rest = without(rest, dotted.split("."))
    return sha256_of_json(rest)


def packaged_hint(error: OSError) -> str:
    """For a file that is not there, as the end of a sentence: the packaged config of that name."""
    name = Path(str(error.filename)).name
    if not isinstance(error, FileNotFoundError) or not name:
        return ""
    packaged = next((p for p in sorted(config_root().rglob("*.yaml")) if p.name == name), None)
    return f"; the packaged one is {packaged.absolute()}" if packaged else ""


def _unknown_key(key: str, cfg: Any) -> str:
    return f"unknown config key {' '.join(str(key).split()):.200}; " + (
        closest(key, flatten(cfg)) or "see moco_d2/config/load.py and Detectron2's defaults"
    )


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
