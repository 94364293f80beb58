"""The training images in an order that a resumed run continues: Detectron2's samplers, grouping and
mapper, where every random choice is a function of (SEED, position).

Detectron2 restarts its sampler at a resume. It also draws augmentations from the generators of the
process and sends single images to workers, so its batches depend on the number of workers. Here, a
batch is planned from the annotations alone, and a resumed run skips a million batches in seconds.
Each image has its own random state, so the batches are the same with any number of workers.
"""

import contextlib
import itertools
import random
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.common import DatasetFromList
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import Dataset, Sampler

from moco_d2.engine.loader import SteadyLoader
from moco_d2.engine.seeding import Purpose, derive_seed
from moco_d2.errors import UserError, as_raised, closest
from moco_d2.transfer.data.label_fraction import draw
from moco_d2.transfer.data.semantic_mapper import build_mapper
from moco_d2.untrusted_images import is_unreadable, open_image

Sample = dict[str, Any]  # a dataset dict, before or after the mapper


class TrainingBatches:
    """Endless batches of this process: lists of mapped dataset dicts.

    The position of an image counts the images of all processes since the start of training, in the
    order of Detectron2's samplers: the k-th image of rank r has position k * world size + r.

    Attributes:
        images: Number of images in the dataset.
        start: Index of the first batch; set it before the iteration starts.
    """

    def __init__(
        self,
        dataset: Sequence[Sample],
        *,
        mapper: Callable[[Sample], Sample],
        build_sampler: Callable[[int], Sampler[int]],
        batch_size: int,
        seed: int,
        aspect_ratio_grouping: bool = True,
        num_workers: int = 0,
    ):
        """
        Args:
            dataset: Dataset dicts.
            mapper: A mapper like Detectron2's DatasetMapper, which draws random numbers from the
                global generators of Python, NumPy and torch.
            build_sampler: Function from a seed to endless indices of this process, like
                Detectron2's samplers.
            batch_size: Number of images of this process in a batch.
            seed: Seed of the order and the augmentations, equal in all processes.
            aspect_ratio_grouping: Whether wide and tall images are in separate batches, as in
                Detectron2.
            num_workers: Number of processes that load images; with 0, this process loads them.
        """
        self.images = len(dataset)
        self.batch_size = batch_size
        self.seed = seed
        self.start = 0
        self._build_sampler = build_sampler
        self._num_workers = num_workers
        self._landscape = [_is_landscape(d) for d in dataset] if aspect_ratio_grouping else None
        self._images = _MappedImages(dataset, mapper, seed)

    @property
    def dicts(self) -> Sequence[Sample]:
        """Return the dataset dicts."""
        return self._images.dicts

    def reseed(self, seed: int) -> None:
        """Set the seed of the run that is resumed."""
        self.seed = seed
        self._images = self._images.reseeded(seed)

    def __iter__(self) -> Iterator[list[Sample]]:
        # A generator, because v0.6 calls iter() when the trainer is built, before `start` is set.
        yield from self._batches(self._build_sampler(self.seed), self._images, self.start)

    def other(self, stream: int) -> Generator[list[Sample], None, None]:
        """Yield the batches of another stream from its beginning. It shares no random choice with
        training or with streams of another number.
        """
        seed = derive_seed(Purpose.ORDER, self.seed, stream) % 2**63  # torch's seeds are signed
        yield from self._batches(self._build_sampler(seed), self._images.reseeded(seed), 0)

    def _batches(
        self, sampler: Sampler[int], images: "_MappedImages", start: int
    ) -> Iterator[list[Sample]]:
        loader = SteadyLoader(
            images,
            batch_sampler=itertools.islice(self._plan(sampler), start, None),
            num_workers=self._num_workers,
            collate_fn=list,
            # A loader draws a seed when it starts, and a resumed run starts one more loader. Its
            # own generator keeps the global one unchanged.
            generator=torch.Generator(),
        )
        batches = iter(loader)
        try:
            while True:
                yield next(batches)
        except UserError as error:
            raise as_raised(error) from error
        finally:
            del batches  # ends the workers now

    def _plan(self, sampler: Sampler[int]) -> Iterator[list[tuple[int, int]]]:
        """Yield batches of (position, index in the dataset) in the order of Detectron2's loader."""
        rank, world_size = comm.get_rank(), comm.get_world_size()
        groups: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
        for i, index in enumerate(sampler):
            group = groups[self._landscape is not None and self._landscape[index]]
            group.append((i * world_size + rank, index))
            if len(group) == self.batch_size:
                yield group[:]
                group.clear()


class _MappedImages(Dataset[Any]):
    """Maps (position, index) to the mapped image, whose random choices depend on the position."""

    def __init__(self, dataset: Sequence[Sample], mapper: Callable[[Sample], Sample], seed: int):
        # Serialized, because every worker would gradually copy a list of dicts.
        self.dicts = (
            dataset
            if isinstance(dataset, DatasetFromList)
            else DatasetFromList(list(dataset), copy=False)
        )
        self._mapper = mapper
        self._seed = seed

    def reseeded(self, seed: int) -> "_MappedImages":
        """Return the same images with another seed."""
        return _MappedImages(self.dicts, self._mapper, seed)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        position, index = key
        sample = self.dicts[index]
        name = sample.get("file_name")
        try:
            with seeded(derive_seed(Purpose.VIEWS, self._seed, position)):
                return self._mapper(sample)
        except Exception as error:
            raise_if_unusable(error, f"training image {name}")
            raise


def raise_if_unusable(error: Exception, image: str) -> None:
    """Raise a UserError if a mapper's `error` means that an image cannot be read or has not its
    annotated size.

    Args:
        error: The error that the mapper raised.
        image: Description of the image, with which the message begins.
    """
    if isinstance(error, SizeMismatchError) or is_unreadable(error):
        reason = " ".join(str(error).split())
        raise UserError(
            f"{image} cannot be used ({reason}); repair it or remove its annotations"
        ) from error


@contextlib.contextmanager
def seeded(seed: int, device: str | torch.device = "cpu") -> Iterator[None]:
    """Seed the generators of Python, NumPy and torch, and restore them afterwards.

    Args:
        seed: A number of 64 bits.
        device: If it is a GPU, its generator is seeded and restored, too.
    """
    before = random.getstate(), np.random.get_state()
    device = torch.device(device)
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        # torch.manual_seed would also seed the other GPUs, which are not restored.
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def build_training_batches(cfg: CfgNode) -> TrainingBatches:
    """Return the batches of a config. A batch has SOLVER.IMS_PER_BATCH / MOCO.ACCUMULATION images
    over all processes.

    Args:
        cfg: The config as it runs. With a negative SEED, the processes agree on a random one.

    Raises:
        UserError: If DATALOADER.SAMPLER_TRAIN is neither TrainingSampler nor
            RepeatFactorTrainingSampler (Detectron2's other samplers read keys that not every
            version has), or as in build_mapper.
    """
    dicts = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
        if cfg.MODEL.KEYPOINT_ON
        else 0,
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
    )
    dicts = draw(dicts, cfg.MOCO.LABEL_FRACTION)
    return TrainingBatches(
        dicts,
        mapper=build_mapper(cfg),
        build_sampler=_sampler_builder(cfg, dicts),
        batch_size=cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size() // cfg.MOCO.ACCUMULATION,
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def _sampler_builder(cfg: CfgNode, dicts: list[Sample]) -> Callable[[int], Sampler[int]]:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return lambda seed: TrainingSampler(len(dicts), seed=seed)
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dicts, cfg.DATALOADER.REPEAT_THRESHOLD
        )
        return lambda seed: RepeatFactorTrainingSampler(factors, seed=seed)
    known = ("TrainingSampler", "RepeatFactorTrainingSampler")
    raise UserError(
        f"DATALOADER.SAMPLER_TRAIN {name!r} is not supported; "
        + (closest(name, known) or f"choose {' or '.join(known)}")
    )


def _is_landscape(sample: Sample) -> bool:
    width, height = sample.get("width"), sample.get("height")
    if width is None or height is None:  # as in semantic segmentation
        try:
            with open_image(sample["file_name"]) as image:
                width, height = image.size
        except Exception as error:
            raise_if_unusable(error, f"training image {sample['file_name']}")
            raise
    return width > height
