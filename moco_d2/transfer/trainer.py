"""A trainer that adds the checks, the exact resume and the record of a matched comparison to
Detectron2's DefaultTrainer.
"""

import contextlib
import time
import weakref
from collections.abc import Mapping, Sized
from types import MappingProxyType
from typing import Any, cast

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from fvcore.nn.precise_bn import get_bn_modules
from torch.utils.data import DataLoader

from moco_d2.engine.hooks import DataTime, DeferredWriters, EvalHook, StopOnSignal
from moco_d2.engine.loader import SteadyLoader
from moco_d2.engine.metrics_state import MetricsState
from moco_d2.engine.one_pass import update_in_one_pass
from moco_d2.engine.precision import amp_dtype
from moco_d2.engine.terminal import ProgressBar, WithBar
from moco_d2.engine.trackers import Trackers
from moco_d2.errors import UserError, as_raised
from moco_d2.plugin.evaluators import USED_EVALUATORS
from moco_d2.records.image_matches import PerImage
from moco_d2.transfer.checkpointing import SaveCheckpoint, TransferCheckpointer
from moco_d2.transfer.data.training_data import TrainingBatches, build_training_batches, seeded
from moco_d2.transfer.divergence import DivergenceError, explain
from moco_d2.transfer.evaluation.build import TestMapper, box_errors, build_evaluator, per_image
from moco_d2.transfer.evaluation.precise_bn import PreciseBN
from moco_d2.transfer.optimizer import build_adamw
from moco_d2.transfer.resumable_trainer import RestoreGenerators, ResumableTrainer
from moco_d2.transfer.train_step import AccumulatingTrainer
from moco_d2.transfer.validation_loss import ValidationLoss
from moco_d2.transfer.weights import unwrapped

_LOG_PERIOD = 20  # iterations between two lines of metrics.json, Detectron2's default


class Trainer(ResumableTrainer):
    """Fine-tunes a detector.

    A run that was stopped or killed and then resumed ends with the weights of an uninterrupted
    run. They are equal bit for bit on a device that computes deterministically.

    Attributes:
        box_errors: The result of build.box_errors for the last evaluation; None before it.
        per_image: The result of build.per_image for the last evaluation.
        evaluation_seconds: Duration of the last evaluation; None before it.
        test_images: Number of images of each test set that this trainer has evaluated, by name.

    Examples:
    ::
        trainer = Trainer(cfg)
        coverage = trainer.resume_or_load(resume=False)
        trainer.train()
    """

    box_errors: dict[str, dict[str, float]] | None = None
    evaluation_seconds: float | None = None
    per_image: Mapping[str, tuple[Mapping[str, PerImage], list[str]]] = MappingProxyType({})

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: The config as it will run; see hardware_scaling.scale_to_hardware.

        Raises:
            UserError: If DATALOADER.SAMPLER_TRAIN or MOCO.AMP_DTYPE cannot be used.
        """
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        detectron2_cfg = cfg.clone()
        detectron2_cfg.defrost()
        detectron2_cfg.SOLVER.AMP.ENABLED = False  # Detectron2's AMPTrainer needs CUDA
        super().__init__(detectron2_cfg)
        self.cfg = cfg
        # Detectron2's trainer and checkpointer are replaced. Its hooks look them up when called.
        model, batches = self._trainer.model, self._trainer.data_loader
        self._trainer = AccumulatingTrainer(
            model,
            batches,
            self._trainer.optimizer,
            stop=self._stop,
            saver=self._saver,
            passes=cfg.MOCO.ACCUMULATION,
            amp_dtype=amp_dtype(cfg),
        )
        self.checkpointer = TransferCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self._processes: list[dict[str, Any]] = []
        self.test_images: dict[str, int] = {}

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: Any) -> Any:
        """Return Detectron2's SGD, or build_adamw if MOCO.OPTIMIZER asks for it."""
        if cfg.MOCO.OPTIMIZER == "AdamW":
            return build_adamw(cfg, model)
        optimizer = super().build_optimizer(cfg, model)
        update_in_one_pass(optimizer)
        return optimizer

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainingBatches:
        """Return training_data.build_training_batches of the config."""
        return build_training_batches(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader[Any]:
        """Return Detectron2's test loader with build.TestMapper."""
        loader = build_detection_test_loader(cfg, dataset_name, mapper=TestMapper(cfg))
        steady: DataLoader[Any] = SteadyLoader(  # its workers leave signals to this process
            loader.dataset,
            batch_sampler=loader.batch_sampler,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
        )
        return cast(DataLoader[Any], WithBar(steady, f"evaluating {dataset_name}"))

    @classmethod
    def test(cls, cfg: CfgNode, model: Any, evaluators: Any = None) -> dict[str, Any]:
        """Evaluate as Detectron2 does.

        Raises:
            UserError: If a test image or its labels cannot be read.
        """
        try:
            return super().test(cfg, model, evaluators)
        except UserError as error:
            raise as_raised(error) from error

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """Return build.build_evaluator of the config and the dataset."""
        return build_evaluator(cfg, dataset_name)

    def build_hooks(self) -> list[HookBase]:
        """Return Detectron2's hooks in their order, with PreciseBN and checkpoints of this package,
        a progress bar, and a hook that saves and stops on a signal.
        """
        cfg = self.cfg
        writers = DeferredWriters(self.build_writers, cfg.OUTPUT_DIR)
        trackers = Trackers(cfg, lambda: self.start_iter > 0)
        self._metrics = MetricsState(cfg.OUTPUT_DIR, writers)
        self._saver = saver = SaveCheckpoint(
            cfg.SOLVER.CHECKPOINT_PERIOD, cfg.MOCO.CHECKPOINT.MINUTES
        )
        self._stop = StopOnSignal(saver.save_now)
        built: list[HookBase] = [self._metrics, hooks.IterationTimer(), hooks.LRScheduler()]
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            precise = cfg.TEST.PRECISE_BN
            built.append(PreciseBN(cfg.TEST.EVAL_PERIOD, self.data_loader, precise.NUM_ITER))
        if cfg.MOCO.VAL_LOSS:
            # The trainer with autocast is set after the hooks are built.
            built.append(ValidationLoss(cfg, lambda: self._trainer.autocast()))  # noqa: PLW0108
        if cfg.DATASETS.TEST:
            built.append(EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate))
        if comm.is_main_process():
            for period in (cfg.TEST.EVAL_PERIOD, cfg.MOCO.VAL_LOSS):
                built.append(_WriteEvaluation(period, writers, trackers))
            built.append(hooks.PeriodicWriter([writers, trackers], period=_LOG_PERIOD))
            built.append(DataTime())
            built.append(ProgressBar(cfg.MOCO.TASK or "training"))
        # The order matters: the generators are restored after everything else that precedes the
        # first step, and a checkpoint is saved after everything else in a step.
        return [*built, RestoreGenerators(), saver, self._stop]

    def _evaluate(self) -> dict[str, Any]:
        model = unwrapped(self.model)
        names = self.cfg.DATASETS.TEST
        evaluators = {name: self.build_evaluator(self.cfg, name) for name in names}
        test_images = self.test_images

        # Detectron2's test() is a class method, but the counts belong to this instance. The base
        # is type(self), because a subclass keeps the methods that it overrides.
        class Counting(type(self)):  # type: ignore[misc]
            @classmethod
            def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader[Any]:
                loader = super().build_test_loader(cfg, dataset_name)
                test_images[dataset_name] = len(cast(Sized, loader.dataset))
                return loader

        # A loader draws a seed when it starts. Without `seeded`, the number of evaluations would
        # change the regions that training samples next.
        with seeded(self.data_loader.seed, next(model.parameters()).device):
            USED_EVALUATORS.clear()
            started = time.perf_counter()
            self._last_eval_results = Counting.test(self.cfg, model, list(evaluators.values()))
            self.evaluation_seconds = time.perf_counter() - started
        if comm.is_main_process() and self.iter + 1 >= self.max_iter:
            self.box_errors = box_errors(evaluators)
            self.per_image = per_image(evaluators)
        return self._last_eval_results

    def after_train(self) -> None:
        """Call TrainerBase.after_train with a valid iteration, also if no step was left to run."""
        self.iter = min(self.iter, self.max_iter)
        super().after_train()

    def train(self) -> dict[str, Any]:
        """Train and evaluate.

        Returns:
            The evaluation results ``{"bbox": {"AP": ...}}`` in the main process; empty in others.

        Raises:
            UserError: If the loss is no longer finite, or a training image cannot be used.
        """
        try:
            with contextlib.closing(self._trainer):
                super().train()
        except DivergenceError as error:
            # TransferCheckpointer writes no tensor that is not finite, so the newest file is good.
            last_good = self.checkpointer.get_checkpoint_file()
            raise UserError(explain(self.cfg, self.iter, error, last_good)) from error
        return getattr(self, "_last_eval_results", None) or {}


class _WriteEvaluation(HookBase):
    """Writes metrics right after an evaluation. Otherwise, the next periodic line would hold only
    the last of several evaluations.
    """

    def __init__(self, period: int, *writers: EventWriter):
        self._period = period
        self._writers = writers

    def after_step(self) -> None:
        if self._period > 0 and (self.trainer.iter + 1) % self._period == 0:
            for writer in self._writers:
                writer.write()
