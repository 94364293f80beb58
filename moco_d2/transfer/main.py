"""The job of tools/train_net.py in every process: load, plan, check, train, record.

The stages return plan.LoadedRun, plan.RunPlan, the findings and the metrics, in this order.
"""

import argparse
import itertools
import logging
import logging.handlers
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from moco_d2.engine.consistency import of_images
from moco_d2.engine.exchange import decided_by_main
from moco_d2.engine.last_checkpoint import LAST_CHECKPOINT
from moco_d2.engine.launch import claimed, hold_log, seed, setup_run
from moco_d2.engine.terminal import first_screen
from moco_d2.errors import UserError
from moco_d2.records.run_schema import RECORD_FILE
from moco_d2.transfer.checkpointing import FINAL_CHECKPOINT
from moco_d2.transfer.data.registered import leave_out_missing
from moco_d2.transfer.evaluation.build import INFERENCE_FOLDER
from moco_d2.transfer.hardware_scaling import describe
from moco_d2.transfer.inference.detector import load_detector
from moco_d2.transfer.overview import describe_evaluation, describe_run
from moco_d2.transfer.plan import RunPlan, load_run, plan_run
from moco_d2.transfer.preflight.changes import apply_changes
from moco_d2.transfer.preflight.check import check
from moco_d2.transfer.preflight.findings import Finding, enforce, has_refusal
from moco_d2.transfer.preflight.weight_checks import check_coverage
from moco_d2.transfer.record import RunRecorder
from moco_d2.transfer.trainer import Trainer
from moco_d2.transfer.weights import RANDOM

logger = logging.getLogger(__name__)

_OF_A_RUN = (RECORD_FILE, LAST_CHECKPOINT, f"{FINAL_CHECKPOINT}.pth")


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Check, scale, train or evaluate, and record; see tools/train_net.py --help for the flags.

    Returns:
        The evaluation results in the main process.

    Raises:
        UserError: If the user has to fix something. Nothing is written before training begins.
    """
    held = hold_log(args.config_file)
    loaded = load_run(args)
    with claimed(loaded.cfg.OUTPUT_DIR):
        if args.eval_only:
            decided_by_main(lambda: _keep_run(Path(loaded.cfg.OUTPUT_DIR)))
        plan = plan_run(loaded, comm.get_world_size(), eval_only=args.eval_only)
        plan, findings = apply_changes(plan, check(plan))
        seed(plan.cfg)
        if plan.eval_only or has_refusal(findings):
            enforce(findings, force=args.force, logger=logger)
        if not plan.eval_only:
            return _train(plan, findings, args, held)
        model = load_detector(plan.cfg)
        setup_run(plan.cfg, args, held)
        images = {"DATASETS.TEST": sum(map(len, _test_sets(plan.cfg)))}
        first_screen(describe_evaluation(plan, images=images), logger)
        return Trainer.test(plan.cfg, model)


def _keep_run(folder: Path) -> None:
    """Refuse the folder of a training, because an evaluation writes the same files.

    Raises:
        UserError: If it is such a folder.
    """
    if any((folder / name).exists() for name in _OF_A_RUN):
        raise UserError(
            f"OUTPUT_DIR {folder} has a training run, and --eval-only would overwrite its "
            f"config.yaml, log.txt and {INFERENCE_FOLDER}/: choose another folder, as "
            f"{folder / 'evaluation'}"
        )


def _test_sets(cfg: CfgNode) -> list[list[dict[str, Any]]]:
    """Return the images of each test set, which `check` has checked."""
    return [DatasetCatalog.get(name) for name in cfg.DATASETS.TEST]


def _train(
    plan: RunPlan,
    findings: list[Finding],
    args: argparse.Namespace,
    held: logging.handlers.MemoryHandler,
) -> dict[str, Any]:
    """Train and write the record.

    The model is built and loaded before the first file is written, so a refused run leaves no
    files.
    """
    cfg = plan.cfg
    if args.force:
        leave_out_missing(cfg.DATASETS.TRAIN)
    recorder = RunRecorder(plan.config_file, cfg, dict(plan.schedule), list(findings), plan.weights)
    trainer = Trainer(cfg)
    test_images = list(itertools.chain.from_iterable(_test_sets(cfg)))
    recorder.data = {
        "DATASETS.TRAIN": of_images(trainer.data_loader.dicts),
        "DATASETS.TEST": of_images(test_images),
    }
    trainer.checkpointer.add_checkpointable("record", recorder)
    coverage = trainer.resume_or_load(resume=args.resume)
    resumed = trainer.start_iter > 0
    if resumed:
        recorder.note_changes(trainer.start_iter)
    else:
        recorder.coverage = coverage
        incomplete = check_coverage(cfg, coverage)
        findings = [*findings, *incomplete]
        recorder.findings += incomplete
    enforce(findings, force=args.force, logger=logger)
    setup_run(cfg, args, held)
    for line in describe(plan.schedule):
        logger.info("effective schedule: %s", line)
    if cfg.MODEL.WEIGHTS != RANDOM and not resumed:
        logger.info("%d of %d pretrained tensors arrived", coverage.loaded, coverage.expected)
    images = {"DATASETS.TRAIN": trainer.data_loader.images, "DATASETS.TEST": len(test_images)}
    start = trainer.start_iter
    first_screen(describe_run(plan, images=images, coverage=coverage, start=start), logger)
    metrics = trainer.train()
    if comm.is_main_process() and (metrics or not cfg.DATASETS.TEST):
        recorder.command = getattr(args, "command", None)
        recorder.errors = trainer.box_errors
        recorder.per_image = trainer.per_image
        recorder.evaluation_seconds = trainer.evaluation_seconds
        recorder.train_images = trainer.data_loader.images
        recorder.test_images = {name: trainer.test_images[name] for name in cfg.DATASETS.TEST}
        logger.info("run record: %s", recorder.write(metrics))
    return metrics
