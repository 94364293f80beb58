"""What folders and shards share: an endless, resumable stream of batches.

Position counts the images of all processes since the start of training: iteration i holds positions
[i * total batch, (i + 1) * total batch), of which each process takes its share, in the order of
ranks. Every random choice follows from (seed, position): not from the worker that made it, nor from
when. So a resumed run sees what an uninterrupted one would.
"""

import abc
import dataclasses
from collections.abc import Callable, Generator
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate

from moco_d2.engine.seeding import Purpose, derive_seed
from moco_d2.errors import UserError, as_raised

# A batch of a process; what is in it: TrainingData.batches.
Batch = dict[str, Any]

# So many images in a row that do not decode are no accident: the set is not what it seems.
MAX_ATTEMPTS = 100


@dataclasses.dataclass(frozen=True)
class ViewMaker:
    """(image, position) -> the views of the image, drawn with the randomness of the position.

    Attributes:
        transform: PIL image -> tensor (3, H, W), randomized by torch's CPU generator.
        names: one view a name, ``("query", "key")``.
        seed: of the run.
    """

    transform: Callable[[Image.Image], torch.Tensor]
    names: tuple[str, ...]
    seed: int

    def __call__(self, image: Image.Image, position: int) -> dict[str, torch.Tensor]:
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the GPU's generator too, which nobody restores.
            torch.default_generator.manual_seed(derive_seed(Purpose.VIEWS, self.seed, position))
            return {name: self.transform(image) for name in self.names}


class TrainingData(abc.ABC):
    """The images of a run and the share of one process in them, whatever the source.

    Attributes:
        num_images: in one epoch.
        classes: names of the classes; empty without labels.
    """

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
        device_augmentation: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None,
    ):
        """
        Args:
            make_views: what workers do with an image.
            total_batch: images a step over all processes.
            rank, world_size: this process among them.
            num_workers: processes that read and decode; 0: this one does.
            device_augmentation: what is then done with the whole batch: a view (N, 3, H, W), CPU
                generator -> the finished view (N, 3, H, W). None: nothing.

        Raises:
            UserError: the batch does not divide among the processes, or is larger than the dataset.
        """
        if total_batch % world_size:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH {total_batch} does not divide among {world_size} processes"
            )
        if num_images < total_batch:
            raise UserError(
                f"the dataset has {num_images} images, less than one batch of {total_batch}: set a "
                "smaller SOLVER.IMS_PER_BATCH"
            )
        self.num_images = num_images
        self.classes = classes
        self.make_views = make_views
        self.total_batch = total_batch
        self.share = total_batch // world_size
        self.rank = rank
        self.num_workers = num_workers
        self.device_augmentation = device_augmentation

    @property
    def iterations_per_epoch(self) -> int:
        """Full batches in one pass over the images; what is left over waits for the next."""
        return self.num_images // self.total_batch

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Of the names of the images and their labels: what all processes have to agree on."""

    @abc.abstractmethod
    def loader(self, start_iteration: int) -> DataLoader[Batch]:
        """An endless loader of this process' batches from an iteration on."""

    def batches(self, start_iteration: int = 0) -> Generator[Batch, None, None]:
        """Endless batches of this process. Closing the iterator ends its workers at once.

        A batch is ``{"query": (N, 3, H, W), "key": the same, "index": (N,) which image of the
        dataset each is, "label": (N,) where there are labels, "unreadable": name and reason of
        the images that were skipped while this batch was made}``; where MOCO.AUGMENTATION.WHERE is
        "device", the views are crops of bytes which `views` finishes.

        Raises:
            UserError: no image decodes.
        """
        iterator = iter(self.loader(start_iteration))
        try:
            while True:
                yield next(iterator)
        except UserError as error:
            raise as_raised(error) from error
        finally:
            # Now: workers left to the garbage collector take 5 seconds each to end.
            del iterator

    def views(self, batch: Batch, iteration: int) -> Batch:
        """Finish the views of a batch that is on the device: the augmentation's batched part.

        The random choices follow from (seed, iteration, rank), the same on every device. Gives the
        batch itself where the workers have done it all.
        """
        if self.device_augmentation is None:
            return batch
        seed = derive_seed(Purpose.DEVICE, self.make_views.seed, iteration, self.rank)
        generator = torch.Generator().manual_seed(seed)
        names = self.make_views.names
        return batch | {name: self.device_augmentation(batch[name], generator) for name in names}


def collate(samples: list[dict[str, Any]]) -> Batch:
    """Samples as one batch, views in channels_last; their lists of unreadable files as one list.

    A view's channels lie side by side from decoding to the network; turning each view, and the
    batch back, would cost a twentieth of a worker's time.
    """
    unreadable = [name for sample in samples for name in sample.pop("unreadable")]
    views = {name for name, value in samples[0].items() if getattr(value, "ndim", 0) == 3}
    for sample in samples:
        sample.update({name: sample[name].permute(1, 2, 0) for name in views})
    batch = default_collate(samples)
    batch.update({name: batch[name].permute(0, 3, 1, 2) for name in views})
    return {**batch, "unreadable": unreadable}
