"""Make metrics.json of a resumed run equal to that of an uninterrupted run."""

from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from moco_d2.engine.hooks import DeferredWriters
from moco_d2.files import write_text
from moco_d2.records.metrics_json import EVALUATIONS, parse_line

WINDOW = 20  # number of values in the medians of Detectron2's writers


class MetricsState(HookBase):
    """Gives checkpoints the windows of the medians and the values that are not yet written.

    On a resume it removes the lines of metrics.json after the checkpoint, because these iterations
    are trained and written again. If a finished run is lengthened, the line of its last evaluation
    stays.
    """

    def __init__(self, folder: str | Path, writers: DeferredWriters):
        """
        Args:
            folder: OUTPUT_DIR.
            writers: The writers of metrics.json.
        """
        self.file = Path(folder) / "metrics.json"
        self.writers = writers
        self.restored: dict[str, Any] = {}

    def state(self) -> dict[str, Any]:
        """Return ``{"written": last iteration in metrics.json, "histories": {name: [[value,
        iteration], ...]}, "smoothed": names}``, of plain types.
        """
        storage = self.trainer.storage
        return {
            "written": self.writers.last_write,
            "histories": {
                name: [[float(value), int(i)] for value, i in history.values()[-WINDOW:]]
                for name, history in storage.histories().items()
            },
            "smoothed": [name for name, smoothed in storage.smoothing_hints().items() if smoothed],
        }

    def before_train(self) -> None:
        storage, start = self.trainer.storage, self.trainer.start_iter
        if self.restored:
            written = self.restored["written"]
            self._restore(written)
            storage.iter = start
        else:  # without a checkpoint, or from an official file
            written = start - 1
        if comm.is_main_process() and self.file.is_file():
            lines = self.file.read_text(errors="replace").splitlines()
            # Only the evaluation after the last step has the number of the next step.
            ended = start if start < self.trainer.max_iter else None
            kept = [line for line in lines if _stays(parse_line(line), written, ended)]
            if kept != lines:
                write_text(self.file, "".join(f"{line}\n" for line in kept))

    def _restore(self, written: int) -> None:
        storage = self.trainer.storage
        self.writers.last_write = written
        # The timer warms up again, and until then an old step time would be written as new.
        self.restored["histories"].pop("time", None)
        for name, values in self.restored["histories"].items():
            for value, iteration in values[:-1]:
                storage.histories()[name].update(value, iteration)
            for value, iteration in values[-1:]:
                if iteration <= written:
                    storage.histories()[name].update(value, iteration)
                else:  # the next write must write it
                    storage.iter = iteration
                    smoothed = name in self.restored["smoothed"]
                    storage.put_scalar(name, value, smoothing_hint=smoothed)


def _stays(entry: dict[str, Any] | None, written: int, ended: int | None) -> bool:
    """Return whether a line stays: it was written before the checkpoint, or it is the evaluation
    after the last step. A step that fails leaves a line without a loss, too.
    """
    if entry is None:  # damaged
        return False
    evaluated = any(part in EVALUATIONS for name in entry for part in name.split("/")[:-1])
    at_the_end = entry["iteration"] == ended and "total_loss" not in entry and evaluated
    return entry["iteration"] <= written or at_the_end
