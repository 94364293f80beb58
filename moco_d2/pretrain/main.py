"""The function that tools/pretrain.py runs in every process."""

import argparse
import logging
from pathlib import Path

from moco_d2.engine.job import load_job
from moco_d2.engine.launch import claimed, hold_log, seed, setup_run
from moco_d2.engine.malloc import keep_freed_memory
from moco_d2.engine.terminal import first_screen
from moco_d2.pretrain.overview import describe_pretraining
from moco_d2.pretrain.pretrainer import Pretrainer

logger = logging.getLogger(__name__)


def pretrain(args: argparse.Namespace) -> None:
    """Load the config, check it, and train.

    Args:
        args: The flags; see tools/pretrain.py --help.
    """
    held = hold_log(args.config_file)
    cfg = load_job(args, fine_tunes=False)
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    cfg.freeze()
    seed(cfg)
    with claimed(cfg.OUTPUT_DIR):
        # Both calls check data, settings and checkpoint before setup_run writes a file.
        trainer = Pretrainer(cfg)
        trainer.resume_or_start(resume=args.resume)
        setup_run(trainer.cfg, args, held)
        first_screen(describe_pretraining(trainer, Path(args.config_file).name), logger)
        trainer.train()
