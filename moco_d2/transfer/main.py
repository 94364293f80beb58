"""What tools/train_net.py runs in every process."""

import argparse
import logging
import logging.handlers
from typing import Any

from detectron2.utils import comm

from moco_d2.config.load import find_config, load_config_of
from moco_d2.engine.consistency import check_agreement, of_run
from moco_d2.engine.launch import choose_device, claimed, hold_log, seed, setup_run
from moco_d2.errors import UserError
from moco_d2.transfer.data.registered import leave_out_missing
from moco_d2.transfer.inference.detector import load_detector
from moco_d2.transfer.preflight import config_checks
from moco_d2.transfer.preflight.dataset_checks import check_datasets
from moco_d2.transfer.preflight.findings import enforce, has_refusal
from moco_d2.transfer.preflight.memory import available_bytes
from moco_d2.transfer.record import RunRecorder
from moco_d2.transfer.schedule import describe, scale_to_hardware
from moco_d2.transfer.trainer import Trainer
from moco_d2.transfer.weights import (
    RANDOM,
    check_weights_file,
    describe_weights,
)

logger = logging.getLogger(__name__)


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Check, scale, train or evaluate, and record; see tools/train_net.py --help for the flags.

    Returns:
        the evaluation results, in the main process.

    Raises:
        UserError: something the user can mend. If training has not begun, nothing is written.
    """
    held = hold_log()
    cfg = load_config_of(args)
    if not cfg.MOCO.TASK:
        raise UserError(
            f"{args.config_file} names no task: set MOCO.TASK, or run a pretraining config with "
            "tools/pretrain.py"
        )
    choose_device(cfg)
    check_weights_file(cfg.MODEL.WEIGHTS)
    weights = describe_weights(cfg.MODEL.WEIGHTS)
    check_agreement({**of_run(cfg), "the content of MODEL.WEIGHTS": (weights or {}).get("sha256")})
    with claimed(cfg.OUTPUT_DIR):
        return _train(args, cfg, weights, held)


def _train(
    args: argparse.Namespace,
    cfg: Any,
    weights: dict[str, Any] | None,
    held: logging.handlers.MemoryHandler,
) -> dict[str, Any]:
    """`train` in an OUTPUT_DIR in which no other run is at work."""
    findings = check_datasets(cfg, eval_only=args.eval_only)
    world_size = comm.get_world_size()
    cfg, schedule = scale_to_hardware(cfg, world_size)
    cfg.freeze()
    seed(cfg)
    provenance = (weights or {}).get("provenance")
    findings += config_checks.check_config(cfg, provenance, world_size=world_size)
    if args.eval_only:
        enforce(findings, force=args.force, logger=logger)
        model = load_detector(cfg)
        setup_run(cfg, args, held)
        return Trainer.test(cfg, model)
    findings += config_checks.check_schedule(cfg) + config_checks.check_settings(cfg)
    available = smallest_of_processes(available_bytes(cfg.MODEL.DEVICE, comm.get_local_size()))
    findings += config_checks.check_memory(cfg, available=available, world_size=world_size)
    if has_refusal(findings):
        enforce(findings, force=args.force, logger=logger)
    if args.force:
        leave_out_missing(cfg.DATASETS.TRAIN)
    # The model is built and filled before the first file is written: a refused run leaves nothing
    # behind.
    recorder = RunRecorder(find_config(args.config_file).name, schedule, list(findings), weights)
    trainer = Trainer(cfg)
    trainer.checkpointer.add_checkpointable("record", recorder)
    coverage = trainer.resume_or_load(resume=args.resume)
    resumed = trainer.start_iter > 0
    if not resumed:
        recorder.coverage = coverage
        incomplete = config_checks.check_coverage(cfg, coverage)
        findings += incomplete
        recorder.findings += incomplete
    enforce(findings, force=args.force, logger=logger)
    setup_run(cfg, args, held)
    for line in describe(schedule):
        logger.info("effective schedule: %s", line)
    if cfg.MODEL.WEIGHTS != RANDOM and not resumed:
        logger.info("%d of %d pretrained tensors arrived", coverage.loaded, coverage.expected)
    metrics = trainer.train()
    if comm.is_main_process() and metrics:
        recorder.command = getattr(args, "command", None)
        recorder.errors = trainer.box_errors
        recorder.evaluation_seconds = trainer.evaluation_seconds
        recorder.train_images = trainer.data_loader.images
        recorder.test_images = {name: trainer.test_images[name] for name in cfg.DATASETS.TEST}
        logger.info("run record: %s", recorder.write(cfg, metrics))
    return metrics


def smallest_of_processes(number: int | None) -> int | None:
    """The smallest that any process has, so that all decide alike; None if one does not know."""
    numbers = comm.all_gather(number)
    return None if None in numbers else min(numbers)
