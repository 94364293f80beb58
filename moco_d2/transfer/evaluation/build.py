"""The evaluators of a dataset, by its metadata: what every Detectron2 project copies into its
script.
"""

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
    """Detectron2's DatasetMapper of test images, with one sentence where an image cannot be read.

    Where it runs in a worker process, DataLoader wraps the sentence: see errors.as_raised.
    """

    __test__ = False  # no test, whatever pytest makes of the name

    def __init__(self, cfg: CfgNode):
        self._mapper = DatasetMapper(cfg, is_train=False)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """
        Raises:
            UserError: the image cannot be read, or has another size than was annotated.
        """
        try:
            return self._mapper(sample)
        except Exception as error:
            raise_if_unusable(error, f"test image {sample.get('file_name')}")
            raise


class COCOBoxEvaluator(COCOEvaluator):
    """Detectron2's COCOEvaluator, which can also say what kinds of errors the boxes have."""

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: Any = None) -> None:
        super()._eval_predictions(predictions, img_ids)
        # Of all processes, and by now with the categories of the annotation file.
        self._gathered = [item for image in predictions for item in image["instances"]]

    def box_errors(self) -> dict[str, float]:
        """tide.decompose of what evaluate has seen, in the main process.

        Raises:
            ValueError: there is no object to be found.
        """
        found = self._gathered
        truth = self._coco_api.dataset["annotations"]
        crowd = np.array([bool(item.get("iscrowd", 0)) for item in truth], dtype=bool)
        return decompose(
            Detections(
                np.array([item["image_id"] for item in found], dtype=np.int64),
                np.array([item["category_id"] for item in found], dtype=np.int64),
                np.array([item["score"] for item in found], dtype=np.float64),
                _corners(found),
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
    """(N, 4) x0, y0, x1, y1 of COCO's x, y, width, height."""
    boxes = np.array([item["bbox"] for item in items], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


class MeanIoUEvaluator(SemSegEvaluator):
    """Detectron2's SemSegEvaluator with one definition of mIoU, whichever Detectron2 is installed:
    the mean over the classes that occur in the ground truth.

    Detectron2's versions differ in the divisor (plugin/compat.py). They agree where every class
    occurs, as in the validation sets of VOC and Cityscapes.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        compat.set_label_reader(self, _read_labels)

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[Any]) -> None:
        """Count the pixels of each class in images and their labels.

        Raises:
            UserError: a label file cannot be read.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            labels = self.input_file_to_gt_file[sample["file_name"]]
            try:
                check_regular(labels)  # Detectron2 would wait for what comes out of a pipe
                super().process([sample], [output])
            except Exception as error:
                raise_if_labels_unreadable(error, labels)
                raise

    def evaluate(self) -> dict[str, dict[str, float]]:
        """``{"sem_seg": {"mIoU", "fwIoU", "mACC", "pACC", "IoU-<class>"...}}`` in percent, in the
        main process; empty in others.
        """
        results = super().evaluate()
        if results is None:
            return {}
        scores = {name: float(value) for name, value in results["sem_seg"].items()}
        # NaN for a class that does not occur.
        scores["mIoU"] = float(np.nanmean([scores[f"IoU-{name}"] for name in self._class_names]))
        return {"sem_seg": scores}


def _read_labels(file: str, dtype: Any) -> np.ndarray:
    """(H, W) of `dtype`, a copy."""
    with open_image(file) as image:
        return np.array(image, dtype=dtype)


class QuietCityscapesInstanceEvaluator(CityscapesInstanceEvaluator):
    """Detectron2's CityscapesInstanceEvaluator without the files that Cityscapes' scripts leave.

    They write all matches to matches.json in the working folder, for nobody to read, and fail at it
    on current NumPy, whose counts are no numbers to json.
    """

    def evaluate(self) -> dict[str, dict[str, float]]:
        """``{"segm": {"AP", "AP50"}}`` in percent, in the main process; empty in others.

        Raises:
            UserError: a label file cannot be read.
        """
        scripts: Any = importlib.import_module(_CITYSCAPES_EVALUATION)
        write = scripts.writeDict2JSON
        scripts.writeDict2JSON = lambda content, file: None
        try:
            results = super().evaluate()
        except Exception as error:
            # An error with a number is the machine's: the scripts write files, too.
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


def _voc(cfg: CfgNode, dataset_name: str, folder: str) -> DatasetEvaluator:
    return VOCEvaluator(dataset_name, mode=cfg.MOCO.VOC_EVALUATION)


def _coco(cfg: CfgNode, dataset_name: str, folder: str) -> DatasetEvaluator:
    return COCOBoxEvaluator(
        dataset_name, output_dir=folder, kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS
    )


def _lvis(cfg: CfgNode, dataset_name: str, folder: str) -> DatasetEvaluator:
    return LVISEvaluator(dataset_name, output_dir=folder)


def _cityscapes_instance(cfg: CfgNode, dataset_name: str, folder: str) -> DatasetEvaluator:
    if importlib.util.find_spec("cityscapesscripts") is None:
        raise UserError(
            f"dataset {dataset_name!r} needs Cityscapes' own scripts: pip install cityscapesscripts"
        )
    return QuietCityscapesInstanceEvaluator(dataset_name)


def _sem_seg(cfg: CfgNode, dataset_name: str, folder: str) -> DatasetEvaluator:
    return MeanIoUEvaluator(dataset_name, output_dir=folder)


_BUILDERS: dict[str, Callable[[Any, str, str], DatasetEvaluator]] = {
    "pascal_voc": _voc,
    "coco": _coco,  # boxes, masks, keypoints, whichever the detector predicts
    "lvis": _lvis,
    "cityscapes_instance": _cityscapes_instance,
    # The mIoU over the 19 training classes is the same on one scale, and needs no scripts.
    "cityscapes_sem_seg": _sem_seg,
    "sem_seg": _sem_seg,
}


def evaluator_types(dataset_name: str) -> list[str]:
    """The ``evaluator_type`` in a dataset's metadata, each one that build_evaluator knows.

    Raises:
        UserError: none is set, or there is no evaluator for it.
    """
    types = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if not types:
        raise UserError(
            f"dataset {dataset_name!r} does not say how it is evaluated: "
            f"MetadataCatalog.get({dataset_name!r}).set(evaluator_type=...), one of "
            f"{', '.join(_BUILDERS)}"
        )
    types = [types] if isinstance(types, str) else list(types)
    unknown = next((kind for kind in types if kind not in _BUILDERS), None)
    if unknown is not None:
        raise UserError(
            f"dataset {dataset_name!r} has evaluator_type {unknown!r}; "
            + (closest(str(unknown), _BUILDERS) or f"there is {', '.join(_BUILDERS)}")
        )
    return types


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """The evaluator for `dataset_name`, chosen by the ``evaluator_type`` in its metadata: one name,
    or several, whose results are then merged.

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
        UserError: as in evaluator_types, or what the evaluator needs is not installed.
    """
    types = evaluator_types(dataset_name)
    folder = str(Path(cfg.OUTPUT_DIR) / INFERENCE_FOLDER)
    evaluators = [_BUILDERS[kind](cfg, dataset_name, folder) for kind in types]
    evaluator = evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)
    return only_known_classes(cfg, dataset_name, evaluator)


def box_errors(evaluators: Mapping[str, DatasetEvaluator]) -> dict[str, dict[str, float]] | None:
    """What the boxes of each dataset lose AP50 to (tide.decompose), of evaluators that
    have evaluated, by name of the dataset; in the main process.

    None where no evaluator can say: regions, LVIS, Cityscapes. A failure is a warning: a run must
    not end for what is only an explanation of its result.
    """
    found = {}
    for name, evaluator in evaluators.items():
        for one in getattr(evaluator, "_evaluators", [evaluator]):  # of DatasetEvaluators
            if not hasattr(one, "box_errors"):
                continue
            try:
                found[name] = one.box_errors()
            except Exception as error:
                logger.warning("no decomposition of the errors on %s: %r", name, error)
    return found or None
