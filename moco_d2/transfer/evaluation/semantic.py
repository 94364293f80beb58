"""Evaluation of semantic segmentation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.evaluation import SemSegEvaluator

from moco_d2.plugin import compat
from moco_d2.transfer.data.semantic_mapper import raise_if_labels_unreadable
from moco_d2.untrusted_images import check_regular, open_image


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
