"""The evaluator of a dataset, by its metadata: what every Detectron2 project copies into its
script.
"""

from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator

from moco_d2.errors import UserError

INFERENCE_FOLDER = "inference"


def build_evaluator(cfg: Any, dataset_name: str) -> DatasetEvaluator:
    """The evaluator for `dataset_name`, chosen by its ``evaluator_type``.

    ``pascal_voc`` is Detectron2's VOC evaluator: 11-point AP at IoU 0.50:0.95 for VOC2007, the
    paper's metric. ``coco`` writes its predictions to OUTPUT_DIR/inference.

    Raises:
        UserError: no evaluator for this type.
    """
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type == "pascal_voc":
        return PascalVOCDetectionEvaluator(dataset_name)
    if evaluator_type == "coco":
        folder = str(Path(cfg.OUTPUT_DIR) / INFERENCE_FOLDER)
        return COCOEvaluator(dataset_name, output_dir=folder)
    raise UserError(
        f"dataset {dataset_name!r} has evaluator type {evaluator_type!r}; pascal_voc and coco "
        "are supported"
    )
