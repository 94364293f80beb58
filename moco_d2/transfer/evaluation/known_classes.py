"""Comparison of a dataset's classes with the head's; with --force, the head may have more."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators


def head_classes(cfg: CfgNode) -> tuple[int, str]:
    """Return the head's number of classes and its config key."""
    if cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor":
        return cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
    return cfg.MODEL.ROI_HEADS.NUM_CLASSES, "MODEL.ROI_HEADS.NUM_CLASSES"


def dataset_classes(cfg: CfgNode, dataset_name: str) -> list[str]:
    """Return the class names of a registered dataset: stuff classes for a SemanticSegmentor, thing
    classes for a detector. The list may be empty.
    """
    semantic = cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor"
    kind = "stuff_classes" if semantic else "thing_classes"
    return list(MetadataCatalog.get(dataset_name).get(kind, ()))


def first_difference(names: list[str], others: list[str]) -> tuple[int, str, str] | None:
    """Return the first number of two different names, and both names; None if there is none.

    Only numbers that both lists have are compared.
    """
    pairs = enumerate(zip(names, others, strict=False))
    return next(((i, one, other) for i, (one, other) in pairs if one != other), None)


def only_known_classes(
    cfg: CfgNode, dataset_name: str, evaluator: DatasetEvaluator
) -> DatasetEvaluator:
    """Return `evaluator`, in a KnownClasses if the head has more classes than the dataset."""
    classes = len(dataset_classes(cfg, dataset_name))
    return KnownClasses(evaluator, classes) if 0 < classes < head_classes(cfg)[0] else evaluator


class KnownClasses(DatasetEvaluators):
    """An evaluator that ignores detections of classes that the dataset does not have.

    Detectron2's evaluators raise an error for such a class.
    """

    def __init__(self, evaluator: DatasetEvaluator, classes: int):
        """
        Args:
            evaluator: The evaluator of the dataset.
            classes: The dataset's number of classes, which are the first ones of the head.
        """
        super().__init__([evaluator])
        self._classes = classes

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Process the outputs of some images without the head's other classes."""
        super().process(inputs, [self._known(output) for output in outputs])

    def _known(self, output: dict[str, Any]) -> dict[str, Any]:
        known = dict(output)
        if "instances" in known:
            instances = known["instances"]
            known["instances"] = instances[instances.pred_classes < self._classes]
        if "sem_seg" in known:
            known["sem_seg"] = known["sem_seg"][: self._classes]
        return known
