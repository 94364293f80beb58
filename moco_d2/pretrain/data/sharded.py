"""Training data in tar shards: for sets that no folder holds, read from front to back.

An epoch is the shards in a new order, laid end to end. Its images are cut into one run of
neighbors for every worker of every process, so each image comes once an epoch whatever the number
and sizes of the shards, and a worker opens only the shards its run touches. Within its run a worker
reads blocks of MOCO.DATA.SHARD_SHUFFLE images, still encoded, and shuffles each: any place in the
stream is reached by reading one shard up to it, and nothing is decoded on the way. So the order
depends on the number of workers and processes, besides the seed. A block of more than
MAX_BLOCK_BYTES is an error: one that was cut short would have another order.

Only neighbors are shuffled: write shards in a random order, not class by class.
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
from moco_d2.pretrain.data.images import Skipped, UnreadableImageError, decode_image
from moco_d2.pretrain.data.shards import EncodedImage, ShardList, read_shard
from moco_d2.pretrain.data.stream import MAX_ATTEMPTS, Batch, TrainingData, collate
from moco_d2.untrusted_images import MAX_FILE_BYTES

#: The most bytes of a block, which a worker holds: 8 MB an image, where MOCO.DATA.SHARD_SHUFFLE is
#: 1000.
MAX_BLOCK_BYTES = 8 << 30


@dataclasses.dataclass(frozen=True)
class _Missing:
    """A place in the epoch whose image is not there. `why` is empty where the shard was merely
    smaller than its part.
    """

    why: str


class ShardedData(TrainingData):
    """Images of shards; see the module's docstring for their order.

    A place whose image is missing or does not decode is filled with another image of the block.
    """

    def __init__(self, shards: ShardList, *, shuffle: int, **stream: Any):
        """
        Args:
            shards: what to read.
            shuffle: images that are shuffled together, at least a batch; 0: none are.
            stream: of `TrainingData`.
        """
        classes = [str(i) for i in range(shards.num_classes)]
        super().__init__(num_images=int(sum(shards.counts)), classes=classes, **stream)
        self.shards = shards
        self.shuffled = shuffle > 0
        self.block = max(shuffle, self.share, MAX_ATTEMPTS)
        self.ends = np.cumsum(shards.counts)

    def fingerprint(self) -> str:
        numbers = hashlib.sha256(array.array("q", [*self.shards.counts, *self.shards.sizes]))
        names = self.shards.urls.digest()
        return f"{self.num_images} images, {names[:12]}, {numbers.hexdigest()[:12]}"

    def loader(self, start_iteration: int) -> DataLoader[Batch]:
        return build_loader(
            _Streams(self, start_iteration), batch_size=None, num_workers=self.num_workers
        )

    def stream(self, number: int, of: int, start_iteration: int) -> Iterator[Batch]:
        """This process' batches of the iterations i >= start_iteration with i % of == number."""
        for epoch in itertools.count(start_iteration // self.iterations_per_epoch):
            iterations = self._iterations(epoch, number, of)
            before = sum(len(self._iterations(epoch, other, of)) for other in range(number))
            first = self.share * (self.rank * self.iterations_per_epoch + before)
            last = first + self.share * len(iterations)
            seen = sum(1 for i in iterations if i < start_iteration)
            samples = self._samples(epoch, first, last, start=first + seen * self.share)
            for iteration in iterations[seen:]:
                position = iteration * self.total_batch + self.rank * self.share
                yield collate([next(samples)(position + i) for i in range(self.share)])

    def _iterations(self, epoch: int, number: int, of: int) -> range:
        first = epoch * self.iterations_per_epoch
        return range(first + (number - first) % of, first + self.iterations_per_epoch, of)

    def _samples(
        self, epoch: int, first: int, last: int, *, start: int
    ) -> Iterator[Callable[[int], dict[str, Any]]]:
        """Places [start, last) of an epoch, of which [first, last) are this stream's: functions of
        the position that give the sample.
        """
        seed = self.make_views.seed
        order = np.random.default_rng(derive_seed(Purpose.ORDER, seed, epoch)).permutation(
            len(self.shards.urls)
        )
        skip_blocks, skip = divmod(start - first, self.block)
        first += skip_blocks * self.block
        in_order = self._in_order(order, first)
        for block_first in range(first, last, self.block):
            places = self._read_block(
                itertools.islice(in_order, min(self.block, last - block_first))
            )
            images = [image for image in places if isinstance(image, EncodedImage)]
            images = images or self._instead(order, block_first, len(places))
            if self.shuffled:
                shuffle_seed = derive_seed(Purpose.ORDER, seed, epoch, block_first + 1)
                np.random.default_rng(shuffle_seed).shuffle(places)
            for place in places[skip:]:
                yield functools.partial(self._sample, place, images)
            skip = 0

    def _read_block(
        self, in_order: Iterator[EncodedImage | _Missing]
    ) -> list[EncodedImage | _Missing]:
        """
        Raises:
            UserError: it has more than MAX_BLOCK_BYTES; says which settings make it smaller.
        """
        places: list[EncodedImage | _Missing] = []
        held = 0
        for place in in_order:
            places.append(place)
            if isinstance(place, _Missing):
                continue
            held += len(place.content)
            if held > MAX_BLOCK_BYTES:
                least = max(self.share, MAX_ATTEMPTS)
                fix = "lower MOCO.DATA.SHARD_SHUFFLE" if self.block > least else "shrink the images"
                raise UserError(
                    f"MOCO.DATA.SHARD_SHUFFLE {self.block} is too many for these images: "
                    f"{len(places)} of them, {place.name} the last, take {held:,} bytes, and a "
                    f"worker holds at most {MAX_BLOCK_BYTES:,}; {fix}"
                )
        return places

    def _in_order(self, order: np.ndarray, start: int) -> Iterator[EncodedImage | _Missing]:
        """Places of an epoch from one on; `order` holds the shards."""
        for shard in order:
            count = self.shards.counts[shard]
            if start >= count:
                start -= count
                continue
            url = self.shards.urls[shard]
            why, given = "", 0
            try:
                with contextlib.closing(read_shard(url, self._first_index(shard))) as images:
                    for image in itertools.islice(images, start, count):
                        yield image
                        given += 1
            except GeneratorExit:
                raise
            except Exception as error:  # what a damaged archive or a command may raise
                # webdataset adds objects to an error, which look different in every process.
                reason = str(error.args[0] if error.args else error).partition(" @ ")[0]
                why = f"the rest of shard {url} ({reason})"
            yield from itertools.repeat(_Missing(why), count - start - given)
            start = 0

    def _first_index(self, shard: int) -> int:
        return int(self.ends[shard]) - self.shards.counts[shard]

    def _instead(self, order: np.ndarray, start: int, size: int) -> list[EncodedImage]:
        """Up to `size` images from the next shard that has any, for a block that has none."""
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
            f"no image can be read from any of {len(order)} shards, {self.shards.urls[0]} the first"
        )

    def _sample(
        self, place: EncodedImage | _Missing, others: list[EncodedImage], position: int
    ) -> dict[str, Any]:
        unreadable: list[Skipped] = []
        for attempt in range(MAX_ATTEMPTS):
            if isinstance(place, EncodedImage):
                try:
                    image = decode_image(place.content, place.name)
                    break
                except UnreadableImageError as error:
                    last_error = error
                    unreadable.append(Skipped(place.name, error.why))
            elif place.why:
                unreadable.append(Skipped(place.why))
            seed = derive_seed(Purpose.SUBSTITUTE, self.make_views.seed, position, attempt)
            place = others[seed % len(others)]
        else:
            raise UserError(
                f"{MAX_ATTEMPTS} images in a row cannot be read; the last: {last_error}"
            )
        sample = {
            **self.make_views(image, position),
            "index": place.index,
            "unreadable": unreadable,
        }
        if self.classes:
            sample["label"] = place.label
        return sample


class _Streams(IterableDataset[Any]):
    """The batches of a process; each worker makes those of its stream."""

    def __init__(self, data: ShardedData, start_iteration: int):
        self.data = data
        self.start_iteration = start_iteration

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, of = (worker.id, worker.num_workers) if worker else (0, 1)
        # The loader asks worker 0 first, then 1, ...
        return self.data.stream((self.start_iteration + number) % of, of, self.start_iteration)
