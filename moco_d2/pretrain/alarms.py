"""Warnings about what goes wrong silently: collapse, a leak, an unusual loss, waiting for data.

They read the scalars of Detectron2's EventStorage (``feature_std`` and ``pretext_accuracy`` of the
model, ``knn_accuracy`` of monitor.py, ``total_loss`` and ``data_time`` of the engine, ``time`` of
Detectron2's IterationTimer) and warn in the log. They write none: what depends on a window of the
past would differ after a resume.
"""

import logging
import os
from collections.abc import Sequence

from detectron2.engine import HookBase

from moco_d2.engine.hooks import WAITING_ABOVE

logger = logging.getLogger(__name__)

# Iterations between two looks of an alarm, and over which it looks. A random network's embeddings
# are nearly parallel: it gets this long to spread them.
WINDOW = 200
# Embeddings of unit length whose average cosine similarity is s have a feature_std of about
# sqrt(1 - s): below this, different images are 0.99 similar.
COLLAPSED_BELOW = 0.1
# Without ShuffleBN, the paper's Figure A.1 has a pretext accuracy above this, and a kNN accuracy
# that falls from 28 to 23 %.
LEAKING_ABOVE = 0.999
KNN_FALLEN_BY = 0.02


class Alarm(HookBase):
    """Looks at the storage every WINDOW iterations and warns when a finding begins, not as long as
    it lasts.
    """

    def __init__(self) -> None:
        self.ringing = False

    def finding(self) -> str | None:
        """What is wrong now, and what to do about it; None where nothing is."""
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
        """Median of a scalar over the last WINDOW iterations; None where there is no such one."""
        histories = self.trainer.storage.histories()
        return histories[name].median(WINDOW) if name in histories else None


class CollapseAlarm(Alarm):
    """Warns when all images get the same embedding."""

    def finding(self) -> str | None:
        spread = self.recent("feature_std")
        if spread is None or spread >= COLLAPSED_BELOW:
            return None
        return (
            f"the embeddings have collapsed: feature_std is {spread:.3f}, spread over the sphere "
            "it is 1; lower SOLVER.BASE_LR, or raise MOCO.MOMENTUM (0 fails, paper section 4.1)"
        )


class LeakAlarm(Alarm):
    """Warns when BatchNorm gives the positive key away (paper Appendix A.9 and Figure A.1): the
    pretext task is solved, and the features get worse.
    """

    def finding(self) -> str | None:
        accuracy = self.recent("pretext_accuracy")
        if accuracy is None or accuracy <= LEAKING_ABOVE:
            return None
        solved = f"the pretext task is solved (pretext_accuracy {accuracy:.2%})"
        advice = (
            "set MOCO.BN_SPLITS 8 on one device; on several processes ShuffleBN is on by itself, "
            "and MOCO.BN_SPLITS stays 1"
        )
        histories = self.trainer.storage.histories()
        if "knn_accuracy" not in histories:
            return (
                f"{solved}; whether the features suffer is not known: set MOCO.KNN.TRAIN and "
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
    """Compares the loss of the last WINDOW iterations with what is published for the recipe."""

    def __init__(self, band: Sequence[float]):
        """
        Args:
            band: lowest and highest loss.
        """
        self.low, self.high = band

    def after_train(self) -> None:
        if self.trainer.iter < self.trainer.max_iter:  # interrupted, or failed
            return
        loss = self.trainer.storage.history("total_loss").avg(WINDOW)
        if self.low <= loss <= self.high:
            logger.info(
                "final loss %.2f, in the recipe's band of %g to %g", loss, self.low, self.high
            )
            return
        logger.warning(
            "ExpectedLoss: the final loss is %.2f, outside the recipe's band of %g to %g: on "
            "another dataset, dictionary size, temperature or length that is no fault (set "
            'MOCO.MONITOR.EXPECTED_LOSS "()"); on the recipe\'s own, compare config.yaml with it',
            loss,
            self.low,
            self.high,
        )


class DataTimeAdvice(Alarm):
    """Warns when steps wait for data, and says which key to raise."""

    def __init__(self, *, num_workers: int, device_can_augment: bool):
        """
        Args:
            num_workers: processes that read and decode now.
            device_can_augment: whether the augmentation is on the workers, but could be elsewhere.
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
            advice.append(f"raise DATALOADER.NUM_WORKERS (now {self.num_workers} a process)")
        if self.device_can_augment:
            advice.append("set MOCO.AUGMENTATION.WHERE device")
        advice.append("put the images on a faster disk, or make them smaller")
        return (
            f"a step waits for data {data / step:.0%} of its {step:.2f} s, on {cores} CPU cores: "
            + ", or ".join(advice)
        )
