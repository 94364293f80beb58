"""Monitor a pretraining: kNN accuracy, accuracy of guessing, and the alarms of alarms.py.

The scalars ``knn_accuracy`` and ``pretext_chance`` go through Detectron2's EventStorage into
metrics.json and TensorBoard.
"""

import logging
import math
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks

from moco_d2.files import atomic_write
from moco_d2.pretrain.alarms import CollapseAlarm, DataTimeAdvice, ExpectedLoss, LeakAlarm
from moco_d2.pretrain.data.image_list import ImageList
from moco_d2.pretrain.probe.knn import KNNMonitor
from moco_d2.pretrain.probe.labeled import Features
from moco_d2.pretrain.probe.neighbor_sheet import as_array, neighbor_sheet

logger = logging.getLogger(__name__)


def build_monitors(
    cfg: CfgNode, *, is_main: bool, trained_on: ImageList | None = None
) -> list[HookBase]:
    """Return the monitoring hooks of a pretraining. They run after the timer, before the writers.

    Args:
        cfg: A config that `schedule.scale_recipe` has scaled.
        is_main: Whether this process evaluates and warns. The other processes wait for it.
        trained_on: The training images, if they are files.

    Raises:
        UserError: If the kNN folders cannot be compared, or a test image is trained on.
    """
    monitors: list[HookBase] = []
    knn = cfg.MOCO.KNN
    if knn.TRAIN or knn.TEST:
        monitors.append(KNNEvaluation.from_config(cfg, is_main=is_main, trained_on=trained_on))
    if not is_main:
        return monitors
    if cfg.MOCO.PRETEXT == "moco":
        monitors += [
            PretextChance(num_logits(cfg), symmetric=cfg.MOCO.SYMMETRIC),
            CollapseAlarm(),
            LeakAlarm(),
        ]
    if cfg.MOCO.PRETEXT == "mocov3":
        factor = 2 * cfg.MOCO.TEMPERATURE
        chance = PretextChance(cfg.SOLVER.IMS_PER_BATCH, symmetric=True, factor=factor)
        monitors += [chance, CollapseAlarm()]
    if cfg.MOCO.PRETEXT != "supervised" and len(cfg.MOCO.MONITOR.EXPECTED_LOSS):
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
    """Return the number of keys that a query is compared with."""
    if cfg.MOCO.DICTIONARY.NAME == "EndToEnd":
        return cfg.SOLVER.IMS_PER_BATCH // cfg.MOCO.ACCUMULATION
    return 1 + cfg.MOCO.DICTIONARY.SIZE


class KNNEvaluation(hooks.EvalHook):
    """Measures the kNN accuracy of the query encoder, and draws a sheet of nearest neighbors.

    It runs before training, every `period` iterations and at the end. One process evaluates, the
    others wait.
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
            monitor: The measurement; None in the processes that wait.
            period: Iterations between two evaluations; 0 evaluates only at the start and the end.
            sheet_queries: Rows of the sheet; 0 draws no sheet.
            sheet_folder: The folder for ITERATION.png, numbered as in metrics.json.
        """
        super().__init__(period, self._evaluate)
        self.monitor = monitor
        self.sheet_queries = sheet_queries
        self.sheet_folder = Path(sheet_folder)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, *, is_main: bool, trained_on: ImageList | None = None
    ) -> "KNNEvaluation":
        """Build from ``cfg.MOCO.KNN`` and ``cfg.MOCO.MONITOR``, and list both folders.

        Raises:
            UserError: If the folders cannot be compared, or a test image is in `trained_on`.
        """
        knn = cfg.MOCO.KNN
        monitor = KNNMonitor(
            knn.TRAIN,
            knn.TEST,
            size=cfg.MOCO.AUGMENTATION.SIZE,
            neighbors=knn.NEIGHBOURS,
            temperature=knn.TEMPERATURE,
            protocol=knn.PROTOCOL,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            value_range=cfg.MOCO.INPUT.RANGE,
        )
        if trained_on is not None:
            monitor.check_held_out(trained_on, f"DATASETS.TRAIN {cfg.DATASETS.TRAIN[0]}")
        return cls(
            monitor if is_main else None,
            period=knn.PERIOD,
            sheet_queries=cfg.MOCO.MONITOR.NEIGHBOURS,
            sheet_folder=Path(cfg.OUTPUT_DIR) / "neighbours",
        )

    def before_train(self) -> None:
        if self.trainer.start_iter == 0:  # measure the random network, for comparison
            self._do_eval()

    def _evaluate(self) -> dict[str, float]:
        if self.monitor is None:
            return {}
        model = self.trainer.model
        network = model.encoder_q if hasattr(model, "encoder_q") else model.encoder
        # The last batch is smaller, and each shape would be compiled for minutes.
        with torch.compiler.set_stance("force_eager"):
            train, test = self.monitor.features(network)
        accuracy = self.monitor.accuracy(train, test, next(network.parameters()).device)
        logger.info("kNN accuracy (protocol %s): %.4f", self.monitor.protocol, accuracy)
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
        storage.put_image("neighbours", as_array(sheet))


class PretextChance(HookBase):
    """Reports what guessing reaches: in the log, and as ``pretext_chance`` in the metrics."""

    def __init__(self, logits: int, *, symmetric: bool = False, factor: float = 1.0):
        """
        Args:
            logits: Number of logits, of which one is right.
            symmetric: Whether the loss is the sum of two directions.
            factor: Factor on the cross-entropy in the loss.
        """
        self.chance = 1 / logits
        self.loss = factor * (2 if symmetric else 1) * math.log(logits)

    def before_train(self) -> None:
        logger.info(
            "guessing has a pretext_accuracy of %.3g and a loss of %.2f", self.chance, self.loss
        )

    def after_step(self) -> None:
        self.trainer.storage.put_scalar("pretext_chance", self.chance, smoothing_hint=False)
