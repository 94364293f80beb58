"""Evaluation of semantic segmentation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.evaluation import SemSegEvaluator

from moco_d2.plugin import compat
from moco_d2.transfer.data.semantic_mapper import check_labels, read_labels


class MeanIoUEvaluator(SemSegEvaluator):
    """Detectron2's SemSegEvaluator with the same mIoU for every version of Detectron2: the mean
    over the classes that occur in the ground truth.

    Detectron2's versions divide by different numbers (plugin/compat.py). They agree if every class
    occurs, as in the validation sets of VOC and Cityscapes.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # One file is read once, although it is checked before Detectron2 counts it.
        compat.set_label_reader(self, lambda _, dtype: self._labels.astype(dtype))

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[Any]) -> None:
        """Count the pixels of each class in images and their labels.

        Raises:
            UserError: If a label file cannot be read, or has a value that is no class, which
                Detectron2 would count as another class.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            file = self.input_file_to_gt_file[sample["file_name"]]
            self._labels = read_labels(file)
            check_labels(self._labels, file, self._num_classes, self._ignore_label)
            super().process([sample], [output])

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
