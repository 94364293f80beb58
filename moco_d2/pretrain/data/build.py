"""Build the training data and the views of a pretraining config."""

import os
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from moco_d2.config.shard_patterns import SHARDS_PREFIX
from moco_d2.errors import UserError
from moco_d2.files import expand_home
from moco_d2.pixel_values import check_range
from moco_d2.pretrain.augmentation.batched import DeviceAugmentation
from moco_d2.pretrain.augmentation.normalization import Normalization
from moco_d2.pretrain.augmentation.views import (
    AUGMENTATIONS,
    SECOND_VIEW,
    build_augmentation,
    build_crop,
)
from moco_d2.pretrain.data.image_list import take_fraction, with_range
from moco_d2.pretrain.data.listed_stream import ListedData
from moco_d2.pretrain.data.sharded_stream import ShardedData
from moco_d2.pretrain.data.shards import first_files, list_shards
from moco_d2.pretrain.data.sources import list_source
from moco_d2.pretrain.data.stream import TrainingData, ViewMaker


def build_training_data(cfg: CfgNode, *, rank: int = 0, world_size: int = 1) -> TrainingData:
    """Build the stream of batches of one process, from ``cfg.DATASETS.TRAIN`` and ``cfg.MOCO``.

    Raises:
        UserError: If the config does not name exactly one dataset, the dataset is missing, empty or
            smaller than a batch, supervised pretraining has no labels, or the number of processes
            does not divide the batch.
    """
    names = cfg.DATASETS.TRAIN
    if len(names) != 1:
        raise UserError(
            f"DATASETS.TRAIN must name one dataset, got {len(names)}: set it to path/to/images"
        )
    _check_output(cfg)
    stream = {
        **build_views(cfg),
        "total_batch": cfg.SOLVER.IMS_PER_BATCH,
        "rank": rank,
        "world_size": world_size,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }
    value_range = cfg.MOCO.INPUT.RANGE
    label_problem = ""
    if names[0].startswith(SHARDS_PREFIX):
        if cfg.MOCO.DATA.SHARE != 1:
            raise UserError(
                f"MOCO.DATA.SHARE must be 1 for shards, got {cfg.MOCO.DATA.SHARE}: set it to 1, or "
                "name fewer shards"
            )
        pattern = names[0].removeprefix(SHARDS_PREFIX)
        shards = list_shards(
            pattern,
            num_images=cfg.MOCO.DATA.SHARD_IMAGES,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )
        label_problem = f" ({shards.label_problem})" if shards.label_problem else ""
        problem = check_range(first_files(shards), value_range, dataset=shards.urls[0])
        if problem:
            raise UserError(problem)
        data: TrainingData = ShardedData(
            shards, shuffle=cfg.MOCO.DATA.SHARD_SHUFFLE, value_range=value_range, **stream
        )
    else:
        images = take_fraction(list_source(names[0]), cfg.MOCO.DATA.SHARE)
        label_problem = f" ({images.label_problem})" if images.label_problem else ""
        data = ListedData(with_range(images, value_range, dataset=names[0]), **stream)
    if cfg.MOCO.PRETEXT == "supervised" and len(data.classes) == 1:
        raise UserError(
            f"supervised pretraining needs several classes, but {names[0]} has only "
            f"{data.classes[0]}: give a folder with one folder per class"
        )
    if cfg.MOCO.PRETEXT == "supervised" and not data.classes:
        raise UserError(
            f"supervised pretraining needs labels, but {names[0]} has none"
            f"{label_problem}: give a folder with one folder per class, a list with labels, or "
            "counted shards with a .cls for every image"
        )
    return data


def _check_output(cfg: CfgNode) -> None:
    """
    Raises:
        UserError: If OUTPUT_DIR is in a folder of images. The next run would take the images that
            this one draws for images of the set.
    """
    output = Path(os.path.realpath(expand_home(cfg.OUTPUT_DIR)))
    knn = cfg.MOCO.KNN
    folders = {
        "DATASETS.TRAIN": cfg.DATASETS.TRAIN[0],
        "MOCO.KNN.TRAIN": knn.TRAIN,
        "MOCO.KNN.TEST": knn.TEST,
    }
    for key, name in folders.items():
        folder = expand_home(name)
        if name and folder.is_dir() and output.is_relative_to(os.path.realpath(folder)):
            raise UserError(
                f"OUTPUT_DIR {cfg.OUTPUT_DIR} is in {key} {name}, and the images that the run "
                "writes there would become images of the set: choose a folder elsewhere"
            )


def build_views(cfg: CfgNode) -> dict[str, Any]:
    """Return the arguments of TrainingData for the augmentation on workers and on the device."""
    augmentation = cfg.MOCO.AUGMENTATION
    size, scale, sigma = augmentation.SIZE, augmentation.CROP_SCALE, augmentation.BLUR_SIGMA
    names = view_names(cfg)
    image_bytes = len(names) * 3 * size**2
    seed = max(cfg.SEED, 0)  # a negative SEED means a random one, as in Detectron2
    recipes = {"query": AUGMENTATIONS[augmentation.NAME]}
    if augmentation.NAME in SECOND_VIEW:
        recipes["key"] = SECOND_VIEW[augmentation.NAME]
    if augmentation.WHERE == "workers":
        transforms = {
            view: build_augmentation(recipe, size=size, crop_scale=scale, blur_sigma=sigma)
            for view, recipe in recipes.items()
        }
        return {
            "make_views": ViewMaker(transforms.pop("query"), names, seed, transforms),
            "image_bytes": image_bytes,
            "device_augmentation": Normalization(),
        }
    on_device = {
        view: DeviceAugmentation(recipe, blur_sigma=sigma) for view, recipe in recipes.items()
    }
    return {
        "make_views": ViewMaker(build_crop(size=size, crop_scale=scale), names, seed),
        "image_bytes": image_bytes,
        "device_augmentation": on_device.pop("query"),
        "other_device_augmentations": on_device,
    }


def view_names(cfg: CfgNode) -> tuple[str, ...]:
    """Return the names of the views that a step needs of each image."""
    if cfg.MOCO.PRETEXT == "supervised":
        return ("query",)
    if cfg.MOCO.PRETEXT == "mocov3":
        return ("query", "key")
    # A memory bank needs no key view, unless the loss is symmetric and uses it as a query.
    one_view = cfg.MOCO.DICTIONARY.NAME == "MemoryBank" and not cfg.MOCO.SYMMETRIC
    return ("query",) if one_view else ("query", "key")
