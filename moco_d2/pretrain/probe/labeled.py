"""Labeled class folders for evaluating a network by classification.

Legend: N batch.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from moco_d2.engine.loader import build_loader
from moco_d2.engine.seeding import Purpose, derive_seed
from moco_d2.errors import UserError
from moco_d2.pretrain.augmentation.views import IMAGENET_MEAN, IMAGENET_STD
from moco_d2.pretrain.data.images import read_image
from moco_d2.pretrain.data.sources import ImageList, list_images, share_images
from moco_d2.pretrain.data.stream import ViewMaker

_VIEW = "image"


def list_labeled(root: str | Path, val: str | Path | None = None) -> tuple[ImageList, ImageList]:
    """The training and validation images of ``root/{train,val}/CLASS/*``; with `val`, of
    ``root/CLASS/*`` and ``val/CLASS/*``.

    Raises:
        UserError: a folder is missing, empty or without class folders, the classes differ, or one
            folder is, or is in, the other.
    """
    root = Path(root).expanduser()
    folders = (root / "train", root / "val") if val is None else (root, Path(val).expanduser())
    if share_images(*folders):
        raise UserError(
            f"{folders[0]} and {folders[1]} hold the same images; an accuracy on those that were "
            "trained on says nothing: name others"
        )
    splits = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"there is no folder {folder}; --data names the folder that holds train/ and "
                "val/, each with one folder a class, or with --val the first of the two itself"
            )
        images = list_images(folder)
        if images.labels is None:
            raise UserError(
                f"{folder} holds images without class folders; make one folder a class in it"
            )
        splits.append(images)
    train, val_images = splits
    if train.classes != val_images.classes:
        differ = sorted(set(train.classes) ^ set(val_images.classes))
        raise UserError(
            f"{folders[0]} and {folders[1]} differ in their class folders "
            f"({', '.join(differ[:5])}): make the same ones in both"
        )
    return train, val_images


def build_training_transform(size: int) -> v2.Transform:
    """A transform from a PIL image to a random crop, flipped or not: (3, size, size)."""
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
    """(position, index) -> a view of image `index`, drawn with the randomness of `position`, and
    its label.

    An image that does not decode is an error: an accuracy without it is another one.
    """

    def __init__(self, images: ImageList, transform: v2.Transform, *, seed: int):
        self.images = images
        self.view = ViewMaker(transform, names=(_VIEW,), seed=seed)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        position, index = key
        view = self.view(read_image(self.images.paths[index]), position)[_VIEW]
        return view, self.images.label(index)


class Epochs(Sampler[list[tuple[int, int]]]):
    """Batches of (position, index) for one process, from an iteration to the end of training.

    The last batch of an epoch may be smaller, as in the official code. An epoch is filled up from
    its start to a multiple of the number of processes, so that all have equal shares.
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
        """The images of an epoch over all processes, (length,)."""
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
    images: ImageList, transform: v2.Transform, *, batch_size: int, num_workers: int, seed: int = 0
) -> DataLoader[Any]:
    """This process' part of the images, in order; (view (N, 3, H, W), label (N,))."""
    indices = range(comm.get_rank(), len(images), comm.get_world_size())
    return build_loader(
        LabeledImages(images, transform, seed=seed),
        sampler=[(index, index) for index in indices],
        batch_size=batch_size,
        num_workers=num_workers,
    )
