"""Images for pretraining: class folders or flat folders, an endless resumable order, two views of
one decode.

Every random choice follows from (seed, position in the stream of samples): not from the worker that
made it, nor from when. So a resumed run sees what an uninterrupted one would, with any number of
workers.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from moco_d2.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})


@dataclasses.dataclass(frozen=True)
class ImageList:
    """Files, and what class folder each lies in.

    Attributes:
        paths: image files.
        labels: class index of each, or None for a flat folder.
        classes: names of the class folders, sorted; empty for a flat folder.
    """

    paths: list[str]
    labels: list[int] | None
    classes: list[str]

    def __len__(self) -> int:
        return len(self.paths)


def list_images(folder: str | Path) -> ImageList:
    """The images of a class folder (``folder/class/**/x.jpg``) or of a flat one (``folder/x.jpg``).

    Raises:
        UserError: no such folder, no image in it, or both kinds at once.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(
            f"dataset folder {folder} does not exist; give a folder of images, or of one folder "
            "a class"
        )

    def images(where: Iterator[Path]) -> list[str]:
        return sorted(str(p) for p in where if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())

    flat = images(root.iterdir())
    paths: list[str] = []
    labels: list[int] = []
    classes: list[str] = []
    for class_folder in sorted(p for p in root.iterdir() if p.is_dir()):
        found = images(class_folder.rglob("*"))
        if found:
            paths += found
            labels += [len(classes)] * len(found)
            classes.append(class_folder.name)
    if flat and paths:
        raise UserError(
            f"{folder} holds images ({Path(flat[0]).name}) beside class folders ({classes[0]}): "
            "move the ones into a class, or the others out"
        )
    if flat:
        return ImageList(flat, None, [])
    if not paths:
        raise UserError(
            f"no images in {folder}; looked for {', '.join(sorted(IMAGE_SUFFIXES))} in it and in "
            "its class folders"
        )
    return ImageList(paths, labels, classes)


def list_training_images(cfg) -> ImageList:
    """The images named by DATASETS.TRAIN, checked against what the run needs of them.

    Raises:
        UserError: no folder named, labels missing for supervised pretraining, fewer images than a
            batch.
    """
    names = cfg.DATASETS.TRAIN
    if len(names) != 1:
        raise UserError(
            "pretraining reads one folder: set DATASETS.TRAIN \"('path/to/images',)\""
            f" (it names {len(names)} now)"
        )
    if cfg.SOLVER.IMS_PER_BATCH < 1:
        raise UserError(f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is no batch")
    images = list_images(names[0])
    if cfg.MOCO.PRETEXT == "supervised" and images.labels is None:
        raise UserError(
            f"supervised pretraining needs labels, and {names[0]} is a flat folder: make one "
            "folder a class in it"
        )
    if len(images) < cfg.SOLVER.IMS_PER_BATCH:
        raise UserError(
            f"{names[0]} has {len(images)} images, less than one batch of "
            f"{cfg.SOLVER.IMS_PER_BATCH}: "
            "set a smaller SOLVER.IMS_PER_BATCH"
        )
    return images


def read_image(path: str) -> Image.Image:
    """Decode an image file to RGB.

    Raises:
        UserError: it does not decode; names the file.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    # Pillow raises whatever a damaged file's bytes happen to mean: OSError, SyntaxError,
    # struct.error, DecompressionBombError, ...
    except Exception as error:
        raise UserError(f"image {path} does not decode ({error}); remove or replace it") from error


class Views(Dataset):
    """(position, index) -> the views of image `index`, drawn with the randomness of `position`."""

    def __init__(self, images: ImageList, transform, *, names: tuple[str, ...], seed: int):
        """
        Args:
            images: what to read.
            transform: PIL image -> tensor (3, H, W), randomised by torch's CPU generator.
            names: one view a name, ``("query", "key")``.
            seed: of the run.
        """
        self.images = images
        self.transform = transform
        self.names = names
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor | int]:
        position, index = key
        image = read_image(self.images.paths[index])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self.seed, position)))
            sample = {name: self.transform(image) for name in self.names}
        if self.images.labels is not None:
            sample["label"] = self.images.labels[index]
        return sample


class EndlessBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (position, index) for one process: every epoch a new order, the last partial batch
    dropped.

    Position counts samples of all processes since the start of training; iteration i holds
    positions [i * total batch, (i + 1) * total batch), of which this process takes its share.
    """

    def __init__(
        self,
        size: int,
        total_batch: int,
        *,
        seed: int,
        start_iteration: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        """
        Args:
            size: number of images.
            total_batch: images a step over all processes.
            start_iteration: the iteration to begin with.

        Raises:
            UserError: the batch does not divide among the processes.
        """
        if total_batch % world_size:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH {total_batch} does not divide among {world_size} processes"
            )
        self.size = size
        self.total_batch = total_batch
        self.seed = seed
        self.start_iteration = start_iteration
        self.rank = rank
        self.share = total_batch // world_size

    @property
    def iterations_per_epoch(self) -> int:
        """Full batches in one pass over the images."""
        return self.size // self.total_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, step = divmod(self.start_iteration, self.iterations_per_epoch)
        while True:
            generator = torch.Generator().manual_seed(hash((self.seed, epoch)) & (2**63 - 1))
            order = torch.randperm(self.size, generator=generator).tolist()
            for i in range(step, self.iterations_per_epoch):
                first = i * self.total_batch + self.rank * self.share
                position = epoch * self.iterations_per_epoch * self.total_batch + first
                yield [(position + j, order[first + j]) for j in range(self.share)]
            epoch, step = epoch + 1, 0


def build_loader(dataset: Views, batches: EndlessBatches, *, num_workers: int) -> DataLoader:
    """An endless loader of ``{"query": (N, 3, H, W), ..., "label": (N,)}``."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
        worker_init_fn=_one_thread_per_worker,
        # A loader draws a seed when it starts. From the process's generator, that would change the
        # order ShuffleBN draws next, and a resumed run starts a loader more.
        generator=torch.Generator(),
    )


def _one_thread_per_worker(worker_id: int) -> None:
    torch.set_num_threads(1)


def user_error_of_worker(error: UserError) -> UserError:
    """A UserError as it was raised; DataLoader wraps a worker's error in its traceback."""
    found = re.findall(r"UserError: (.*)", str(error))
    return UserError(found[-1]) if found else error
