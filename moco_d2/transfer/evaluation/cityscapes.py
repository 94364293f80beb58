"""Evaluation of instance segmentation with Cityscapes' own scripts."""

import importlib
import importlib.util
from typing import Any

import numpy as np
from detectron2.evaluation import CityscapesInstanceEvaluator

from moco_d2.errors import UserError
from moco_d2.untrusted_images import is_unreadable

_SCRIPTS = "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling"


class _NumPyForScripts:
    """NumPy, but the cumulative sum of nothing is 0.

    If all detections of a class lie on ignored pixels, the scripts ask for the last element of an
    empty sum, and fail. With 0 true positives, the AP of the class is 0.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def cumsum(values: np.ndarray) -> np.ndarray:
        return np.cumsum(values) if len(values) else np.zeros(1)


class QuietCityscapesInstanceEvaluator(CityscapesInstanceEvaluator):
    """Detectron2's CityscapesInstanceEvaluator without a failure and without the files that
    Cityscapes' scripts leave.

    The scripts write all matches to matches.json in the working folder, which nothing reads. On
    current NumPy this fails, because json cannot write NumPy's numbers.
    """

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Return ``{"segm": {"AP", "AP50"}}`` in percent in the main process, and an empty dict in
        others.

        Raises:
            UserError: If a label file cannot be read.
        """
        scripts: Any = importlib.import_module(_SCRIPTS)
        kept = {name: getattr(scripts, name) for name in ("writeDict2JSON", "np")}
        scripts.writeDict2JSON = lambda content, file: None
        scripts.np = _NumPyForScripts()
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
            for name, value in kept.items():
                setattr(scripts, name, value)
        return {
            task: {name: float(value) for name, value in metrics.items()}
            for task, metrics in (results or {}).items()
        }


def cityscapes_instance_evaluator(dataset_name: str) -> CityscapesInstanceEvaluator:
    """
    Raises:
        UserError: If Cityscapes' own scripts are not installed.
    """
    if importlib.util.find_spec("cityscapesscripts") is None:
        raise UserError(
            f"dataset {dataset_name!r} needs Cityscapes' own scripts: pip install cityscapesscripts"
        )
    return QuietCityscapesInstanceEvaluator(dataset_name)
