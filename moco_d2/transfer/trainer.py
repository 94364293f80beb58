"""Detectron2's DefaultTrainer, with the checks, the exact resume and the record of a matched
comparison.
"""

import contextlib
import logging
import time
import weakref
from collections.abc import Sized
from typing import Any, cast

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from fvcore.nn.precise_bn import get_bn_modules
from torch.utils.data import DataLoader

from moco_d2.engine.consistency import check_agreement, fingerprint, of_images
from moco_d2.engine.hooks import DataTime, DeferredWriters, EvalHook, ProgressBar, StopOnSignal
from moco_d2.engine.loader import SteadyLoader
from moco_d2.engine.metrics_state import MetricsState
from moco_d2.engine.precision import amp_dtype
from moco_d2.engine.process_state import set_process_state
from moco_d2.engine.resume_checks import continuing
from moco_d2.errors import UserError, as_raised
from moco_d2.plugin import compat
from moco_d2.transfer.checkpointing import SaveCheckpoint, TransferCheckpointer
from moco_d2.transfer.data.training_data import TrainingBatches, build_training_batches, seeded
from moco_d2.transfer.divergence import DivergenceError, explain
from moco_d2.transfer.evaluation.build import TestMapper, box_errors, build_evaluator
from moco_d2.transfer.evaluation.precise_bn import PreciseBN
from moco_d2.transfer.resume_checks import check_ours, check_trainer
from moco_d2.transfer.train_step import AccumulatingTrainer
from moco_d2.transfer.weights import Coverage, loading, measure_coverage, unwrapped

logger = logging.getLogger(__name__)

_LOG_PERIOD = 20  # iterations between two lines of metrics.json, Detectron2's default


class Trainer(DefaultTrainer):
    """Fine-tunes a detector.

    A run that was stopped, or killed, and resumed has the weights of one that was not: bit for bit
    where the device computes so.

    Attributes:
        box_errors: of the last evaluation, see build.box_errors; None before it.
        evaluation_seconds: that the last evaluation took; None before it.
        test_images: the number of images of each test set that this trainer has evaluated.

    Examples:
    ::
        trainer = Trainer(cfg)
        coverage = trainer.resume_or_load(resume=False)
        trainer.train()
    """

    iter: int  # DefaultTrainer's, the iteration that runs or has run last
    _trainer: SimpleTrainer  # DefaultTrainer's, which is replaced
    box_errors: dict[str, dict[str, float]] | None = None
    evaluation_seconds: float | None = None

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: a config as it will run; see schedule.scale_to_hardware.

        Raises:
            UserError: settings that cannot be: DATALOADER.SAMPLER_TRAIN, MOCO.AMP_DTYPE.
        """
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        detectron2_cfg = cfg.clone()
        detectron2_cfg.defrost()
        detectron2_cfg.SOLVER.AMP.ENABLED = False  # Detectron2's AMPTrainer needs CUDA
        super().__init__(detectron2_cfg)
        self.cfg = cfg
        # Detectron2's own have been built only to be replaced; the hooks look these up when called.
        model, batches = self._trainer.model, self._trainer.data_loader
        self._trainer = AccumulatingTrainer(
            model,
            batches,
            self._trainer.optimizer,
            stop=self._stop,
            passes=cfg.MOCO.ACCUMULATION,
            amp_dtype=amp_dtype(cfg),
        )
        self.checkpointer = TransferCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self._processes: list[dict[str, Any]] = []
        self.test_images: dict[str, int] = {}

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainingBatches:
        """See training_data.build_training_batches."""
        return build_training_batches(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader[Any]:
        """Detectron2's, with build.TestMapper."""
        theirs = build_detection_test_loader(cfg, dataset_name, mapper=TestMapper(cfg))
        return SteadyLoader(  # its workers leave signals to this process
            theirs.dataset,
            batch_sampler=theirs.batch_sampler,
            num_workers=theirs.num_workers,
            collate_fn=theirs.collate_fn,
        )

    @classmethod
    def test(cls, cfg: CfgNode, model: Any, evaluators: Any = None) -> dict[str, Any]:
        """Detectron2's.

        Raises:
            UserError: a test image or its labels cannot be read.
        """
        try:
            return super().test(cfg, model, evaluators)
        except UserError as error:
            raise as_raised(error) from error

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """See build.build_evaluator."""
        return build_evaluator(cfg, dataset_name)

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks in their order, PreciseBN and checkpoints replaced by ours, a progress
        bar, and a stop that saves.
        """
        cfg = self.cfg
        writers = DeferredWriters(self.build_writers, cfg.OUTPUT_DIR)
        self._metrics = MetricsState(cfg.OUTPUT_DIR, writers)
        saver = SaveCheckpoint(cfg.SOLVER.CHECKPOINT_PERIOD)
        self._stop = StopOnSignal(saver.save_now)
        built: list[HookBase] = [self._metrics, hooks.IterationTimer(), hooks.LRScheduler()]
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            precise = cfg.TEST.PRECISE_BN
            built.append(PreciseBN(cfg.TEST.EVAL_PERIOD, self.data_loader, precise.NUM_ITER))
        built.append(EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate))
        if comm.is_main_process():
            built.append(_WriteEvaluation(cfg.TEST.EVAL_PERIOD, writers))
            built.append(hooks.PeriodicWriter([writers], period=_LOG_PERIOD))
            built.append(DataTime())
            built.append(ProgressBar(cfg.MOCO.TASK or "training"))
        # The generators come last before the first step, and a checkpoint last after each.
        return [*built, _RestoreGenerators(), saver, self._stop]

    def _evaluate(self) -> dict[str, Any]:
        model = unwrapped(self.model)
        names = self.cfg.DATASETS.TEST
        evaluators = {name: self.build_evaluator(self.cfg, name) for name in names}
        test_images = self.test_images

        # Detectron2's test is the class's, and the number is this run's.
        class Counting(type(self)):  # type: ignore[misc]  # a subclass keeps what it overrides
            @classmethod
            def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader[Any]:
                loader = super().build_test_loader(cfg, dataset_name)
                test_images[dataset_name] = len(cast(Sized, loader.dataset))
                return loader

        # A loader draws a seed when it starts: without this, how often a run is evaluated would
        # change which regions it samples next.
        with seeded(self.data_loader.seed, next(model.parameters()).device):
            started = time.perf_counter()
            self._last_eval_results = Counting.test(self.cfg, model, list(evaluators.values()))
            self.evaluation_seconds = time.perf_counter() - started
        if comm.is_main_process() and self.iter + 1 >= self.max_iter:
            self.box_errors = box_errors(evaluators)
        return self._last_eval_results

    def after_train(self) -> None:
        """TrainerBase's, with the iteration right where there was nothing left to train."""
        self.iter = min(self.iter, self.max_iter)
        super().after_train()

    def resume_or_load(self, resume: bool = True) -> Coverage:
        """Load the newest intact checkpoint in OUTPUT_DIR, or MODEL.WEIGHTS.

        Returns:
            which of the pretrained tensors arrived.

        Raises:
            UserError: Detectron2 cannot read the file, as happens with one that is not converted;
                or the checkpoint is of a run with another batch, or holds what cannot be used; or
                without `resume`, OUTPUT_DIR holds a run;
                or the processes have other weights or data.
        """
        found = self.checkpointer.has_checkpoint()
        if found and not resume:
            raise UserError(
                f"OUTPUT_DIR {self.cfg.OUTPUT_DIR} holds a run: continue it with --resume, or "
                "choose another folder"
            )
        if found:
            file = self.checkpointer.newest_intact()
            with continuing(file), measure_coverage(unwrapped(self.model)) as measured:
                rest = self.checkpointer.resume(file)
            self.checkpointer.name(file)
            self.start_iter = self.iter + 1
            self.data_loader.start = self.start_iter * self.cfg.MOCO.ACCUMULATION  # passes
            self._processes = rest.get("processes", [])
        else:
            file = self.cfg.MODEL.WEIGHTS
            convert = "convert it: tools/convert.py"
            with (
                loading(f"MODEL.WEIGHTS {file}", convert),
                measure_coverage(unwrapped(self.model)) as measured,
            ):
                self.checkpointer.load(file, checkpointables=[])
        if comm.get_world_size() > 1:
            check_agreement(
                {
                    "the first iteration": self.start_iter,
                    "the training data": of_images(self.data_loader.dicts),
                    "the values of the weights": fingerprint(self.model.parameters()),
                }
            )
        return measured.result

    def restore_generators(self) -> None:
        """Take up the state of this process where the checkpoint left it."""
        if not self._processes:
            return
        if not set_process_state(unwrapped(self.model), self._processes):
            logger.warning(
                "the checkpoint was saved by %d process(es) and is continued by %d: the same "
                "images, but not bit for bit",
                len(self._processes),
                comm.get_world_size(),
            )

    def state_dict(self) -> dict[str, Any]:
        """Iteration, hooks and optimizer, under the names that today's main uses; and ours."""
        state = super().state_dict()
        if not compat.checkpoints_hold_the_optimizer(DefaultTrainer):
            state["_trainer"] = self._trainer.state_dict()
        state["moco_d2"] = {
            "metrics": self._metrics.state(),
            "data_seed": self.data_loader.seed,
            "ims_per_batch": self.cfg.SOLVER.IMS_PER_BATCH,
        }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what state_dict gave.

        Raises:
            UserError: the checkpoint has no optimizer: it was written by stock Detectron2 v0.6; or
                it was made with another batch, by which its place in the data is counted.
            UnusableError: an entry cannot be used.
        """
        if "_trainer" not in state_dict:
            raise UserError(
                "the checkpoint has no optimizer state (stock Detectron2 v0.6 leaves it out), so "
                "it cannot be resumed; start again without --resume"
            )
        check_trainer(state_dict, self.optimizer)
        ours = state_dict.get("moco_d2")  # absent from a checkpoint of today's Detectron2
        if ours is not None:
            check_ours(ours, state_dict["iteration"])
            batch = self.cfg.SOLVER.IMS_PER_BATCH
            if ours["ims_per_batch"] != batch:
                raise UserError(
                    f"the checkpoint was trained with {ours['ims_per_batch']} images a step, by "
                    f"which its schedule is counted, and this run has {batch}: resume on as many "
                    "processes, or with SOLVER.REFERENCE_WORLD_SIZE 0 and SOLVER.IMS_PER_BATCH "
                    f"{ours['ims_per_batch']}"
                )
            self._metrics.restored = ours["metrics"]
            self.data_loader.reseed(ours["data_seed"])
        rates = list(self.scheduler.base_lrs)
        super().load_state_dict(state_dict)
        if not compat.checkpoints_hold_the_optimizer(DefaultTrainer):
            self._trainer.load_state_dict(state_dict["_trainer"])
        self._set_rates(rates)

    def _set_rates(self, rates: list[float]) -> None:
        """Let the config decide on the learning rate, not the checkpoint: who resumes a run that
        has diverged may have lowered it.
        """
        before, self.scheduler.base_lrs = self.scheduler.base_lrs, rates
        if before != rates:
            logger.warning(
                "resuming with SOLVER.BASE_LR %g; the checkpoint had another",
                self.cfg.SOLVER.BASE_LR,
            )
        # A function of the iteration alone, which has been restored.
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_lr(), strict=True):
            group["lr"] = rate

    def train(self) -> dict[str, Any]:
        """Train, evaluate, and return the evaluation results ``{"bbox": {"AP": ...}}`` (main
        process; else empty).

        Raises:
            UserError: the loss is no longer finite, or a training image cannot be used.
        """
        try:
            with contextlib.closing(self._trainer):
                super().train()
        except DivergenceError as error:
            # No checkpoint is written with a tensor that is not finite: the newest is good.
            last_good = self.checkpointer.get_checkpoint_file()
            raise UserError(explain(self.cfg, self.iter, error, last_good)) from error
        return getattr(self, "_last_eval_results", None) or {}


class _WriteEvaluation(HookBase):
    """Writes right after an evaluation: of several between two lines, the next would have the
    last only.
    """

    def __init__(self, period: int, writers: DeferredWriters):
        self._period = period
        self._writers = writers

    def after_step(self) -> None:
        if self._period > 0 and (self.trainer.iter + 1) % self._period == 0:
            self._writers.write()


class _RestoreGenerators(HookBase):
    """After all that draws random numbers on the way to the first step."""

    def before_train(self) -> None:
        self.trainer.restore_generators()
