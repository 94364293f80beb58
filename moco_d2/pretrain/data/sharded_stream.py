"""Training data in tar shards, for datasets that are too large for folders.

An epoch concatenates the shards in a new order. It is cut into one contiguous section for every
worker of every process. So each image comes once per epoch, whatever the number and sizes of the
shards, and a worker opens only the shards of its section. Within its section, a worker reads blocks
of MOCO.DATA.SHARD_SHUFFLE encoded images and shuffles each block. To reach a position of the
stream, it reads at most one shard up to there and decodes nothing on the way. The order depends on
the seed and on the numbers of workers and processes. A block of more than MAX_BLOCK_BYTES is an
error, because a shorter block would have another order.

Only images of one block are shuffled, so write shards in a random order, not class by class.
"""

import array
import contextlib
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from moco_d2.engine.loader import build_loader
from moco_d2.engine.seeding import Purpose, derive_seed
from moco_d2.errors import UserError
from moco_d2.pixel_values import ValueRange
from moco_d2.pretrain.data.images import Skipped, UnreadableImageError, decode_pixels
from moco_d2.pretrain.data.samples import EncodedImage, read_shard
from moco_d2.pretrain.data.shards import ShardList
from moco_d2.pretrain.data.stream import MAX_ATTEMPTS, Batch, TrainingData, collate
from moco_d2.untrusted_images import MAX_FILE_BYTES

#: Maximum bytes of a block, which a worker holds in memory: 8 MB per image for 1000 images.
MAX_BLOCK_BYTES = 8 << 30


@dataclasses.dataclass(frozen=True)
class _Missing:
    """A slot of the epoch without an image.

    `unread` is False if the shard merely has fewer images than its part.
    """

    name: str
    why: str = ""
    unread: bool = True


class ShardedData(TrainingData):
    """Images of shards, in the order that the module's docstring describes.

    A missing or unreadable image is replaced by another image of the block.
    """

    def __init__(
        self, shards: ShardList, *, shuffle: int, value_range: ValueRange = (), **stream: Any
    ):
        """
        Args:
            shards: The shards.
            shuffle: Number of images in a block, at least a batch; 0 means no shuffling.
            value_range: MOCO.INPUT.RANGE.
            stream: Arguments of `TrainingData`.
        """
        classes = [str(i) for i in range(shards.num_classes)]
        super().__init__(num_images=int(sum(shards.counts)), classes=classes, **stream)
        self.shards = shards
        self.value_range = value_range
        self.shuffled = shuffle > 0
        self.block = max(shuffle, self.local_batch_size, MAX_ATTEMPTS)
        self.ends = np.cumsum(shards.counts)

    def fingerprint(self) -> str:
        numbers = hashlib.sha256(array.array("q", [*self.shards.counts, *self.shards.sizes]))
        names = self.shards.urls.digest()
        return f"{self.num_images} images, {names[:12]}, {numbers.hexdigest()[:12]}"

    def loader(self, start_iteration: int) -> DataLoader[Batch]:
        return build_loader(
            _Streams(self, start_iteration),
            batch_size=None,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor,
        )

    def stream(self, number: int, count: int, start_iteration: int) -> Iterator[Batch]:
        """Yield the local batches of iterations i >= start_iteration with i % count == number."""
        size = self.local_batch_size
        for epoch in itertools.count(start_iteration // self.iterations_per_epoch):
            iterations = self._iterations(epoch, number, count)
            before = sum(len(self._iterations(epoch, other, count)) for other in range(number))
            first = size * (self.rank * self.iterations_per_epoch + before)
            last = first + size * len(iterations)
            seen = sum(1 for i in iterations if i < start_iteration)
            samples = self._samples(epoch, first, last, start=first + seen * size)
            for iteration in iterations[seen:]:
                position = iteration * self.total_batch + self.rank * size
                yield collate([next(samples)(position + i) for i in range(size)])

    def _iterations(self, epoch: int, number: int, count: int) -> range:
        first = epoch * self.iterations_per_epoch
        return range(first + (number - first) % count, first + self.iterations_per_epoch, count)

    def _samples(
        self, epoch: int, first: int, last: int, *, start: int
    ) -> Iterator[Callable[[int], dict[str, Any]]]:
        """Yield slots [start, last) of an epoch, as functions from the position to the sample.

        The section of this stream is [first, last).
        """
        seed = self.make_views.seed
        order = np.random.default_rng(derive_seed(Purpose.ORDER, seed, epoch)).permutation(
            len(self.shards.urls)
        )
        skip_blocks, skip = divmod(start - first, self.block)
        first += skip_blocks * self.block
        in_order = self._in_order(order, first)
        for block_first in range(first, last, self.block):
            slots = self._read_block(
                itertools.islice(in_order, min(self.block, last - block_first))
            )
            images = [image for image in slots if isinstance(image, EncodedImage)]
            images = images or self._substitutes(order, block_first, len(slots))
            if self.shuffled:
                shuffle_seed = derive_seed(Purpose.ORDER, seed, epoch, block_first + 1)
                np.random.default_rng(shuffle_seed).shuffle(slots)
            for slot in slots[skip:]:
                yield functools.partial(self._sample, slot, images)
            skip = 0

    def _read_block(
        self, in_order: Iterator[EncodedImage | _Missing]
    ) -> list[EncodedImage | _Missing]:
        """
        Raises:
            UserError: If the block has more than MAX_BLOCK_BYTES.
        """
        slots: list[EncodedImage | _Missing] = []
        held = 0
        for slot in in_order:
            slots.append(slot)
            if isinstance(slot, _Missing):
                continue
            held += len(slot.content)
            if held > MAX_BLOCK_BYTES:
                least = max(self.local_batch_size, MAX_ATTEMPTS)
                fix = "lower MOCO.DATA.SHARD_SHUFFLE" if self.block > least else "shrink the images"
                raise UserError(
                    f"MOCO.DATA.SHARD_SHUFFLE {self.block} is too large for these images: "
                    f"{len(slots)} of them, up to {slot.name}, have {held:,} bytes, and a worker "
                    f"holds at most {MAX_BLOCK_BYTES:,}; {fix}"
                )
        return slots

    def _in_order(self, order: np.ndarray, start: int) -> Iterator[EncodedImage | _Missing]:
        """Yield the slots of an epoch, from `start` on. `order` is the order of the shards."""
        for shard in order:
            count = self.shards.counts[shard]
            if start >= count:
                start -= count
                continue
            url = self.shards.urls[shard]
            yielded = 0
            try:
                with contextlib.closing(read_shard(url, self._first_index(shard))) as images:
                    for image in itertools.islice(images, start, count):
                        yield image
                        yielded += 1
                found = start + yielded
                missing = _Missing(
                    url,
                    f"shard {url} has at most {found} images, and MOCO.DATA.SHARD_IMAGES means "
                    f"{count}: others take the places of the missing ones, in all shards; set it "
                    "to the number of images in all shards, or to 0 to count them",
                    unread=False,
                )
            except (GeneratorExit, UserError):
                raise
            except Exception as error:  # a damaged archive or a command may raise any class
                # webdataset adds objects to errors, whose text differs between processes.
                reason = str(error.args[0] if error.args else error).partition(" @ ")[0]
                missing = _Missing(f"the rest of shard {url} ({reason})")
            yield from itertools.repeat(missing, count - start - yielded)
            start = 0

    def _first_index(self, shard: int) -> int:
        return int(self.ends[shard]) - self.shards.counts[shard]

    def _substitutes(self, order: np.ndarray, start: int, size: int) -> list[EncodedImage]:
        """Return up to `size` images from the next shard that has any, for a block without images.

        Raises:
            UserError: If no shard has an image.
        """
        first = int(
            np.searchsorted(np.cumsum(np.asarray(self.shards.counts)[order]), start, "right")
        )
        for shard in np.roll(order, -first):
            images: list[EncodedImage] = []
            held = 0
            with contextlib.suppress(Exception):
                for image in read_shard(self.shards.urls[shard], self._first_index(shard)):
                    images.append(image)
                    held += len(image.content)
                    enough = len(images) == min(size, self.shards.counts[shard])
                    if enough or held > MAX_BLOCK_BYTES - MAX_FILE_BYTES:
                        break
            if images:
                return images
        raise UserError(
            f"none of the {len(order)} shards has a readable image (the first: "
            f"{self.shards.urls[0]}): replace them"
        )

    def _sample(
        self, slot: EncodedImage | _Missing, others: list[EncodedImage], position: int
    ) -> dict[str, Any]:
        unreadable: list[Skipped] = []
        for attempt in range(MAX_ATTEMPTS):
            if isinstance(slot, EncodedImage):
                try:
                    image = decode_pixels(slot.content, slot.name, self.value_range)
                    break
                except UnreadableImageError as error:
                    last_error = error
                    unreadable.append(Skipped(slot.name, error.why))
            else:
                unreadable.append(Skipped(slot.name, slot.why, slot.unread))
            seed = derive_seed(Purpose.SUBSTITUTE, self.make_views.seed, position, attempt)
            slot = others[seed % len(others)]
        else:
            raise UserError(
                f"{MAX_ATTEMPTS} images in a row cannot be read; the last: {last_error}"
            )
        sample = {
            **self.make_views(image, position),
            "index": slot.index,
            "unreadable": unreadable,
        }
        if self.classes:
            sample["label"] = slot.label
        return sample


class _Streams(IterableDataset[Any]):
    """The local batches. Each worker yields the batches of its own stream."""

    def __init__(self, data: ShardedData, start_iteration: int):
        self.data = data
        self.start_iteration = start_iteration

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        # The loader takes the first batch from worker 0, the second from worker 1, ...
        number = (self.start_iteration + number) % count
        return self.data.stream(number, count, self.start_iteration)
