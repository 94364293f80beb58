"""Evaluation of instance segmentation with Cityscapes' own scripts."""

import importlib
import importlib.util
from typing import Any

from detectron2.evaluation import CityscapesInstanceEvaluator

from moco_d2.errors import UserError
from moco_d2.untrusted_images import is_unreadable

_SCRIPTS = "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling"


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
        scripts: Any = importlib.import_module(_SCRIPTS)
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
