"""The classes of a dataset beside those of the head; --force allows a head to have more."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators


def head_classes(cfg: CfgNode) -> tuple[int, str]:
    """Number of classes of the head, and the key that says so."""
    if cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor":
        return cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
    return cfg.MODEL.ROI_HEADS.NUM_CLASSES, "MODEL.ROI_HEADS.NUM_CLASSES"


def dataset_classes(cfg: CfgNode, dataset_name: str) -> list[str]:
    """The names of a registered dataset's classes, of the kind that the head finds; may be none."""
    semantic = cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor"
    kind = "stuff_classes" if semantic else "thing_classes"
    return list(MetadataCatalog.get(dataset_name).get(kind, ()))


def only_known_classes(
    cfg: CfgNode, dataset_name: str, evaluator: DatasetEvaluator
) -> DatasetEvaluator:
    """The evaluator of a dataset; where the head has more classes, as KnownClasses."""
    classes = len(dataset_classes(cfg, dataset_name))
    return KnownClasses(evaluator, classes) if 0 < classes < head_classes(cfg)[0] else evaluator


class KnownClasses(DatasetEvaluators):
    """An evaluator that is given only what a detector finds of the dataset's own classes.

    Detectron2's evaluators stop at a class that the dataset does not have.
    """

    def __init__(self, evaluator: DatasetEvaluator, classes: int):
        """
        Args:
            evaluator: of the dataset.
            classes: number of its classes, which are the head's first.
        """
        super().__init__([evaluator])
        self._classes = classes

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take the outputs of some images, without the other classes."""
        super().process(inputs, [self._known(output) for output in outputs])

    def _known(self, output: dict[str, Any]) -> dict[str, Any]:
        known = dict(output)
        if "instances" in known:
            instances = known["instances"]
            known["instances"] = instances[instances.pred_classes < self._classes]
        if "sem_seg" in known:
            known["sem_seg"] = known["sem_seg"][: self._classes]
        return known
