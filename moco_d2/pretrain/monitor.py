"""What a run tells while it learns: kNN accuracy, and alarms for what goes wrong silently.

Scalars go through Detectron2's EventStorage, so into metrics.json and TensorBoard: here
``knn_accuracy`` and ``pretext_chance``. The alarms are in alarms.py.
"""

import logging
import math
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks

from moco_d2.files import atomic_write
from moco_d2.pretrain.alarms import CollapseAlarm, DataTimeAdvice, ExpectedLoss, LeakAlarm
from moco_d2.pretrain.probe.knn import Features, KNNMonitor
from moco_d2.pretrain.probe.neighbor_sheet import as_array, neighbor_sheet

logger = logging.getLogger(__name__)


def build_monitors(cfg: CfgNode, *, is_main: bool) -> list[HookBase]:
    """All monitoring hooks of a pretraining run; after the timer and before the writers.

    Args:
        cfg: after `schedule.scale_recipe`.
        is_main: whether this process is the one that evaluates and warns; the others wait for it.

    Raises:
        UserError: the kNN folders cannot be compared, or MOCO.MONITOR.EXPECTED_LOSS is no range.
    """
    monitors: list[HookBase] = []
    knn = cfg.MOCO.KNN
    if knn.TRAIN or knn.TEST:
        monitors.append(KNNEvaluation.from_config(cfg, is_main=is_main))
    if not is_main:
        return monitors
    if cfg.MOCO.PRETEXT == "moco":
        monitors += [
            PretextChance(num_logits(cfg), symmetric=cfg.MOCO.SYMMETRIC),
            CollapseAlarm(),
            LeakAlarm(),
        ]
        if len(cfg.MOCO.MONITOR.EXPECTED_LOSS):
            monitors.append(ExpectedLoss(cfg.MOCO.MONITOR.EXPECTED_LOSS))
    on_cpu = cfg.MODEL.DEVICE == "cpu"
    monitors.append(
        DataTimeAdvice(
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            device_can_augment=not on_cpu and cfg.MOCO.AUGMENTATION.WHERE == "workers",
        )
    )
    return monitors


def num_logits(cfg: CfgNode) -> int:
    """Keys that a query is compared with: its own and the dictionary's K, or the batch's."""
    if cfg.MOCO.DICTIONARY.NAME == "EndToEnd":
        return cfg.SOLVER.IMS_PER_BATCH // cfg.MOCO.ACCUMULATION
    return 1 + cfg.MOCO.DICTIONARY.SIZE


class KNNEvaluation(hooks.EvalHook):
    """kNN accuracy of the query encoder before training, every `period` iterations and at the end,
    with a sheet of nearest neighbors. One process evaluates, the others wait.
    """

    def __init__(
        self,
        monitor: KNNMonitor | None,
        *,
        period: int,
        sheet_queries: int = 0,
        sheet_folder: str | Path = "",
    ):
        """
        Args:
            monitor: None in the processes that wait.
            period: iterations; 0: only at the start and the end.
            sheet_queries: rows of the sheet; 0: none.
            sheet_folder: gets ITERATION.png, numbered as in metrics.json.
        """
        super().__init__(period, self._evaluate)
        self.monitor = monitor
        self.sheet_queries = sheet_queries
        self.sheet_folder = Path(sheet_folder)

    @classmethod
    def from_config(cls, cfg: CfgNode, *, is_main: bool) -> "KNNEvaluation":
        """From ``cfg.MOCO.KNN`` and ``cfg.MOCO.MONITOR``; both folders are listed now.

        Raises:
            UserError: they cannot be compared.
        """
        knn = cfg.MOCO.KNN
        monitor = KNNMonitor(
            knn.TRAIN,
            knn.TEST,
            size=cfg.MOCO.AUGMENTATION.SIZE,
            neighbors=knn.NEIGHBORS,
            temperature=knn.TEMPERATURE,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )
        return cls(
            monitor if is_main else None,
            period=knn.PERIOD,
            sheet_queries=cfg.MOCO.MONITOR.NEIGHBORS,
            sheet_folder=Path(cfg.OUTPUT_DIR) / "neighbors",
        )

    def before_train(self) -> None:
        if self.trainer.start_iter == 0:  # the random network: the value to compare with
            self._do_eval()

    def _evaluate(self) -> dict[str, float]:
        if self.monitor is None:
            return {}
        model = self.trainer.model
        network = model.encoder_q if hasattr(model, "encoder_q") else model.encoder
        train, test = self.monitor.features(network)
        accuracy = self.monitor.accuracy(train, test, next(network.parameters()).device)
        logger.info("kNN accuracy: %.4f", accuracy)
        if self.sheet_queries > 0:
            self._write_sheet(self.monitor, train, test, accuracy)
        return {"knn_accuracy": accuracy}

    def _write_sheet(
        self, monitor: KNNMonitor, train: Features, test: Features, accuracy: float
    ) -> None:
        storage = self.trainer.storage
        sheet = neighbor_sheet(
            monitor.train,
            monitor.test,
            train,
            test,
            queries=self.sheet_queries,
            title=f"iteration {storage.iter}: kNN accuracy {accuracy:.1%}",
        )
        with atomic_write(self.sheet_folder / f"{storage.iter:07d}.png") as temporary:
            sheet.save(temporary)
        storage.put_image("neighbors", as_array(sheet))


class PretextChance(HookBase):
    """What guessing gives: in the log, and beside ``pretext_accuracy`` as ``pretext_chance``."""

    def __init__(self, logits: int, *, symmetric: bool = False):
        """
        Args:
            logits: of which one is right.
            symmetric: the loss is the sum of two.
        """
        self.chance = 1 / logits
        self.loss = (2 if symmetric else 1) * math.log(logits)

    def before_train(self) -> None:
        logger.info("by chance, pretext_accuracy is %.3g and the loss %.2f", self.chance, self.loss)

    def after_step(self) -> None:
        self.trainer.storage.put_scalar("pretext_chance", self.chance, smoothing_hint=False)
