"""The stream of batches from a list of image files."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from moco_d2.engine.loader import build_loader
from moco_d2.engine.seeding import Purpose, derive_seed
from moco_d2.errors import UserError
from moco_d2.pretrain.data.image_list import ImageList
from moco_d2.pretrain.data.images import Skipped, UnreadableImageError, read_pixels
from moco_d2.pretrain.data.stream import MAX_ATTEMPTS, Batch, TrainingData, ViewMaker, collate


class ListedData(TrainingData):
    """Images of an ImageList, in a new order in every epoch, without the last partial batch.

    The stream does not depend on the number of workers.
    """

    def __init__(self, images: ImageList, **stream: Any):
        """
        Args:
            images: The images.
            stream: Arguments of `TrainingData`.
        """
        super().__init__(num_images=len(images), classes=images.classes, **stream)
        self.images = images
        self.samples = ListedSamples(images, self.make_views)

    def fingerprint(self) -> str:
        return self.samples.images.fingerprint()

    def loader(self, start_iteration: int) -> DataLoader[Batch]:
        order = EndlessOrder(self, start_iteration)
        return build_loader(
            self.samples,
            batch_sampler=order,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor,
            collate_fn=collate,
        )


class ListedSamples(Dataset[Any]):
    """(position, index) -> the views of image `index`, its label, and the skipped images."""

    def __init__(self, images: ImageList, views: ViewMaker):
        self.images = images
        self.views = views

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """
        Raises:
            UserError: If neither this image nor any of its 99 substitutes can be read.
        """
        position, index = key
        unreadable: list[Skipped] = []
        for attempt in range(MAX_ATTEMPTS):
            path = self.images.paths[index]
            try:
                image = read_pixels(path, self.images.value_range)
            except UnreadableImageError as error:
                last_error = error
                unreadable.append(Skipped(path, error.why))
                seed = derive_seed(Purpose.SUBSTITUTE, self.views.seed, position, attempt)
                index = seed % len(self.images)
                continue
            sample = {**self.views(image, position), "index": index, "unreadable": unreadable}
            if self.images.labels is not None:
                sample["label"] = self.images.labels[index]
            return sample
        raise UserError(f"{MAX_ATTEMPTS} images in a row cannot be read; the last: {last_error}")


class EndlessOrder(Sampler[list[tuple[int, int]]]):
    """Endless batches of (position, index) for one process, from an iteration on."""

    def __init__(self, data: TrainingData, start_iteration: int = 0):
        self.data = data
        self.start_iteration = start_iteration

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        data = self.data
        epoch, step = divmod(self.start_iteration, data.iterations_per_epoch)
        while True:
            generator = torch.Generator().manual_seed(
                derive_seed(Purpose.ORDER, data.make_views.seed, epoch)
            )
            order = torch.randperm(data.num_images, generator=generator)
            for i in range(step, data.iterations_per_epoch):
                first = i * data.total_batch + data.rank * data.local_batch_size
                position = epoch * data.iterations_per_epoch * data.total_batch + first
                indices = order[first : first + data.local_batch_size].tolist()
                yield list(enumerate(indices, start=position))
            epoch, step = epoch + 1, 0
