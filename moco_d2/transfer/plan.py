"""The first two stages of a fine-tuning run: load its inputs and plan it for this hardware."""

import argparse
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moco_d2.config.load import find_config_of
from moco_d2.engine.consistency import check_agreement, of_run
from moco_d2.engine.job import load_job
from moco_d2.transfer.hardware_scaling import scale_to_hardware
from moco_d2.transfer.weights import check_weights_file, describe_weights

if TYPE_CHECKING:
    from detectron2.config import CfgNode


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """The inputs of a run.

    Attributes:
        config_file: Name of the config file, ``voc_C4_moco.yaml``.
        cfg: The config, not yet scaled to the hardware.
        weights: The result of weights.describe_weights.
    """

    config_file: str
    cfg: "CfgNode"
    weights: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """The plan of a run: everything that its checks, its training and its record need.

    Attributes:
        config_file: Name of the config file.
        cfg: The frozen config as it will run.
        written: The config before it was scaled, with the numbers that the user wrote.
        schedule: The scaled schedule with its reasons; see hardware_scaling.scale_to_hardware.
        weights: The result of weights.describe_weights.
        world_size: Number of processes.
        eval_only: Whether the run evaluates MODEL.WEIGHTS and does not train.
    """

    config_file: str
    cfg: "CfgNode"
    written: "CfgNode"
    schedule: Mapping[str, Any]
    weights: dict[str, Any] | None
    world_size: int
    eval_only: bool = False

    @property
    def provenance(self) -> dict[str, Any] | None:
        """Return the converter's report inside the weight file, if it has one."""
        return (self.weights or {}).get("provenance")


def load_run(args: argparse.Namespace) -> LoadedRun:
    """Load the config and the description of the weights. All processes must call this function.

    Raises:
        UserError: If the config or the weights cannot be used or differ between the processes.
    """
    cfg = load_job(args, fine_tunes=True)
    check_weights_file(cfg.MODEL.WEIGHTS)
    weights = describe_weights(cfg.MODEL.WEIGHTS)
    check_agreement({**of_run(cfg), "the content of MODEL.WEIGHTS": (weights or {}).get("sha256")})
    return LoadedRun(find_config_of(args).name, cfg, weights)


def plan_run(loaded: LoadedRun, world_size: int, *, eval_only: bool = False) -> RunPlan:
    """Scale the schedule and the norms to the number of processes.

    Raises:
        UserError: If the batch does not divide among the processes and passes.
    """
    cfg, schedule = scale_to_hardware(loaded.cfg, world_size, trains=not eval_only)
    cfg.freeze()
    return RunPlan(
        loaded.config_file, cfg, loaded.cfg, schedule, loaded.weights, world_size, eval_only
    )
