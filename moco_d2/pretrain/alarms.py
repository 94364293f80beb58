"""Warn about silent faults: collapse, leaking BatchNorm, an unusual loss, waiting for data.

The alarms read scalars from Detectron2's EventStorage (``feature_std`` and ``pretext_accuracy`` of
the model, ``knn_accuracy`` of monitor.py, ``total_loss`` and ``data_time`` of the engine, ``time``
of Detectron2's IterationTimer) and warn in the log. They write no scalars, because a value that
depends on a window of the past would differ after a resume.
"""

import logging
import os
from collections.abc import Sequence

from detectron2.engine import HookBase

from moco_d2.engine.hooks import WAITING_ABOVE

logger = logging.getLogger(__name__)

# Number of iterations between two checks of an alarm, and number that a check covers. The
# embeddings of a random network are nearly parallel, so it gets this long to spread them.
WINDOW = 200
# At an average cosine similarity s of the embeddings, feature_std is about sqrt(1 - s). Below this
# value, s is above 0.99.
COLLAPSED_BELOW = 0.1
# Without ShuffleBN, pretext accuracy exceeds this and kNN accuracy falls from 28 to 23 % (paper
# Figure A.1).
LEAKING_ABOVE = 0.999
KNN_FALLEN_BY = 0.02


class Alarm(HookBase):
    """Checks the storage every WINDOW iterations, and warns once when a fault begins."""

    def __init__(self) -> None:
        self.ringing = False

    def finding(self) -> str | None:
        """Return the current fault and its fix as a sentence, or None."""
        raise NotImplementedError

    def after_step(self) -> None:
        done = self.trainer.iter + 1 - self.trainer.start_iter
        if done % WINDOW:
            return
        finding = self.finding()
        if finding is not None and not self.ringing:
            logger.warning("%s: %s", type(self).__name__, finding)
        self.ringing = finding is not None

    def recent(self, name: str) -> float | None:
        """Return the median of a scalar over the last WINDOW iterations, or None."""
        histories = self.trainer.storage.histories()
        return histories[name].median(WINDOW) if name in histories else None


class CollapseAlarm(Alarm):
    """Warns when all images get the same embedding."""

    def finding(self) -> str | None:
        spread = self.recent("feature_std")
        if spread is None or spread >= COLLAPSED_BELOW:
            return None
        return (
            f"the embeddings have collapsed: feature_std is {spread:.3f}, and 1 would be spread "
            "over the sphere; lower SOLVER.BASE_LR, or raise MOCO.MOMENTUM (0 fails, paper section "
            "4.1)"
        )


class LeakAlarm(Alarm):
    """Warns when BatchNorm gives the positive key away (paper Appendix A.9 and Figure A.1).

    Then the pretext task is solved, and the features get worse.
    """

    def finding(self) -> str | None:
        accuracy = self.recent("pretext_accuracy")
        if accuracy is None or accuracy <= LEAKING_ABOVE:
            return None
        solved = f"the pretext task is solved (pretext_accuracy {accuracy:.2%})"
        advice = (
            "set MOCO.BN_SPLITS 8 on one device; on several processes ShuffleBN is always on, and "
            "MOCO.BN_SPLITS stays 1"
        )
        histories = self.trainer.storage.histories()
        if "knn_accuracy" not in histories:
            return (
                f"{solved}; to see whether the features get worse, set MOCO.KNN.TRAIN and "
                f"MOCO.KNN.TEST. If BatchNorm leaks the positive key: {advice}"
            )
        knn = [value for value, _ in histories["knn_accuracy"].values()]
        if knn[-1] > max(knn) - KNN_FALLEN_BY:
            return None
        return (
            f"{solved} while kNN accuracy fell from {max(knn):.1%} to {knn[-1]:.1%}: BatchNorm "
            f"leaks which key is the positive one (paper section 3.3, ShuffleBN); {advice}"
        )


class ExpectedLoss(HookBase):
    """Compares the loss of the last WINDOW iterations with the published loss of the recipe."""

    def __init__(self, band: Sequence[float]):
        """
        Args:
            band: The lowest and the highest expected loss.
        """
        self.low, self.high = band

    def after_train(self) -> None:
        if self.trainer.iter < self.trainer.max_iter:  # the run was interrupted or has failed
            return
        loss = self.trainer.storage.history("total_loss").avg(WINDOW)
        if self.low <= loss <= self.high:
            logger.info(
                "final loss %.2f, within the recipe's band of %g to %g", loss, self.low, self.high
            )
            return
        logger.warning(
            "ExpectedLoss: the final loss is %.2f, outside the recipe's band of %g to %g. With "
            "another dataset, dictionary size, temperature or length this is no fault (set "
            'MOCO.MONITOR.EXPECTED_LOSS "()"); otherwise compare config.yaml with the recipe',
            loss,
            self.low,
            self.high,
        )


class DataTimeAdvice(Alarm):
    """Warns when steps wait for data, and names the key to change."""

    def __init__(self, *, num_workers: int, device_can_augment: bool):
        """
        Args:
            num_workers: Current number of processes that read and decode images.
            device_can_augment: Whether the augmentation could move from the workers to the device.
        """
        super().__init__()
        self.num_workers = num_workers
        self.device_can_augment = device_can_augment

    def finding(self) -> str | None:
        data, step = self.recent("data_time"), self.recent("time")
        if data is None or not step or data / step <= WAITING_ABOVE:
            return None
        cores = os.cpu_count() or 1
        advice = []
        if self.num_workers < cores:
            advice.append(f"raise DATALOADER.NUM_WORKERS (now {self.num_workers} per process)")
        if self.device_can_augment:
            advice.append("set MOCO.AUGMENTATION.WHERE device")
        advice.append("put the images on a faster disk, or make them smaller")
        return (
            f"a step waits for data {data / step:.0%} of its {step:.2f} s, on {cores} CPU cores: "
            + ", or ".join(advice)
        )
