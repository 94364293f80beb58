"""The losses of a detector on images that it is not trained on, during training.

They are logged as ``val_loss/...``. They change nothing in the training, and choose no checkpoint.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, get_detection_dataset_dicts
from detectron2.data import transforms as T
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from moco_d2.engine.loader import SteadyLoader
from moco_d2.engine.seeding import Purpose, derive_seed
from moco_d2.errors import UserError, as_raised
from moco_d2.transfer.data.registered import register_datasets
from moco_d2.transfer.data.semantic_mapper import RangedMapper, SemanticMapper
from moco_d2.transfer.data.training_data import Sample, raise_if_unusable, seeded
from moco_d2.transfer.weights import unwrapped

logger = logging.getLogger(__name__)

PREFIX = "val_loss"


def validation_sets(cfg: CfgNode) -> tuple[str, ...]:
    """Return the datasets of the validation loss: MOCO.VAL_LOSS_DATA, or DATASETS.TEST."""
    return tuple(cfg.MOCO.VAL_LOSS_DATA) or tuple(cfg.DATASETS.TEST)


class ValidationLoss(HookBase):
    """Logs the mean losses over the validation images every MOCO.VAL_LOSS iterations, then at the
    end.

    The detector computes its losses as in training, but BatchNorm uses its running statistics, and
    images have the size of the evaluation and no random augmentation. All processes need this hook.
    """

    def __init__(
        self,
        cfg: CfgNode,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]],
    ):
        """
        Args:
            cfg: The config as it runs, with MOCO.VAL_LOSS above 0. Preflight has checked its sets.
            autocast: Returns the context of a forward pass in training.
        """
        self._period = cfg.MOCO.VAL_LOSS
        self._autocast = autocast
        self._seed = max(cfg.SEED, 0)
        register_datasets(validation_sets(cfg))
        dicts = get_detection_dataset_dicts(
            validation_sets(cfg),
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
            if cfg.MODEL.KEYPOINT_ON
            else 0,
        )
        chosen = spread(len(dicts), cfg.MOCO.VAL_LOSS_IMAGES)
        self.images = len(chosen)
        own = range(comm.get_rank(), len(chosen), comm.get_world_size())
        self._positions = list(own)
        self._data = _ValidationImages([dicts[chosen[i]] for i in own], build_mapper(cfg))
        self._workers = cfg.DATALOADER.NUM_WORKERS

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            means = self.losses(unwrapped(self.trainer.model))
            self.trainer.storage.put_scalars(smoothing_hint=False, **means)

    def losses(self, model: nn.Module) -> dict[str, float]:
        """Return ``{"val_loss/loss_cls": ..., "val_loss/total_loss": ...}``, the means over all
        images of all processes, which do not depend on the number of processes.
        """
        device = next(model.parameters()).device
        sums: dict[str, float] = {}
        with seeded(self._seed, device), torch.no_grad(), _losses_without_traces(model):
            for position, image in zip(self._positions, self._loaded(), strict=True):
                # Heads sample proposals: each image gets the same sample every time.
                with seeded(derive_seed(Purpose.VALIDATION, self._seed, position), device):
                    for name, value in self._of_image(model, image).items():
                        sums[name] = sums.get(name, 0.0) + value
        everywhere = comm.all_gather(sums)
        names = dict.fromkeys(name for part in everywhere for name in part)
        means = {
            name: sum(part.get(name, 0.0) for part in everywhere) / self.images for name in names
        }
        means["total_loss"] = sum(means.values())
        return {f"{PREFIX}/{name}": value for name, value in means.items()}

    def _of_image(self, model: nn.Module, image: Sample) -> dict[str, float]:
        with self._autocast():
            losses = model([image])
        return {name: float(loss) for name, loss in losses.items()}

    def _loaded(self) -> Iterator[Sample]:
        loader = SteadyLoader(
            self._data,
            batch_size=None,
            num_workers=self._workers,
            generator=torch.Generator(),  # it draws a seed
        )
        try:
            yield from loader
        except UserError as error:
            raise as_raised(error) from error


def spread(total: int, most: int) -> list[int]:
    """Return at most `most` (0: all) indices that are spread evenly over `total` images."""
    number = min(most, total) if most else total
    return [i * total // number for i in range(number)]


def build_mapper(cfg: CfgNode) -> RangedMapper:
    """Return the mapper of validation images: that of training with the evaluation's resizing as
    its only augmentation.
    """
    sizes = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    resize: Sequence[T.Augmentation] = [T.ResizeShortestEdge(*sizes, sample_style="choice")]
    mapper: DatasetMapper | SemanticMapper
    if cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor":
        mapper = SemanticMapper(
            resize,
            image_format=cfg.INPUT.FORMAT,
            num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            ignore_value=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        )
    else:
        mapper = DatasetMapper(cfg, is_train=True, augmentations=resize)
    return RangedMapper(mapper, cfg.MOCO.INPUT.RANGE)


class _ValidationImages(Dataset[Sample]):
    def __init__(self, dicts: Sequence[Sample], mapper: RangedMapper):
        self._dicts, self._mapper = dicts, mapper

    def __len__(self) -> int:
        return len(self._dicts)

    def __getitem__(self, index: int) -> Sample:
        sample = self._dicts[index]
        try:
            return self._mapper(sample)
        except Exception as error:
            raise_if_unusable(error, f"validation image {sample.get('file_name')}")
            raise


@contextlib.contextmanager
def _losses_without_traces(model: nn.Module) -> Iterator[None]:
    """Let a detector return losses in a block, and leave its buffers, modes and storage alone.

    In training mode, BatchNorm would change its running statistics, and heads log numbers.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train()
        for module, _ in modes:
            if isinstance(module, _BatchNorm):
                module.eval()
        with EventStorage(0):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
