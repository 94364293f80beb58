"""The first stage of every command: the config that its words describe, on a device that is
there.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from moco_d2.config.load import load_config_of
from moco_d2.engine.launch import choose_device
from moco_d2.errors import UserError


def load_job(
    args: argparse.Namespace, overrides: Sequence[str] = (), *, fine_tunes: bool | None = None
) -> Any:
    """Load the config of a command and choose its device.

    Args:
        args: the parsed words of cli.argument_parser.
        overrides: these come before those in `args`.
        fine_tunes: whether the config has to fine-tune, which is to name a MOCO.TASK, or to
            pretrain; None takes either.

    Returns:
        a config that is not frozen.

    Raises:
        UserError: as in load_config, or the config is of the other kind.
    """
    cfg = load_config_of(args, overrides)
    if fine_tunes is True and not cfg.MOCO.TASK:
        raise UserError(
            f"{args.config_file} names no task: set MOCO.TASK, or run a pretraining config with "
            "tools/pretrain.py"
        )
    if fine_tunes is False and cfg.MOCO.TASK:
        raise UserError(
            f"{args.config_file} fine-tunes a detector ({cfg.MOCO.TASK}); run it with "
            "tools/train_net.py"
        )
    choose_device(cfg)
    return cfg
