"""The endless, resumable stream of batches, for folders and for shards.

The position counts the images of all processes since the start of training. Iteration i has the
positions [i * total batch, (i + 1) * total batch), which are divided among the processes in rank
order. Every random choice depends only on (seed, position), not on worker or time. So a resumed run
gets the same batches as an uninterrupted one.
"""

import abc
import dataclasses
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, default_collate

from moco_d2.engine.seeding import Purpose, derive_seed
from moco_d2.errors import UserError, as_raised
from moco_d2.pretrain.data.image_list import ImageList

# A batch of one process; see TrainingData.batches.
Batch = dict[str, Any]
Augmentation = Callable[[torch.Tensor, torch.Generator], torch.Tensor]

#: The most bytes of the batches of a process that are in shared memory at once, if each of its
#: workers holds one or two. That of many containers is small.
MAX_SHARED_BYTES = 2_500_000_000

# If this many images in a row cannot be decoded, the dataset itself is damaged.
MAX_ATTEMPTS = 100


@dataclasses.dataclass(frozen=True)
class ViewMaker:
    """(image, position) -> the views of the image, whose random numbers depend on the position.

    Attributes:
        transform: Decoded image -> tensor (3, H, W). It draws from torch's CPU generator.
        names: The names of the views, ``("query", "key")``.
        seed: The seed of the run.
        others: The transforms of views that do not have `transform`, by the names of the views.
    """

    transform: Callable[[Any], torch.Tensor]
    names: tuple[str, ...]
    seed: int
    others: Mapping[str, Callable[[Any], torch.Tensor]] = dataclasses.field(default_factory=dict)

    def __call__(self, image: Any, position: int) -> dict[str, torch.Tensor]:
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also seed the GPU's generator, which is not restored.
            torch.default_generator.manual_seed(derive_seed(Purpose.VIEWS, self.seed, position))
            return {name: self.others.get(name, self.transform)(image) for name in self.names}


class TrainingData(abc.ABC):
    """The images of a run, and their batches for one process.

    Attributes:
        num_images: Number of images in an epoch.
        classes: Names of the classes; empty without labels.
        local_batch_size: Images per step of this process.
        images: The image files; None if they are in shards.
    """

    images: ImageList | None = None

    def __init__(
        self,
        *,
        num_images: int,
        classes: list[str],
        make_views: ViewMaker,
        total_batch: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        image_bytes: int = 0,
        device_augmentation: Augmentation | None = None,
        other_device_augmentations: Mapping[str, Augmentation] | None = None,
    ):
        """
        Args:
            num_images: Number of images in an epoch.
            classes: Names of the classes; empty without labels.
            make_views: Makes the views of an image, on a worker.
            total_batch: Images per step over all processes.
            rank, world_size: Rank of this process and number of processes.
            num_workers: Number of processes that read and decode images. With 0, this process does.
            image_bytes: Bytes of the views of an image, which travel from a worker.
            device_augmentation: Finishes the views of a batch on the device: (views (N, 3, H, W),
                CPU generator) -> views (N, 3, H, W). None means that the workers do everything.
            other_device_augmentations: The same for views that have another one, by their names.

        Raises:
            UserError: If the number of processes does not divide the batch, or the batch is larger
                than the dataset.
        """
        if total_batch % world_size:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH {total_batch} is not divisible by {world_size} processes: "
                "set a multiple"
            )
        if num_images < total_batch:
            raise UserError(
                f"the dataset has {num_images} images, fewer than one batch of {total_batch}: set "
                "a smaller SOLVER.IMS_PER_BATCH"
            )
        self.num_images = num_images
        self.classes = classes
        self.make_views = make_views
        self.total_batch = total_batch
        self.local_batch_size = total_batch // world_size
        self.rank = rank
        self.num_workers = num_workers
        self.image_bytes = image_bytes
        self.device_augmentation = device_augmentation
        self.other_device_augmentations = other_device_augmentations or {}

    @property
    def iterations_per_epoch(self) -> int:
        """Number of full batches in an epoch. The remaining images are not used in it."""
        return self.num_images // self.total_batch

    @property
    def prefetch_factor(self) -> int | None:
        """Number of batches that each worker makes ahead: 2, or 1 if 2 exceed MAX_SHARED_BYTES."""
        if not self.num_workers:
            return None  # torch refuses any other value
        return 2 if self.shared_bytes(2) <= MAX_SHARED_BYTES else 1

    def shared_bytes(self, ahead: int) -> int:
        """Return the most bytes of batches in shared memory, with the one that a step uses."""
        batches = ahead * self.num_workers + 1
        return batches * self.local_batch_size * self.image_bytes

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Return a fingerprint of image names and labels, which must be equal in all processes."""

    @abc.abstractmethod
    def loader(self, start_iteration: int) -> DataLoader[Batch]:
        """Return an endless loader of the local batches, from an iteration on."""

    def batches(self, start_iteration: int = 0) -> Generator[Batch, None, None]:
        """Yield endless batches of this process. Closing the iterator ends its workers at once.

        A batch is ``{"query": (N, 3, H, W), "key": (N, 3, H, W), "index": indices in the dataset
        (N,), "label": (N,) if the dataset has labels, "unreadable": the skipped images}``. With the
        transforms of a config, the views are uint8, and `views` finishes them.

        Raises:
            UserError: If no image can be decoded.
        """
        iterator = iter(self.loader(start_iteration))
        try:
            while True:
                yield next(iterator)
        except UserError as error:
            raise as_raised(error) from error
        finally:
            # End the workers now: the garbage collector would take 5 seconds for each.
            del iterator

    def views(self, batch: Batch, iteration: int) -> Batch:
        """Finish the views of a batch on the device.

        The random numbers depend on (seed, iteration, rank), and are equal on every device. Without
        a device augmentation, the result is the batch itself.
        """
        augment, others = self.device_augmentation, self.other_device_augmentations
        if augment is None:
            return batch
        seed = derive_seed(Purpose.DEVICE, self.make_views.seed, iteration, self.rank)
        generator = torch.Generator().manual_seed(seed)
        names = self.make_views.names
        return batch | {name: others.get(name, augment)(batch[name], generator) for name in names}


def collate(samples: list[dict[str, Any]]) -> Batch:
    """Combine samples to a batch, with the views in channels_last.

    Views are in channels_last from decoding to the network. Changing the memory format would cost a
    twentieth of a worker's time.
    """
    unreadable = [name for sample in samples for name in sample.pop("unreadable")]
    views = {name for name, value in samples[0].items() if getattr(value, "ndim", 0) == 3}
    for sample in samples:
        sample.update({name: sample[name].permute(1, 2, 0) for name in views})
    batch = default_collate(samples)
    batch.update({name: batch[name].permute(0, 3, 1, 2) for name in views})
    return {**batch, "unreadable": unreadable}
