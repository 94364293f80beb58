"""The third stage of a fine-tuning run: find everything that would make its result wrong."""

import logging

from detectron2.utils import comm

from moco_d2.transfer.norms import has_vit
from moco_d2.transfer.plan import RunPlan
from moco_d2.transfer.preflight.config_checks import (
    check_config,
    check_memory,
    check_name,
    check_schedule,
    check_settings,
)
from moco_d2.transfer.preflight.dataset_checks import check_datasets
from moco_d2.transfer.preflight.findings import Finding
from moco_d2.transfer.preflight.memory import available_bytes
from moco_d2.transfer.preflight.trained_classes import check_trained_classes
from moco_d2.transfer.preflight.validation_checks import check_validation_loss
from moco_d2.transfer.preflight.weight_checks import check_coverage, check_tensors
from moco_d2.transfer.weights import CONVERT, RANDOM, loading, measure_coverage, tensor_names


def check(plan: RunPlan, *, data: bool = True) -> list[Finding]:
    """Return all findings that need no model; findings.enforce refuses a run that has any.

    All processes must call this function, and all get the same findings.

    Args:
        plan: The run.
        data: Whether the datasets are read and checked, too.
    """
    cfg = plan.cfg
    findings = check_datasets(cfg, eval_only=plan.eval_only) if data else []
    findings += check_config(cfg, plan.provenance, world_size=plan.world_size)
    if plan.eval_only:
        return [*findings, *check_trained_classes(cfg)]
    available = _smallest_of_processes(available_bytes(cfg.MODEL.DEVICE, comm.get_local_size()))
    return [
        *findings,
        *check_name(cfg, plan.config_file),
        *check_schedule(cfg, plan.written),
        *check_settings(cfg),
        *(check_tensors(cfg, tensor_names(cfg.MODEL.WEIGHTS)) if has_vit(cfg) else ()),
        *(check_validation_loss(cfg) if data else ()),
        *check_memory(cfg, available=available, world_size=plan.world_size),
    ]


def check_arrival(plan: RunPlan) -> list[Finding]:
    """Return findings if the weights do not fill the pretrained part of the detector.

    It builds the detector on the CPU and loads the weights. A run does so by itself; a suite asks
    before its first run.

    Raises:
        UserError: If the file cannot be read.
    """
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    cfg = plan.cfg
    if cfg.MODEL.WEIGHTS == RANDOM:
        return []
    cpu = cfg.clone()
    cpu.defrost()
    cpu.MODEL.DEVICE = "cpu"
    model = build_model(cpu)
    logging.disable(logging.WARNING)  # Detectron2 lists all tensors
    try:
        with (
            loading(f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS}", CONVERT),
            measure_coverage(model, backbone_only=cfg.MOCO.BACKBONE_ONLY) as measured,
        ):
            DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    finally:
        logging.disable(logging.NOTSET)
    return check_coverage(cfg, measured.result)


def _smallest_of_processes(number: int | None) -> int | None:
    """Return the smallest number of all processes; None if any process has None."""
    numbers = comm.all_gather(number)
    return None if None in numbers else min(numbers)
