"""What tools/train_net.py runs in every process."""

import argparse
import logging

from detectron2.utils import comm

from moco_d2.config import load_config
from moco_d2.errors import UserError
from moco_d2.launch import choose_device, hold_log, seed, setup_run
from moco_d2.transfer import preflight
from moco_d2.transfer.datasets import check_datasets
from moco_d2.transfer.detector import load_detector
from moco_d2.transfer.record import RunRecorder
from moco_d2.transfer.schedule import scale_to_hardware
from moco_d2.transfer.trainer import Trainer
from moco_d2.transfer.weights import (
    RANDOM,
    check_weights_file,
    describe_weights,
)

logger = logging.getLogger(__name__)


def train(args: argparse.Namespace) -> None:
    """Check, scale, train or evaluate, and record; see tools/train_net.py --help for the flags."""
    held = hold_log()
    cfg = load_config(args.config_file, args.opts)
    if not cfg.MOCO.TASK:
        raise UserError(
            f"{args.config_file} names no task: set MOCO.TASK, or run a pretraining config with "
            "tools/pretrain.py"
        )
    choose_device(cfg)
    check_weights_file(cfg.MODEL.WEIGHTS)
    check_datasets(cfg)
    cfg, schedule = scale_to_hardware(cfg, comm.get_world_size())
    cfg.freeze()
    seed(cfg)
    weights = describe_weights(cfg.MODEL.WEIGHTS)
    findings = preflight.check_config(cfg, (weights or {}).get("provenance"))
    preflight.enforce(findings, force=args.force, logger=logger)
    if args.eval_only:
        setup_run(cfg, args, held)
        evaluate(cfg)
        return
    # The model is built and filled before the first file is written: a refused run leaves nothing
    # behind.
    recorder = RunRecorder(str(args.config_file), schedule, findings, weights)
    trainer = Trainer(cfg)
    coverage = trainer.resume_or_load(resume=args.resume)
    resumed = trainer.start_iter > 0
    if not resumed:
        incomplete = preflight.check_coverage(cfg, coverage)
        preflight.enforce(incomplete, force=args.force, logger=logger)
        findings += incomplete
    setup_run(cfg, args, held)
    for note in schedule["notes"]:
        logger.info("effective schedule: %s", note)
    if cfg.MODEL.WEIGHTS != RANDOM and not resumed:
        logger.info("%d of %d pretrained tensors arrived", coverage.loaded, coverage.expected)
    metrics = trainer.train()
    if comm.is_main_process() and metrics:
        logger.info("run record: %s", recorder.write(cfg, coverage, metrics))


def evaluate(cfg) -> dict:
    """Evaluate MODEL.WEIGHTS, a finished detector, on DATASETS.TEST."""
    return Trainer.test(cfg, load_detector(cfg))
