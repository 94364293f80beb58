"""Labeled class folders, and the features of their images.

Legend: N batch, M images, D feature width.
"""

import array
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from moco_d2.engine.loader import build_loader
from moco_d2.engine.seeding import Purpose, derive_seed
from moco_d2.errors import UserError, as_raised
from moco_d2.pixel_values import ValueRange
from moco_d2.pretrain.augmentation.views import IMAGENET_MEAN, IMAGENET_STD
from moco_d2.pretrain.data.image_list import ImageList, same_files, with_range
from moco_d2.pretrain.data.sources import list_images, share_images
from moco_d2.pretrain.data.stream import ViewMaker

_VIEW = "image"

Features = tuple[Tensor, Tensor]  # features of M images and their labels (M,)


def list_labeled(
    root: str | Path, val: str | Path | None = None, *, value_range: ValueRange = ()
) -> tuple[ImageList, ImageList]:
    """List the training images and the validation images of a dataset.

    They are in ``root/{train,val}/CLASS/*``, or with `val` in ``root/CLASS/*`` and ``val/CLASS/*``.

    Raises:
        UserError: If a folder is missing, empty or without class folders, the classes differ, one
            folder contains the other, or the range of the values is not known.
    """
    root = Path(root).expanduser()
    folders = (root / "train", root / "val") if val is None else (root, Path(val).expanduser())
    if share_images(*folders):
        raise UserError(
            f"{folders[0]} and {folders[1]} hold the same images, and an accuracy on training "
            "images says nothing: choose another folder"
        )
    splits = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"folder {folder} does not exist: --data is a folder with train/ and val/, each "
                "with one folder per class; with --val, --data itself has the training classes"
            )
        images = list_images(folder)
        if images.labels is None:
            raise UserError(
                f"{folder} has images without class folders: make one folder per class in it"
            )
        splits.append(with_range(images, value_range, dataset=str(folder)))
    train, val_images = splits
    both = same_files(val_images, train)
    if both:
        raise UserError(
            f"{len(both)} of the {len(val_images)} images in {folders[1]} are also in "
            f"{folders[0]}, first {both[0]}: remove them from one"
        )
    if train.classes != val_images.classes:
        differ = sorted(set(train.classes) ^ set(val_images.classes))
        raise UserError(
            f"{folders[0]} and {folders[1]} have different class folders "
            f"({', '.join(differ[:5])}): make the same class folders in both"
        )
    if len(train.classes) < 2:
        raise UserError(
            f"{folders[0]} has one class, {train.classes[0]}, so every image would be right: make "
            "one folder per class in it"
        )
    return train, val_images


def state_of_files(*splits: ImageList) -> str:
    """Return a fingerprint of the sizes and the times of change of all image files.

    Raises:
        UserError: If a file is missing, is a link to nothing, or is empty. Each image counts here,
            so the evaluation would end at it after hours.
    """
    content = hashlib.sha256()
    unusable: list[tuple[str, str]] = []
    for path in itertools.chain.from_iterable(split.paths for split in splits):
        try:
            status = os.stat(path)  # noqa: PTH116 - for 10 M names
        except OSError as error:
            unusable.append((path, error.strerror or "it cannot be found"))
            continue
        if not status.st_size:
            unusable.append((path, "it is empty"))
        content.update(array.array("q", (status.st_size, status.st_mtime_ns)))
    if unusable:
        path, why = unusable[0]
        raise UserError(
            f"{len(unusable)} images cannot be read, first {path} ({why}), and an accuracy counts "
            "every image: replace or remove them"
        )
    return content.hexdigest()


def build_training_transform(size: int) -> v2.Transform:
    """Return a transform: PIL image -> random crop (3, size, size), flipped at random."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


class LabeledImages(Dataset[Any]):
    """(position, index) -> a view of image `index`, and its label.

    The random numbers of the view depend on `position`, which is the index if there is no tuple. An
    image that cannot be decoded is an
    error, because skipping it would change the accuracy.
    """

    def __init__(self, images: ImageList, transform: v2.Transform, *, seed: int):
        self.images = images
        self.view = ViewMaker(transform, names=(_VIEW,), seed=seed)

    def __getitem__(self, key: tuple[int, int] | int) -> tuple[Tensor, int]:
        position, index = key if isinstance(key, tuple) else (key, key)
        view = self.view(self.images.read(index), position)[_VIEW]
        return view, self.images.label(index)


class Epochs(Sampler[list[tuple[int, int]]]):
    """Batches of (position, index) for one process, from an iteration to the end of training.

    The last batch of an epoch may be smaller, as in the official code. An epoch is extended to a
    multiple of the number of processes by repeating its first images.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        epochs: int,
        *,
        seed: int,
        rank: int,
        world_size: int,
    ):
        self.length = -(-num_images // world_size) * world_size
        self.iterations_per_epoch = -(-self.length // batch_size)
        self.num_images, self.batch_size, self.epochs = num_images, batch_size, epochs
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.start_iteration = 0

    def order(self, epoch: int) -> Tensor:
        """Return the image indices of an epoch over all processes, (length,)."""
        seed = derive_seed(Purpose.ORDER, self.seed, epoch)
        order = torch.randperm(self.num_images, generator=torch.Generator().manual_seed(seed))
        return torch.cat([order, order])[: self.length] if self.length > len(order) else order

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first, skipped = divmod(self.start_iteration, self.iterations_per_epoch)
        for epoch in range(first, self.epochs):
            keys = list(enumerate(self.order(epoch).tolist(), start=epoch * self.length))
            starts = range(0, self.length, self.batch_size)
            for start in starts[skipped if epoch == first else 0 :]:
                yield keys[start : start + self.batch_size][self.rank :: self.world_size]


def evaluation_loader(
    images: ImageList,
    transform: v2.Transform,
    *,
    batch_size: int,
    num_workers: int,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Any]:
    """Return a loader of (views (N, 3, H, W), labels (N,)) in the order of the list.

    With several processes, it has every `world_size`-th image, from image `rank` on.
    """
    return build_loader(
        LabeledImages(images, transform, seed=seed),
        sampler=range(rank, len(images), world_size),
        batch_size=batch_size,
        num_workers=num_workers,
    )


@torch.no_grad()
def extract(
    encode: Callable[[Tensor], Tensor],
    loader: Iterable[Any],
    *,
    device: torch.device | str,
    store_on: torch.device | str,
) -> Features:
    """Return the features and labels of all images of a loader.

    Args:
        encode: images (N, 3, H, W) -> features (N, D).
        loader: The images; see `evaluation_loader`.
        device: The device on which `encode` runs.
        store_on: The device of the result.

    Raises:
        UserError: If an image cannot be decoded.
    """
    features, labels = [], []
    try:
        for images, label in loader:
            features.append(encode(images.to(device, non_blocking=True)).to(store_on))
            labels.append(label.to(store_on))
    except UserError as error:
        raise as_raised(error) from error
    return torch.cat(features), torch.cat(labels)
