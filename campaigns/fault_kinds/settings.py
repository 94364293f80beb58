"""Settings with which a run would be another than its record says: schedules that do not fit, other
settings at a resume, and weights that are more than a backbone.
"""

import functools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fault_kinds.case import Kind, Outcome, check
from fault_kinds.jobs import Job, no_traceback, run
from fault_kinds.machine import one_sentence
from fault_kinds.workloads import FineTuning, Pretraining, Training, words_of


@functools.cache
def _fine_tuning() -> FineTuning:
    return FineTuning("fine-tuning")


@functools.cache
def _pretraining() -> Pretraining:
    return Pretraining("pretraining", **{"SOLVER.MAX_ITER": 6})


def _refuse(workload: Training, out: Path, settings: dict[str, Any], named: str) -> str:
    """Start a run that must be refused with one sentence and leave its folder as it was."""
    before = _content(out)
    words = [*workload.words(out), *words_of(settings)]
    job = Job(workload.tool, words, out.with_suffix(".log"), before=workload.before)
    check(job.wait() != 0, f"{settings} goes on, but should be refused")
    sentence = one_sentence(job)
    check(named in sentence, f"{named} is not named: {sentence}")
    check(_content(out) == before, f"a refused run changed {out.name}")
    return sentence[:120]


def _content(folder: Path) -> dict[str, bytes]:
    files = folder.rglob("*") if folder.exists() else ()
    # The first line of the log is written before the run is refused.
    return {str(p): p.read_bytes() for p in files if p.is_file() and p.name != "log.txt"}


#: Name -> settings of a new run, and what the refusal names.
SCHEDULES: dict[str, tuple[Callable[[], Training], dict[str, Any], str]] = {
    "steps beyond the end": (_fine_tuning, {"SOLVER.MAX_ITER": 4}, "SOLVER.STEPS"),
    "an end in the warm-up": (
        _fine_tuning,
        {"SOLVER.STEPS": "()", "SOLVER.WARMUP_ITERS": 7},
        "SOLVER.WARMUP_ITERS",
    ),
    "a warm-up after the first step": (
        _fine_tuning,
        {"SOLVER.WARMUP_ITERS": 4},
        "SOLVER.WARMUP_ITERS",
    ),
    "no step": (_fine_tuning, {"SOLVER.MAX_ITER": 0}, "SOLVER.MAX_ITER"),
    "no batch": (_fine_tuning, {"SOLVER.IMS_PER_BATCH": 0}, "SOLVER.IMS_PER_BATCH"),
    "a negative rate": (_fine_tuning, {"SOLVER.BASE_LR": -0.01}, "SOLVER.BASE_LR"),
    "a rate that is not a number": (_fine_tuning, {"SOLVER.BASE_LR": "nan"}, "SOLVER.BASE_LR"),
    "less than no worker": (_fine_tuning, {"DATALOADER.NUM_WORKERS": -1}, "NUM_WORKERS"),
    "pretraining, steps beyond the end": (
        _pretraining,
        {"MOCO.LR_SCHEDULE": "step", "MOCO.LR_STEPS": "(120, 160)"},
        "MOCO.LR_STEPS",
    ),
    "pretraining, no step": (
        _pretraining,
        {"MOCO.EPOCHS": 0, "SOLVER.MAX_ITER": 0},
        "SOLVER.MAX_ITER",
    ),
    "pretraining, no batch": (_pretraining, {"SOLVER.IMS_PER_BATCH": 0}, "SOLVER.IMS_PER_BATCH"),
}


def schedule(rng: random.Random, folder: Path, i: int) -> Outcome:
    """Start a run whose schedule does not fit together."""
    name = list(SCHEDULES)[i % len(SCHEDULES)]
    workload, settings, named = SCHEDULES[name]
    said = _refuse(workload(), folder / "out", settings, named)
    return Outcome(f"{name}: {said}", 1, {"refused": 1})


#: Settings of which a resume makes another run.
_OTHER_RUN = {"SEED": 5, "MOCO.TASK": "mine"}
#: Settings that may change at a resume, if the record names them.
_CHANGES = {
    "SOLVER.BASE_LR": 0.0001,
    "SOLVER.WEIGHT_DECAY": 0.0,
    "SOLVER.MOMENTUM": 0.8,
    "INPUT.RANDOM_FLIP": "none",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.5,
    "TEST.DETECTIONS_PER_IMAGE": 50,
}
#: Settings that may change at a resume without a word.
_FREE = {
    "DATALOADER.NUM_WORKERS": 1,
    "SOLVER.CHECKPOINT_PERIOD": 3,
    "TEST.EVAL_PERIOD": 0,
    "MOCO.DRAW_SCORE": 0.9,
    "MOCO.CHECKPOINT.MINUTES": 5,
}


def _finished(out: Path) -> None:
    """Copy a finished run to `out`."""
    shutil.copytree(_fine_tuning().reference_folder, out)


def resume(rng: random.Random, folder: Path, i: int) -> Outcome:
    """Resume a finished run as another one, or lengthen it with other settings."""
    out, workload = folder / "out", _fine_tuning()
    _finished(out)
    if i % 3 == 0:
        key = rng.choice([*_OTHER_RUN, "MODEL.WEIGHTS"])
        settings = {"MODEL.WEIGHTS": out / "model_final.pth", **_OTHER_RUN}
        said = _refuse(workload, out, {key: settings[key]}, key)
        return Outcome(f"another {key}: {said}", 1, {"refused": 1})
    chosen = rng.sample(sorted(_CHANGES), rng.randrange(4))
    free = rng.sample(sorted(_FREE), rng.randrange(3))
    length = {"SOLVER.MAX_ITER": rng.randrange(8, 11), "SOLVER.STEPS": "(3,)"}
    settings = {key: (_CHANGES | _FREE)[key] for key in (*chosen, *free)} | length
    words = [*workload.words(out), *words_of(settings)]
    job = run(workload.tool, words, folder / "out.log", before=workload.before)
    record = json.loads((out / "record.json").read_text())
    found = {change["key"]: change for change in record["changes"]}
    check(found.keys() == {*chosen, *length}, f"the record names {sorted(found)}, not {settings}")
    for key, change in found.items():
        check(change["iteration"] == workload.settings["SOLVER.MAX_ITER"], f"{key}: {change}")
        check(key in job.output(), f"the log does not name {key}")
    check(record["schedule"]["max_iter"] == length["SOLVER.MAX_ITER"], "it is not lengthened")
    no_traceback(job.output())
    return Outcome(f"lengthened with {', '.join(sorted(settings))}", 1, {"goes on": 1})


def detector(rng: random.Random, folder: Path, i: int) -> Outcome:
    """Begin a run from a finished detector, or from its backbone alone."""
    out, workload = folder / "out", _fine_tuning()
    numbered = sorted(workload.reference_folder.glob("model_*.pth"))
    settings = {"MODEL.WEIGHTS": rng.choice(numbered), "SOLVER.MAX_ITER": 4, "SOLVER.STEPS": "(3,)"}
    if i % 2 == 0:
        said = _refuse(workload, out, settings, "MOCO.BACKBONE_ONLY")
        return Outcome(f"a whole detector: {said}", 1, {"refused": 1})
    settings["MOCO.BACKBONE_ONLY"] = True
    words = [*workload.words(out), *words_of(settings)]
    run(workload.tool, words, folder / "out.log", before=workload.before)
    record = json.loads((out / "record.json").read_text())
    check(record["config"]["resolved"]["MOCO"]["BACKBONE_ONLY"], "the record does not say so")
    check(record["coverage"]["loaded"] == record["coverage"]["expected"], "tensors are missing")
    return Outcome("the backbone of a detector", 1, {"goes on": 1})


KINDS = (
    Kind(
        "schedule that does not fit",
        "A run that would end before its learning rate is reached or lowered, or that has no step, "
        "is refused with one sentence that names the key, before anything is written.",
        len(SCHEDULES),
        schedule,
    ),
    Kind(
        "resume with other settings",
        "A run is not resumed with another seed, task or weights. Any other setting that changes "
        "is in the log and in the record, with both values; so a finished run can be lengthened.",
        30,
        resume,
    ),
    Kind(
        "detector as weights",
        "A run does not begin from the heads of a finished detector: it is refused with one "
        "sentence, or takes only the backbone and says so in its record.",
        10,
        detector,
    ),
)
