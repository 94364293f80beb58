"""Choice of a dataset's evaluators by its metadata."""

import importlib
import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    SemSegEvaluator,
)

from moco_d2.errors import UserError, closest
from moco_d2.plugin import compat
from moco_d2.transfer.data.semantic_mapper import raise_if_labels_unreadable
from moco_d2.transfer.data.training_data import raise_if_unusable
from moco_d2.transfer.evaluation.known_classes import only_known_classes
from moco_d2.transfer.evaluation.tide import Detections, Objects, decompose
from moco_d2.transfer.evaluation.voc_evaluation import VOCEvaluator
from moco_d2.untrusted_images import check_regular, is_unreadable, open_image

logger = logging.getLogger(__name__)

INFERENCE_FOLDER = "inference"
_CITYSCAPES_EVALUATION = "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling"


class TestMapper:
    """Detectron2's DatasetMapper for test images, with a UserError if an image cannot be read.

    In a worker process, DataLoader wraps this error; errors.as_raised unwraps it.
    """

    __test__ = False  # pytest must not collect this class because of its name

    def __init__(self, cfg: CfgNode):
        self._mapper = DatasetMapper(cfg, is_train=False)

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


class COCOBoxEvaluator(COCOEvaluator):
    """Detectron2's COCOEvaluator, which can also decompose the errors of the boxes."""

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: Any = None) -> None:
        super()._eval_predictions(predictions, img_ids)
        # At this point, predictions of all processes have the category ids of the annotation file.
        self._gathered = [item for image in predictions for item in image["instances"]]

    def box_errors(self) -> dict[str, float]:
        """Return tide.decompose of the evaluated detections, in the main process.

        Raises:
            ValueError: As in tide.decompose.
        """
        detections = self._gathered
        truth = self._coco_api.dataset["annotations"]
        crowd = np.array([bool(item.get("iscrowd", 0)) for item in truth], dtype=bool)
        return decompose(
            Detections(
                np.array([item["image_id"] for item in detections], dtype=np.int64),
                np.array([item["category_id"] for item in detections], dtype=np.int64),
                np.array([item["score"] for item in detections], dtype=np.float64),
                _corners(detections),
            ),
            Objects(
                np.array([item["image_id"] for item in truth], dtype=np.int64),
                np.array([item["category_id"] for item in truth], dtype=np.int64),
                _corners(truth),
                crowd,
                crowd,
            ),
        )


def _corners(items: list[dict[str, Any]]) -> np.ndarray:
    """Convert COCO's x, y, width, height to x0, y0, x1, y1, (N, 4)."""
    boxes = np.array([item["bbox"] for item in items], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


class MeanIoUEvaluator(SemSegEvaluator):
    """Detectron2's SemSegEvaluator with the same mIoU for every version of Detectron2: the mean
    over the classes that occur in the ground truth.

    Detectron2's versions divide by different numbers (plugin/compat.py). They agree if every class
    occurs, as in the validation sets of VOC and Cityscapes.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        compat.set_label_reader(self, _read_labels)

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[Any]) -> None:
        """Count the pixels of each class in images and their labels.

        Raises:
            UserError: If a label file cannot be read.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            labels = self.input_file_to_gt_file[sample["file_name"]]
            try:
                check_regular(labels)  # Detectron2 would wait for the content of a pipe
                super().process([sample], [output])
            except Exception as error:
                raise_if_labels_unreadable(error, labels)
                raise

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Return ``{"sem_seg": {"mIoU", "fwIoU", "mACC", "pACC", "IoU-<class>"...}}`` in percent in
        the main process, and an empty dict in others.
        """
        results = super().evaluate()
        if results is None:
            return {}
        scores = {name: float(value) for name, value in results["sem_seg"].items()}
        # NaN for a class that does not occur.
        scores["mIoU"] = float(np.nanmean([scores[f"IoU-{name}"] for name in self._class_names]))
        return {"sem_seg": scores}


def _read_labels(file: str, dtype: Any) -> np.ndarray:
    """Return the labels (H, W) as an array of `dtype`."""
    with open_image(file) as image:
        return np.array(image, dtype=dtype)


class QuietCityscapesInstanceEvaluator(CityscapesInstanceEvaluator):
    """Detectron2's CityscapesInstanceEvaluator without the files that Cityscapes' scripts leave.

    The scripts write all matches to matches.json in the working folder, which nothing reads. On
    current NumPy this fails, because json cannot write NumPy's numbers.
    """

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Return ``{"segm": {"AP", "AP50"}}`` in percent in the main process, and an empty dict in
        others.

        Raises:
            UserError: If a label file cannot be read.
        """
        scripts: Any = importlib.import_module(_CITYSCAPES_EVALUATION)
        write = scripts.writeDict2JSON
        scripts.writeDict2JSON = lambda content, file: None
        try:
            results = super().evaluate()
        except Exception as error:
            # An error with an errno comes from the machine, because the scripts also write files.
            if getattr(error, "errno", None) is not None or not is_unreadable(error):
                raise
            reason = " ".join(str(error).split())
            raise UserError(
                f"labels of dataset {self._metadata.name!r} cannot be read ({reason}); replace the "
                "file"
            ) from error
        finally:
            scripts.writeDict2JSON = write
        return {
            task: {name: float(value) for name, value in metrics.items()}
            for task, metrics in (results or {}).items()
        }


def _cityscapes_instance(cfg: CfgNode, dataset_name: str, folder: str) -> DatasetEvaluator:
    if importlib.util.find_spec("cityscapesscripts") is None:
        raise UserError(
            f"dataset {dataset_name!r} needs Cityscapes' own scripts: pip install cityscapesscripts"
        )
    return QuietCityscapesInstanceEvaluator(dataset_name)


def _sem_seg(cfg: CfgNode, dataset_name: str, folder: str) -> DatasetEvaluator:
    return MeanIoUEvaluator(dataset_name, output_dir=folder)


_BUILDERS: dict[str, Callable[[CfgNode, str, str], DatasetEvaluator]] = {
    "pascal_voc": lambda cfg, name, _: VOCEvaluator(name, mode=cfg.MOCO.VOC_EVALUATION),
    # Boxes, masks and keypoints, depending on the detector.
    "coco": lambda cfg, name, folder: COCOBoxEvaluator(
        name, output_dir=folder, kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS
    ),
    "lvis": lambda _, name, folder: LVISEvaluator(name, output_dir=folder),
    "cityscapes_instance": _cityscapes_instance,
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
    ``coco``                                  Detectron2's; in C++ through faster-coco-eval
                                              where Detectron2's own is not compiled
    ``lvis``                                  Detectron2's, 300 detections an image
    ``cityscapes_instance``                   Detectron2's, with cityscapesscripts
    ``sem_seg``, ``cityscapes_sem_seg``       MeanIoUEvaluator
    ========================================  ================================================

    Predictions are written to OUTPUT_DIR/inference.

    Raises:
        UserError: As in evaluator_types, or if a package that the evaluator needs is not installed.
    """
    types = evaluator_types(dataset_name)
    folder = str(Path(cfg.OUTPUT_DIR) / INFERENCE_FOLDER)
    evaluators = [_BUILDERS[kind](cfg, dataset_name, folder) for kind in types]
    evaluator = evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)
    return only_known_classes(cfg, dataset_name, evaluator)


def box_errors(evaluators: Mapping[str, DatasetEvaluator]) -> dict[str, dict[str, float]] | None:
    """Return tide.decompose for each dataset by name, after the evaluation and in the main process.

    The result is None if no evaluator supports it (semantic segmentation, LVIS, Cityscapes). A
    failure is only a warning, because the decomposition only explains the result of a run.
    """
    errors = {}
    for name, evaluator in evaluators.items():
        for part in getattr(evaluator, "_evaluators", [evaluator]):  # parts of DatasetEvaluators
            if not hasattr(part, "box_errors"):
                continue
            try:
                errors[name] = part.box_errors()
            except Exception as error:
                logger.warning("the errors on %s cannot be decomposed: %r", name, error)
    return errors or None
