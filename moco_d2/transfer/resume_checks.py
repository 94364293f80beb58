"""Checks of the entries that a resumed fine-tuning run reads from its checkpoint, and that it is
the same run. engine/resume_checks.py turns a failed check into one sentence.
"""

import datetime
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
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
from moco_d2.engine.resumed_config import FREE_TO_CHANGE, Change, changes, check_config
from moco_d2.errors import UserError
from moco_d2.transfer.weights import CONSTANTS, RANDOM

_SCHEDULER = "LRScheduler"  # Detectron2's only hook with a state
# In addition to FREE_TO_CHANGE: these neither change what is trained nor what is recorded.
_FREE_TO_CHANGE = (
    *FREE_TO_CHANGE,
    "MODEL.WEIGHTS",  # the content of the file is compared
    "SOLVER.REFERENCE_WORLD_SIZE",  # the scaled schedule is compared
    "TEST.EVAL_PERIOD",
    "VIS_PERIOD",
    "MOCO.DRAW_SCORE",
    *("MOCO.VAL_LOSS", "MOCO.VAL_LOSS_DATA", "MOCO.VAL_LOSS_IMAGES"),
)


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


def check_same_run(cfg: CfgNode, weights: dict[str, Any] | None, state: Mapping[str, Any]) -> None:
    """Refuse to continue a run as another one: its record would name the wrong start.

    Args:
        cfg, weights: The config and the weights of this process.
        state: The checked state of the recorder in the checkpoint.

    Raises:
        UserError: If the run began with another task, seed or weights.
    """
    now = {"MODEL.WEIGHTS": (weights or {}).get("sha256")}
    before = {"MODEL.WEIGHTS": (state["weights"] or {}).get("sha256")}
    if config := state.get("config"):
        now |= {"MOCO.TASK": cfg.MOCO.TASK, "SEED": cfg.SEED}
        before |= {"MOCO.TASK": config["MOCO"]["TASK"], "SEED": config["SEED"]}
    key = next((key for key in now if now[key] != before[key]), None)
    if key is None:
        return
    texts = now[key], shown(before[key])
    if key == "MODEL.WEIGHTS":
        texts = _named(weights), _named(state["weights"])
    raise UserError(
        f"{key} is {texts[0]}, but the run in OUTPUT_DIR {cfg.OUTPUT_DIR} began with "
        f"{texts[1]}, and --resume does not begin it again: set it back, or choose another "
        "OUTPUT_DIR"
    )


def _named(weights: dict[str, Any] | None) -> str:
    return f"{weights['file']} (sha256 {weights['sha256'][:12]})" if weights else RANDOM


def changes_of_run(
    before: tuple[dict[str, Any], Mapping[str, str]],
    now: tuple[dict[str, Any], Mapping[str, str]],
    iteration: int,
) -> list[Change]:
    """Return the settings and the data that differ from those of the resumed checkpoint.

    A dataset may be at another path.

    Args:
        before, now: The config in plain types, and the fingerprints of the data.
        iteration: The number of iterations that have been trained.
    """
    found = changes(before[0], now[0], iteration=iteration, free=_FREE_TO_CHANGE)
    for key, content in now[1].items():
        recorded = before[1].get(key, content)
        if recorded != content:
            found.append(Change(iteration, f"the content of {key}", recorded, content))
        elif key in before[1]:
            found = [change for change in found if change.key != key]
    return found
