"""Checks of one row of a board: its record against the files of the run and a new evaluation."""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moco_d2.benchmark.records.compare import record_content, record_file
from moco_d2.benchmark.records.importing import CONFIG_NAME, read_run_config
from moco_d2.benchmark.records.run_records import Record, to_record
from moco_d2.benchmark.runs.children import in_child
from moco_d2.config.plain import flatten, matched_sha256
from moco_d2.errors import UserError
from moco_d2.files import sha256, sha256_of_json, write_text
from moco_d2.records.environment import versions

#: Points. A table prints one decimal, so a smaller difference is not seen there.
TOLERANCE = 0.05
_TOOL = "train_net.py"
_MODEL = "model_final.pth"
_MOST_NAMED = 5


@dataclass(frozen=True)
class Check:
    """One thing that was compared. `agrees` is None if it could not be compared, and `text` says
    why, or what was compared.
    """

    name: str
    agrees: bool | None
    text: str

    def __str__(self) -> str:
        verdict = {True: "agrees", False: "DIFFERS", None: "not checked"}[self.agrees]
        return f"{self.name}: {verdict}: {self.text}"


def verify(run: str | Path, *, weights: str | Path | None = None, evaluate: bool = True) -> int:
    """Compare a record with its run, and print what agrees and what differs.

    Compared are the config with its fingerprints and config.yaml, the weights that the run started
    from, the version of this package, and the metrics of a new evaluation of model_final.pth, on
    one process. Nothing is written into the folder of the run.

    Args:
        run: An output folder, or a record in it.
        weights: The weights that the run started from (default: MODEL.WEIGHTS, if it is a file).
        evaluate: Whether the kept model is evaluated again.

    Returns:
        1 if anything differs, and otherwise 0.

    Raises:
        UserError: If the record, the model or the data cannot be used.
    """
    file = record_file(Path(run))
    content = record_content(file)
    record = to_record(file, content)
    model = file.parent / _MODEL
    if weights is not None and not Path(weights).is_file():
        raise UserError(f"--weights {weights} is not a file; name the weights of the run")
    if evaluate and not model.is_file():
        raise UserError(
            f"{model} does not exist, so the run cannot be evaluated again; restore the file, or "
            "check only the rest with --no-evaluation"
        )
    if evaluate and not record.metrics:
        raise UserError(f"{file} has no metrics to compare; check only the rest: --no-evaluation")
    checks = [*_config(content, file), _weights(content, weights), _code(record)]
    if evaluate:
        found = in_child({_TOOL}, _evaluate, record, model)
        checks.append(_result(record.metrics, found))
    print(file)
    for check in checks:
        print(f"  {check}")
    counts = [[check.agrees for check in checks].count(verdict) for verdict in (True, False, None)]
    print("  {} agree, {} differ, {} not checked".format(*counts))
    return int(counts[1] > 0)


def _config(content: Mapping[str, Any], file: Path) -> Iterator[Check]:
    config = content["config"]
    resolved = config["resolved"]
    fingerprints = {
        "sha256": sha256_of_json(resolved),
        "matched_sha256": matched_sha256(resolved),
    }
    wrong = [name for name, value in fingerprints.items() if config[name] != value]
    text = f"not the config that has its {' and '.join(wrong)}" if wrong else "its fingerprints"
    yield Check("config of the record", not wrong, text)
    path = file.parent / CONFIG_NAME
    if not path.is_file():
        yield Check(CONFIG_NAME, None, "there is no such file beside the record")
        return
    ours, theirs = flatten(read_run_config(path)[0]), flatten(resolved)
    keys = sorted(k for k in ours | theirs if ours.get(k) != theirs.get(k))
    yield Check(CONFIG_NAME, not keys, f"in {_listed(keys)}" if keys else f"all {len(ours)} keys")


def _weights(content: Mapping[str, Any], given: str | Path | None) -> Check:
    name, recorded = "weights", content["weights"]
    if recorded is None:
        return Check(name, None if given else True, "the run began with random weights")
    expected = recorded["sha256"]
    named = flatten(content["config"]["resolved"]).get("MODEL.WEIGHTS")
    path = Path(given or (named if isinstance(named, str) else ""))
    if expected is None:
        return Check(name, None, "the record has no sha256 of them")
    try:
        found = sha256(path) if path.is_file() else None
    except OSError:  # the path may be longer than a path, or no file of data
        found = None
    if found is None:
        return Check(name, None, f"{recorded['file']} is not here; name it with --weights")
    text = f"sha256 {found}" + ("" if found == expected else f", in the record {expected}")
    return Check(name, found == expected, text)


def _code(record: Record) -> Check:
    here = versions()
    there = record.environment
    if "moco_d2" not in there:
        return Check("code", None, "the record does not have the version of moco_d2")
    others = [
        f"{name} {there[name]} there and {here[name]} here"
        for name in ("torch", "torchvision")
        if there.get(name, here[name]) != here[name]
    ]
    same = there["moco_d2"] == here["moco_d2"]
    text = f"moco_d2 {there['moco_d2']}" + ("" if same else f" there and {here['moco_d2']} here")
    return Check("code", same, "; ".join([text, *others]))


def _result(recorded: Mapping[str, float | None], found: Mapping[str, float | None]) -> Check:
    apart = {}
    for metric in sorted({*recorded, *found}):
        old, new = recorded.get(metric), found.get(metric)
        if old is None or new is None:
            if old is not new:
                apart[metric] = float("inf")
        else:
            apart[metric] = abs(new - old)
    far = sorted((m for m in apart if apart[m] >= TOLERANCE), key=lambda m: -apart[m])
    if not far:
        largest = max(apart.values(), default=0.0)
        return Check(
            "evaluation", True, f"{len(recorded)} metrics, the largest difference is {largest:.2g}"
        )
    texts = [f"{m} {_number(recorded.get(m))} there and {_number(found.get(m))} here" for m in far]
    return Check("evaluation", False, _listed(texts))


def _number(value: float | None) -> str:
    return "no value" if value is None else f"{value:.3f}"


def _listed(texts: Iterable[str]) -> str:
    texts = list(texts)
    more = len(texts) - _MOST_NAMED
    return ", ".join(texts[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _evaluate(record: Record, model: Path) -> dict[str, float | None]:
    """Return the metrics of a model under the config of a record, as --eval-only computes them."""
    from detectron2.evaluation.testing import flatten_results_dict

    from moco_d2.records.metrics_json import percentage
    from moco_d2.transfer.main import train

    with tempfile.TemporaryDirectory(prefix="moco_d2_") as name:
        # JSON is YAML, and a config file is read as a stranger's: see config/load.py.
        config = Path(name) / "run.yaml"
        write_text(config, json.dumps({**record.config, "OUTPUT_DIR": f"{name}/evaluation"}))
        args = argparse.Namespace(
            config_file=str(config),
            resume=False,
            eval_only=True,
            force=record.forced,
            opts=["MODEL.WEIGHTS", str(model)],
        )
        with contextlib.redirect_stdout(sys.stderr):
            results = train(args)
    return {key: percentage(float(value)) for key, value in flatten_results_dict(results).items()}
