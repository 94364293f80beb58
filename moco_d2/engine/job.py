"""Load the config of a command line, with a device that exists."""

import argparse
from collections.abc import Sequence
from typing import Any

from moco_d2.checkpoint import hub
from moco_d2.config.load import is_typed, load_config_of
from moco_d2.config.plain import flatten, to_plain
from moco_d2.engine.device import choose_device
from moco_d2.errors import UserError
from moco_d2.records.plain_values import Limits, check_values

# Far more than a config has. Files have limits of their own.
_LIMITS = Limits(values=1_000_000, levels=100, key=10_000, text=1_000_000, all_text=100_000_000)


def load_job(
    args: argparse.Namespace, overrides: Sequence[str] = (), *, fine_tunes: bool | None = None
) -> Any:
    """Load the config of a command and choose its device.

    Args:
        args: The parsed flags of cli.argument_parser.
        overrides: Further overrides. Those in `args` take precedence.
        fine_tunes: Whether the config must fine-tune (name a MOCO.TASK) or pretrain; None allows
            both.

    Returns:
        A config that is not frozen.

    Raises:
        UserError: If load_config fails, the config is of the other kind, or a value has a character
            that cannot be seen.
    """
    cfg = load_config_of(args, overrides)
    if is_typed("MODEL.WEIGHTS", args, overrides):
        hub.allow(cfg.MODEL.WEIGHTS)
    for name, value in {**flatten(to_plain(cfg)), **vars(args)}.items():
        try:
            check_values([value], _LIMITS)
        except ValueError as error:
            reason = str(error).removeprefix("damaged, ")
            raise UserError(
                f"{name} has {reason}, with which readers refuse the record of the run: write the "
                "value again, or rename what it names"
            ) from error
    if fine_tunes is True and not cfg.MOCO.TASK:
        raise UserError(
            f"{args.config_file} names no task: add --task NAME, a task of configs/task, or run "
            "a pretraining config with tools/pretrain.py"
        )
    if fine_tunes is False and cfg.MOCO.TASK:
        raise UserError(
            f"{args.config_file} fine-tunes a detector ({cfg.MOCO.TASK}); run it with "
            "tools/train_net.py"
        )
    choose_device(cfg)
    return cfg
