"""Choice of a dataset's evaluators by its metadata."""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
)

from moco_d2.errors import UserError, closest
from moco_d2.records.image_matches import PerImage
from moco_d2.transfer.data.semantic_mapper import RangedMapper
from moco_d2.transfer.data.training_data import raise_if_unusable
from moco_d2.transfer.evaluation.cityscapes import cityscapes_instance_evaluator
from moco_d2.transfer.evaluation.coco import COCOBoxEvaluator, lvis_evaluator
from moco_d2.transfer.evaluation.known_classes import only_known_classes
from moco_d2.transfer.evaluation.semantic import MeanIoUEvaluator
from moco_d2.transfer.evaluation.voc_evaluation import VOCEvaluator

logger = logging.getLogger(__name__)

INFERENCE_FOLDER = "inference"
_LONGEST_FOLDER = 60  # characters of a name


class TestMapper:
    """Detectron2's DatasetMapper for test images, with a UserError if an image cannot be read.

    In a worker process, DataLoader wraps this error; errors.as_raised unwraps it.
    """

    __test__ = False  # pytest must not collect this class because of its name

    def __init__(self, cfg: CfgNode):
        self._mapper = RangedMapper(DatasetMapper(cfg, is_train=False), cfg.MOCO.INPUT.RANGE)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """
        Raises:
            UserError: If the image cannot be read, or has not its annotated size.
        """
        try:
            return self._mapper(sample)
        except Exception as error:
            raise_if_unusable(error, f"test image {sample.get('file_name')}")
            raise


def _sem_seg(cfg: CfgNode, dataset_name: str, folder: str) -> DatasetEvaluator:
    return MeanIoUEvaluator(dataset_name, output_dir=folder)


_BUILDERS: dict[str, Callable[[CfgNode, str, str], DatasetEvaluator]] = {
    "pascal_voc": lambda cfg, name, _: VOCEvaluator(name, mode=cfg.MOCO.VOC_EVALUATION),
    # Boxes, masks and keypoints, depending on the detector.
    "coco": lambda cfg, name, folder: COCOBoxEvaluator(
        name, output_dir=folder, kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS
    ),
    "lvis": lambda _, name, folder: lvis_evaluator(name, folder),
    "cityscapes_instance": lambda _, name, __: cityscapes_instance_evaluator(name),
    # At one test scale, this gives the same mIoU over the 19 training classes as the scripts.
    "cityscapes_sem_seg": _sem_seg,
    "sem_seg": _sem_seg,
}


def evaluator_types(dataset_name: str) -> list[str]:
    """Return the ``evaluator_type`` in a dataset's metadata as a list.

    Raises:
        UserError: If none is set, or build_evaluator has no evaluator for it.
    """
    types = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if not types:
        raise UserError(
            f"dataset {dataset_name!r} has no evaluator_type: call "
            f"MetadataCatalog.get({dataset_name!r}).set(evaluator_type=...) with one of "
            f"{', '.join(_BUILDERS)}"
        )
    types = [types] if isinstance(types, str) else list(types)
    unknown = next((kind for kind in types if kind not in _BUILDERS), None)
    if unknown is not None:
        raise UserError(
            f"dataset {dataset_name!r} has evaluator_type {unknown!r}; "
            + (closest(str(unknown), _BUILDERS) or f"use one of {', '.join(_BUILDERS)}")
        )
    return types


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """Return the evaluator for the ``evaluator_type`` in a dataset's metadata. The results of
    several types are merged.

    ========================================  ================================================
    ``pascal_voc``                            voc_evaluation.VOCEvaluator; MOCO.VOC_EVALUATION
    ``coco``                                  Detectron2's; evaluators.fastest_coco_eval is used
                                              where Detectron2's own code is not compiled
    ``lvis``                                  Detectron2's, 300 detections an image
    ``cityscapes_instance``                   Detectron2's, with cityscapesscripts
    ``sem_seg``, ``cityscapes_sem_seg``       MeanIoUEvaluator
    ========================================  ================================================

    Predictions are written to OUTPUT_DIR/inference; with several test sets, to a folder in it for
    each set.

    Raises:
        UserError: As in evaluator_types, or if a package that the evaluator needs is not installed.
    """
    types = evaluator_types(dataset_name)
    folder = str(inference_folder(cfg, dataset_name))
    evaluators = [_BUILDERS[kind](cfg, dataset_name, folder) for kind in types]
    evaluator = evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)
    return only_known_classes(cfg, dataset_name, evaluator)


def inference_folder(cfg: CfgNode, dataset_name: str) -> Path:
    """Return the folder of the predictions on a test set, so that no set overwrites another's."""
    folder, names = Path(cfg.OUTPUT_DIR) / INFERENCE_FOLDER, list(cfg.DATASETS.TEST)
    if len(names) < 2:
        return folder
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", dataset_name)[-_LONGEST_FOLDER:].strip("_.")
    return folder / f"{names.index(dataset_name)}_{plain}"


def box_errors(evaluators: Mapping[str, DatasetEvaluator]) -> dict[str, dict[str, float]] | None:
    """Return tide.decompose for each dataset by name, after the evaluation and in the main process.

    The result is None if no evaluator supports it (semantic segmentation, LVIS, Cityscapes). A
    failure is only a warning, because the decomposition only explains the result of a run.
    """
    return _of_each(evaluators, "box_errors", "the errors on %s cannot be decomposed: %r") or None


def per_image(
    evaluators: Mapping[str, DatasetEvaluator],
) -> dict[str, tuple[dict[str, PerImage], list[str]]]:
    """Return what the APs on each dataset by name need of each image, like box_errors."""
    return _of_each(evaluators, "per_image", "the images of %s are not kept one by one: %r")


def _of_each(
    evaluators: Mapping[str, DatasetEvaluator], method: str, complaint: str
) -> dict[str, Any]:
    found = {}
    for name, evaluator in evaluators.items():
        for part in getattr(evaluator, "_evaluators", [evaluator]):  # parts of DatasetEvaluators
            if not hasattr(part, method):
                continue
            try:
                found[name] = getattr(part, method)()
            except Exception as error:
                logger.warning(complaint, name, error)
    return found
