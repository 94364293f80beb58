"""Checks of the entries that a resumed fine-tuning run reads from its checkpoint.
engine/resume_checks.py turns a failed check into one sentence.
"""

import datetime
from typing import Any

import torch
from torch import nn

from moco_d2.engine.process_state import check_process_states
from moco_d2.engine.resume_checks import (
    check_count,
    check_grad_scaler,
    check_json,
    check_metrics,
    check_name,
    check_number,
    check_optimizer,
    check_tensors,
    entry,
    require,
    shown,
)
from moco_d2.engine.resumed_config import check_config
from moco_d2.transfer.weights import CONSTANTS

_SCHEDULER = "LRScheduler"  # Detectron2's only hook with a state


def check_content(content: dict[str, Any], model: nn.Module) -> None:
    """Check a checkpoint that TransferCheckpointer.save or Detectron2 wrote.

    The entries ``trainer`` and ``record`` are checked when they are restored.

    Raises:
        UnusableError: If it belongs to another network, or an entry cannot be used.
    """
    tensors = entry(content, "model", dict)
    for name in tensors:
        check_name(name, "name of a tensor")
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    wanted = model.state_dict()
    kept = {n: t for n, t in tensors.items() if n in wanted or not n.endswith(CONSTANTS)}
    expected = {n: t for n, t in wanted.items() if n in tensors or not n.endswith(CONSTANTS)}
    check_tensors(kept, expected, "model")
    entry(content, "trainer", dict)
    if "iteration" in content:
        check_count(content["iteration"], "iteration")
    if content.get("processes", []) != []:
        check_process_states(model, content["processes"])


def check_trainer(state: Any, optimizer: torch.optim.Optimizer) -> None:
    """Check the state of Detectron2's DefaultTrainer with its optimizer.

    Raises:
        UnusableError: If an entry cannot be used.
    """
    iteration = check_count(entry(state, "iteration", int, "trainer"), "iteration")
    hooks = entry(state, "hooks", dict, "trainer")
    for name in hooks:
        check_name(name, "name of a hook")
    _check_scheduler(
        entry(hooks, _SCHEDULER, dict, "trainer.hooks"), iteration, len(optimizer.param_groups)
    )
    inner = entry(state, "_trainer", dict, "trainer")
    check_count(entry(inner, "iteration", int, "trainer._trainer"), "iteration")
    require(not inner.get("hooks"), "its trainer._trainer has hooks")
    check_optimizer(entry(inner, "optimizer", dict, "trainer._trainer"), optimizer)
    check_grad_scaler(inner.get("grad_scaler", {}))


def _check_scheduler(state: dict[str, Any], iteration: int, groups: int) -> None:
    for key in state:
        known = type(key) is str and key in ("base_lrs", "last_epoch")
        require(known, f"its schedule has the unknown entry {shown(key)}")
    place = check_count(entry(state, "last_epoch", int, _SCHEDULER), "place in the schedule")
    same = place == iteration + 1
    require(same, f"its schedule is at {place} and its training at iteration {iteration}")
    rates = entry(state, "base_lrs", list, _SCHEDULER)
    require(len(rates) == groups, f"its schedule has {len(rates)} learning rates, not {groups}")
    for rate in rates:
        check_number(rate, "learning rate", least=0)


def check_own_entry(state: Any, iteration: int) -> None:
    """Check the entry ``moco_d2`` that Trainer.state_dict adds to Detectron2's.

    Raises:
        UnusableError: If it cannot be used.
    """
    where = "trainer.moco_d2"
    check_count(entry(state, "data_seed", int, where), "data_seed")
    check_count(entry(state, "ims_per_batch", int, where), "ims_per_batch", least=1)
    check_metrics(entry(state, "metrics", dict, where), iteration)


def check_record(state: Any) -> None:
    """Check the state of a RunRecorder, which is written as JSON at the end of the run.

    Raises:
        UnusableError: If an entry cannot be used.
    """
    for finding in entry(state, "findings", list, "record"):
        for key in ("key", "value", "message"):
            check_name(entry(finding, key, str, "record.findings"), f"finding's {key}")
        require(len(finding) == 3, "its record.findings have more than key, value and message")
    # A checkpoint of an older version has none of these three.
    for key, fingerprint in entry({"data": {}, **state}, "data", dict, "record").items():
        check_name(key, "record.data")
        check_name(fingerprint, "record.data")
    if "config" in state:
        check_config(state["config"], "record.config")
    if "config_file" in state:
        check_name(state["config_file"], "record.config_file")
    _check_weights(entry(state, "weights", type(state.get("weights")), "record"))
    coverage = entry(state, "coverage", type(state.get("coverage")), "record")
    if coverage is not None:
        expected = entry(coverage, "expected", int, "record.coverage")
        check_count(expected, "record.coverage.expected")
        missing = coverage.get("missing")
        good = type(missing) in (list, tuple) and len(missing) <= expected
        require(good, f"its record.coverage.missing is {shown(missing)}")
        for name in missing:
            check_name(name, "record.coverage.missing")
    _check_start(entry(state, "started", str, "record"))
    check_number(entry(state, "seconds", float, "record"), "record.seconds", least=0)


def _check_weights(weights: Any) -> None:
    if weights is None:
        return
    for key in ("file", "sha256"):
        check_name(entry(weights, key, str, "record.weights"), f"record.weights.{key}")
    provenance = weights.get("provenance")
    good = provenance is None or type(provenance) is dict
    require(good, f"its record.weights.provenance is {shown(provenance)}")
    check_json(weights, "record.weights")


def _check_start(text: str) -> None:
    try:
        zone = datetime.datetime.fromisoformat(text).tzinfo
    except ValueError:
        zone = None
    require(zone is not None, f"its record.started is {shown(text)}, not a time with a time zone")
