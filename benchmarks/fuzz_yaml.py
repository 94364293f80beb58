#!/usr/bin/env python3
"""Hostile configs and suites through their readers: refused in a sentence, or plain settings.

Every case is made from a seed and read in a process of its own, as the tools read it: a config is
loaded, a suite is planned, checked and its files are written, and what either names as data is
opened. A case fails if that process is ended by a signal, takes more than ten seconds or 2 GiB of
memory more, raises anything but a one-sentence UserError, runs a command, asks the network, or
writes a file where none belongs: outside the suite's folder, or at all after a refusal.

    python benchmarks/fuzz_yaml.py [--cases 600] [--seed 0] [--json FILE]
"""

import argparse
import collections
import contextlib
import json
import logging
import os
import random
import resource
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import moco_d2  # noqa: F401  isort: skip  before Detectron2

import torch
import yaml

from moco_d2.benchmark.records.importing import import_run
from moco_d2.benchmark.runs.cell_state import placed
from moco_d2.benchmark.runs.checks import check_configs
from moco_d2.benchmark.runs.planning import plan
from moco_d2.benchmark.runs.suites import (
    CONFIGURED,
    file_settings,
    load_suite,
    packaged_suites,
    untrusted_words,
)
from moco_d2.config import DATA_KEYS, config_root, flatten, load_config, load_config_of
from moco_d2.errors import UserError
from moco_d2.files import write_text
from moco_d2.launch import argument_parser
from moco_d2.pretrain.shards import list_shards, read_shard
from moco_d2.shard_patterns import SHARDS_PREFIX
from moco_d2.transfer.custom_datasets import register_by_path
from moco_d2.transfer.weights import RANDOM, check_weights_file

LIMIT_S = 10
MEMORY = 2 << 30  # bytes beyond what the process has when a case begins
_LONGEST_SENTENCE = 2000
_CELLS = 5  # whose commands are parsed and whose data is opened
REFUSED, READ = "refused", "read"


@dataclass
class Case:
    """What is read.

    Attributes:
        door: name in DOORS.
        file: the config or the suite.
        overrides: a suite's words for the config.
        sound: it must be read, not refused.
    """

    door: str
    file: Path
    overrides: list[str] = field(default_factory=list)
    sound: bool = False


@dataclass
class Result:
    """What became of a case; `failure` is "" if nothing is wrong with it."""

    kind: str
    outcome: str
    failure: str
    seconds: float


# ---- what is done with a file --------------------------------------------------------------------


def open_config(case: Case, out: Path) -> None:
    """Load a config as a suite's command does, and open its data as pretraining does."""
    cfg = load_config(case.file, case.overrides, typed=False)
    file_settings(case.file)
    open_data(cfg)


def open_suite(case: Case, out: Path) -> None:
    """Plan and check a suite, write its files, and read its commands as the tools do."""
    suite = load_suite(case.file)
    plan(suite_file := case.file, folder=out, gpus_per_run=0)
    assert suite_file == case.file
    some = suite.cells[:_CELLS]
    check_configs(some, out, suite.files)
    for path, content in suite.files.items():
        write_text(out / path, content)
    for cell in some:
        (out / cell.name).mkdir(parents=True, exist_ok=True)
        for tool, words in cell.commands:
            if tool not in CONFIGURED:
                continue
            run = untrusted_words(tool, (placed(word, cell, out) for word in words))
            args = argument_parser("", "").parse_args(run)
            if args.submit or args.num_gpus != 1 or not args.resume:
                raise AssertionError(f"a flag was injected: {args}")
            cfg = load_config_of(args)
            if Path(cfg.OUTPUT_DIR).parts[: len(out.parts)] != out.parts:
                raise AssertionError(f"the output goes to {cfg.OUTPUT_DIR}")
            open_data(cfg)


def open_run(case: Case, out: Path) -> None:
    """Import a run whose config.yaml it is."""
    folder = case.file.parent
    (folder / "metrics.json").write_text('{"iteration": 1}\n')
    import_run(folder, task="voc_C4", initialisation="moco", destination=out / "record.json")


DOORS: dict[str, Callable[[Case, Path], None]] = {
    "config": open_config,
    "suite": open_suite,
    "run": open_run,
}


def open_data(cfg: Any) -> None:
    """Open what a config names, so that what is let through does what it does."""
    if cfg.MODEL.WEIGHTS not in ("", RANDOM):
        with contextlib.suppress(UserError):
            check_weights_file(cfg.MODEL.WEIGHTS)
    for name in (*cfg.DATASETS.TRAIN[:2], *cfg.DATASETS.TEST[:2], cfg.MOCO.KNN.TRAIN):
        with contextlib.suppress(UserError):  # a set that is not there
            if name.startswith(SHARDS_PREFIX):
                shards = list_shards(name.removeprefix(SHARDS_PREFIX), num_images=4)
                next(read_shard(shards.urls[0]), None)
            else:
                register_by_path(name)


# ---- cases ---------------------------------------------------------------------------------------

Random = random.Random


def _write(folder: Path, content: str | bytes, name: str = "a.yaml") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    return path


def _dump(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False)


def _door(rng: Random) -> str:
    return rng.choice(["config", "config", "suite", "run"])


def _name(door: str) -> str:
    return "config.yaml" if door == "run" else "a.yaml"


def _of_text(rng: Random, folder: Path, text: str | bytes) -> Case:
    door = _door(rng)
    return Case(door, _write(folder, text, _name(door)))


def recursion(rng: Random, folder: Path) -> Case:
    number = rng.choice([60, 1000, 30_000, 200_000])
    text = rng.choice(
        [
            "a: " + "[" * number,
            "a: " + "[" * number + "]" * number,
            "a: " + "{b: " * number,
            "- " * number,
            "? " * number,
            "a: &a [*a]",
            "&a {<<: *a}",
            "a: &a {b: *a, <<: *a}",
            "&a ? *a : *a",
            "\n".join("  " * i + "a:" for i in range(min(number, 1400))),
        ]
    )
    return _of_text(rng, folder, text)


def aliases(rng: Random, folder: Path) -> Case:
    form = rng.choice(["[{}]", "{{{}}}", "{{<<: [{}]}}"])
    lines, levels = ["a0: &a0 {x: 1}"], rng.randrange(3, 30)
    for i in range(1, levels):
        each = [f"*a{i - 1}"] * rng.choice([2, 9])
        if form == "{{{}}}":
            each = [f"k{j}: {one}" for j, one in enumerate(each)]
        lines.append(f"a{i}: &a{i} " + form.format(", ".join(each)))
    return _of_text(rng, folder, "\n".join(lines))


def tags(rng: Random, folder: Path) -> Case:
    touch = f"touch {folder}/ran"
    value = rng.choice(
        [
            f"!!python/object/apply:os.system ['{touch}']",
            f"!!python/object/new:os.system ['{touch}']",
            f"!!python/object/apply:subprocess.Popen [['sh', '-c', '{touch}']]",
            "!!python/name:os.system",
            "!!python/module:os",
            "!!python/tuple [1, 2]",
            "!!python/object:argparse.Namespace {a: 1}",
            "!<tag:yaml.org,2002:python/object/apply:os.getcwd> []",
            "!!binary eA==",
            "!!set {a, b}",
            "!!omap [a: 1]",
            "!!pairs [a: 1]",
            f"!!{rng.choice(['int', 'float', 'bool', 'null', 'timestamp'])} x",
            f"!{rng.choice(['', 'x', '!', '%41'])} 1",
        ]
    )
    key = rng.choice(["OUTPUT_DIR: ", "SEED: ", "MODEL: {WEIGHTS: ", "tasks: ", "? ", "_BASE_: "])
    return _of_text(rng, folder, key + value + ("}" if "{" in key else ""))


def bases(rng: Random, folder: Path) -> Case:  # noqa: PLR0912 - a list of tricks
    kind = rng.choice(
        [
            *("address", "address", "fifo", "device", "folder", "cycle", "fan", "chain", "absent"),
            *("other", "linked", "linked", "bytes", "bomb", "proc"),
        ]
    )
    address = rng.choice(["http", "https", "ftp", "s3", "detectron2", "catalog", "HTTP", "file"])
    base: Any = f"{address}://localhost:9/b.yaml"
    if kind == "fifo":
        os.mkfifo(folder / "fifo")
        base = "fifo"
    elif kind == "device":
        base = rng.choice(["/dev/zero", "/dev/random", "/dev/stdin", "/dev/tty", "/dev/full"])
    elif kind == "proc":
        base = rng.choice(["/proc/self/mem", "/proc/kmsg", "/proc/self/pagemap", "/proc/self/fd/0"])
    elif kind == "folder":
        base = rng.choice([".", "/", "..", ""])
    elif kind == "cycle":
        _write(folder, "_BASE_: ./a.yaml\n", "b.yaml")
        base = rng.choice(["b.yaml", "a.yaml", "../in/a.yaml", "./b.yaml"])
    elif kind in ("fan", "chain"):
        number, times = (25, rng.choice([2, 5])) if kind == "fan" else (600, 1)
        for i in range(number):
            _write(folder, f"_BASE_: [{', '.join([f'{i + 1}.yaml'] * times)}]\n", f"{i}.yaml")
        _write(folder, "VERSION: 2\n", f"{number}.yaml")
        base = "0.yaml"
    elif kind == "absent":
        base = rng.choice(["nowhere.yaml", "~/nowhere.yaml", "~nobody/x.yaml", "a" * 5000, "\0"])
    elif kind == "other":
        base = rng.choice([3, None, True, {"a": 1}, [], [[]], [1], [None], ["a.yaml"] * 3, 1.5])
    elif kind == "bytes":
        _write(folder, rng.randbytes(rng.randrange(200)), "b.yaml")
        base = "b.yaml"
    elif kind == "bomb":
        _write(folder, "VERSION: 2\nA: [" + "1, " * 30_000 + "1]\n", "b.yaml")
        base = ["b.yaml"] * rng.choice([2, 20])
    text = _dump({"_BASE_": [base] if isinstance(base, str) and rng.random() < 0.3 else base})
    path = _write(folder, text)
    if kind == "linked":
        (folder / "links").mkdir()
        (folder / "links" / "b.yaml").write_text(f"_BASE_: {address}://localhost:9/b.yaml\n")
        path.write_text("_BASE_: b.yaml\n")
        _write(folder, "VERSION: 2\n", "b.yaml")
        path = folder / "links" / "a.yaml"
        path.symlink_to("../a.yaml")
    if rng.random() < 0.3:
        suite = {"tasks": ["voc_C4"], "initialisations": [str(path)], "seeds": [1]}
        return Case("suite", _write(folder, _dump(suite), "s.yaml"))
    return Case("config", path)


def _command(rng: Random, folder: Path) -> str:
    """A name of data that runs a command or asks the network, in some disguise."""
    touch = f"touch {folder}/ran"
    scheme = rng.choice(
        ["pipe", "pipe", "pipe", "http", "https", "s3", "gs", "ftp", "hdfs", "file"]
    )
    rest = touch if scheme == "pipe" else "//localhost:9/a.tar"
    cut = rng.randrange(1, len(scheme) + 1)
    head, tail = scheme[:cut], scheme[cut:]
    text = rng.choice(
        [
            f"{scheme}:{rest}",
            f"{{{scheme},{scheme}}}:{rest}",
            f"{head}{{{tail}:,{tail}:}}{rest}",
            f"{{a.tar,{scheme}:{rest}}}",
            f"a.tar::{scheme}:{rest}",
            f"{{x,{head}}}{tail}:{rest}",
            f"{head}\\{tail or 'x'}:{rest}",
            f"\\{scheme}\\:{rest}",
            f"{head}{{{tail},}}:{rest}",
            f"{scheme}{{:,}}{rest}",
            f"{{{{{scheme},x}}:,y}}{rest}",
            f"${{HIDDEN}}{rest}",
            f"{{{scheme[0]}..{scheme[0]}}}{scheme[1:]}:{rest}",
            f" {scheme}:{rest}",
            f"{scheme.upper()}:{rest}",
            f"::::{scheme}:{rest}::",
            f"{scheme}:{rest}" + "{0..3}",
            f"{scheme}:{{0..{10 ** rng.randrange(1, 40)}}}" + "{a,b}" * rng.randrange(60),
            "{" * rng.randrange(1, 4000) + f"{scheme}:x",
            "-",
        ]
    )
    return (
        rng.choice([SHARDS_PREFIX, SHARDS_PREFIX, SHARDS_PREFIX, "coco:", "voc:", "list:", ""])
        + text
    )


def commands(rng: Random, folder: Path) -> Case:
    name, key = _command(rng, folder), rng.choice(DATA_KEYS)
    value: Any = rng.choice([[name], (name,), f"({name!r},)", f"[{name!r}]", ["x", name]])
    if not key.startswith("DATASETS"):
        value = rng.choice([name, repr(name)])
    value = list(value) if isinstance(value, tuple) else value
    nested = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    content, door = {"VERSION": 2, **nested}, rng.choice(["config", "base", "words", "suite"])
    if door == "config":
        return Case("config", _write(folder, _dump(content)))
    if door == "base":
        _write(folder, _dump(content), "b.yaml")
        return Case("config", _write(folder, "_BASE_: b.yaml\n"))
    if door == "words":
        return Case("config", _write(folder, "VERSION: 2\n"), [key, str(value)])
    return Case("suite", _write(folder, _dump(_suite(rng, {key: value}))))


def _suite(rng: Random, overrides: dict[str, Any]) -> dict[str, Any]:
    if rng.random() < 0.5:
        suite = {"tasks": ["voc_C4"], "initialisations": ["random"], "seeds": [1]}
        place = rng.choice(["overrides", "tasks", "initialisations"])
        return {
            **suite,
            place: overrides if place == "overrides" else {suite[place][0]: overrides},
        }
    suite = {"kind": "pretext", "config": "moco_v2_R50_200ep", "data": "x"}
    if rng.random() < 0.5:
        return {**suite, "points": {"a": {}}, "overrides": overrides}
    return {**suite, "points": {"a": overrides}}


def _huge(rng: Random) -> str:
    number = rng.choice([100, 5000, 9000, 50_000])
    return rng.choice(
        [
            "9" * number,
            "0x" + "f" * number,
            "0b" + "1" * number,
            "0" + "7" * number,
            "1:" * number + "1",
            "1:" * number + "1.5",
            "1." + "0" * number + "e+99999",
            "1.0e+" + "9" * (number % 5000),
            "_" * number,
            "x" * number,
            f"{number}-13-45",
            "9999-12-31T23:59:59-23:59",
            "0001-01-01 00:00:00 +23:59",
            "2001-01-01 00:00:00 +99:99",
            ".inf",
            "-.inf",
            ".nan",
            "0o17",
            "1e999999999",
            "'" + "\\" * number + "'",
            '"\\U0010FFFF\\uD800"',
            '"\\x00\\a\\e[2J"',
        ]
    )


def scalars(rng: Random, folder: Path) -> Case:
    where = rng.choice(
        ["SEED: {}", "MODEL: {{WEIGHTS: {}}}", "{}: 1", "SOLVER: {{STEPS: [{}]}}", "VERSION: {}"]
    )
    return _of_text(rng, folder, where.format(_huge(rng)))


def encodings(rng: Random, folder: Path) -> Case:
    text = "VERSION: 2\nSEED: 1\n"
    content = rng.choice(
        [
            text.encode("utf-16"),
            text.encode("utf-32"),
            b"\xef\xbb\xbf" + text.encode(),
            text.encode() + b"\xff\xfe",
            b"\x00" * 100,
            text.encode() + b"OUTPUT_DIR: \xc3\x28\n",
            text.encode() + "OUTPUT_DIR: \u202e\u2028x\n".encode(),
            b"\x1b]0;owned\x07: 1\n",
            rng.randbytes(rng.randrange(1, 4000)),
            b"",
            b"%YAML 9.9\n---\nVERSION: 2\n",
            b"---\nVERSION: 2\n---\nSEED: 1\n",
            b"\t\tVERSION: 2\n",
            b"#" * 3_000_000,
        ]
    )
    return _of_text(rng, folder, content)


def duplicates(rng: Random, folder: Path) -> Case:
    text = rng.choice(
        [
            "SEED: 1\nSEED: 2\n",
            "SOLVER: {MAX_ITER: 1}\nSOLVER: {BASE_LR: 1.0}\n",
            "SOLVER: {MAX_ITER: 1, MAX_ITER: 2}\n",
            "A: &a SEED\n*a : 1\nSEED: 2\n",
            "? SEED\n: 1\n? 'SEED'\n: 2\n",
            "_BASE_: x.yaml\n_BASE_: y.yaml\n",
            "tasks: [voc_C4]\ntasks: [voc_C4]\n",
            "? [a]\n: 1\n",
            "? {a: 1}\n: 1\n",
        ]
    )
    return _of_text(rng, folder, text)


def _any_value(rng: Random, folder: Path) -> Any:
    return rng.choice(
        [
            *(None, True, 0, -1, 1 << 62, 1 << 64, 1 << 900, 0.5, float("nan"), float("inf"), ""),
            *("x", "None", "True", "()", "[]", "{}", "(1,)", "1", "'1'", [], [1], ["x"], [None]),
            *([[[]]], {}, {"a": 1}, {"A": {"B": 1}}, [{"a": 1}], "../../x", "\0", "a\nb", "--help"),
            *(
                "lambda: 0",
                "__import__('os')",
                "[b'x']",
                "(1j,)",
                "...",
                _literal(rng),
                "x" * 20_000,
            ),
            *(f"{folder}/../escaped", "{folder}/../x", "{cell}/../../x", "~nobody/x"),
        ]
    )


_KEYS = sorted(flatten(load_config("moco_v2_R50_200ep.yaml")))


def wrong_types(rng: Random, folder: Path) -> Case:
    key, value = rng.choice(_KEYS), _any_value(rng, folder)
    if rng.random() < 0.3:
        return Case("suite", _write(folder, _dump(_suite(rng, {key: value}))))
    if rng.random() < 0.3:
        words = [key, "" if isinstance(value, dict) else str(value)]
        return Case("config", _write(folder, "VERSION: 2\n"), words[: rng.choice([1, 2, 2, 2])])
    parts = key.split(".")
    nested: Any = value
    for part in reversed(parts[: rng.randrange(1, len(parts) + 1)]):
        nested = {part: nested}
    return Case("config", _write(folder, _dump({"VERSION": rng.choice([2, 2, 1]), **nested})))


def _literal(rng: Random) -> str:
    number = rng.choice([10, 300, 3000, 9900, 50_000])
    return rng.choice(
        [
            "-" * number + "1",
            "[" * number + "]" * number,
            "(" * number,
            "[0]" * number,
            "{0:" * number,
            "~" * number,
            "not " * number + "1",
            "1+" * number + "1",
            "1+1j" + "-1j" * number,
            "a." * number + "a",
            "a/" * number,
            "a if b else " * number + "c",
            "lambda:" * number + "0",
            "'" * number,
            "f'{" * min(number, 300),
            "**" * number,
            "{[]: 1}",
            "{[]}",
            "b'x'",
            "{1, 2}",
            "[{1: 2}]",
            "(1, b'')",
            "0x" + "f" * number,
            "9" * number,
            "".join(rng.choice("-+~[](){}0.,:'x\\*/ ") for _ in range(min(number, 3000))),
        ]
    )


def literals(rng: Random, folder: Path) -> Case:
    key, value = rng.choice(_KEYS), _literal(rng)
    kind = rng.choice(["file", "words", "suite", "key"])
    if kind == "words":
        return Case("config", _write(folder, "VERSION: 2\n"), [key, value])
    if kind == "suite":
        return Case("suite", _write(folder, _dump(_suite(rng, {key: value}))))
    nested: Any = value if kind == "file" else {value: 1}
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return Case("config", _write(folder, _dump({"VERSION": 2, **nested})))


def weights(rng: Random, folder: Path) -> Case:
    scheme = rng.choice(["http", "https", "HTTP", "ftp", "s3", "detectron2", "catalog", "file"])
    slashes = rng.choice(["://", "://", ":/", ":"])
    value = f"{scheme}{slashes}localhost:9/w.pth" + rng.choice(["", "?a", "#sha256=0", "/../x"])
    value = rng.choice([value, repr(value), f"random://{value}"])
    if rng.random() < 0.5:
        content = {"VERSION": 2, "MODEL": {"WEIGHTS": value}}
        return Case("config", _write(folder, _dump(content)))
    return Case("suite", _write(folder, _dump(_suite(rng, {"MODEL.WEIGHTS": value}))))


def _path(rng: Random, folder: Path) -> str:
    return rng.choice(
        [
            *("../x", "../../x", "a/../../x", f"{folder}/../escaped", "/", "", ".", "..", "a//b"),
            *("--submit=x", "-x", "~/x", "{folder}/../x", "{cell}/../../x", "a\0b", "a\nb", ".ssh"),
            *("a" * 300, "a/" * 150 + "a", "configs", "jobs/x", "timings", "runs.jsonl", "CON"),
            *("$(touch ran)", "`x`", "a;b", "\u202ex", "\x1b[2J", "..\\x", "a/./b", "a/.."),
        ]
    )


def paths(rng: Random, folder: Path) -> Case:
    name = _path(rng, folder)
    kind = rng.choice(["points", "tasks", "initialisations", "config", "data", "file", "nested"])
    if kind == "points":
        suite = _suite(rng, {}) | {"kind": "pretext", "points": {name: {"MOCO.EPOCHS": 1}}}
        suite |= {"config": "moco_v2_R50_200ep", "data": "x"}
        for key in ("tasks", "initialisations", "seeds"):
            suite.pop(key, None)
    elif kind == "nested":
        points: Any = {"a": {"MOCO.EPOCHS": 1}, f"a/seed1{name}": {"MOCO.EPOCHS": 1}}
        suite = {"kind": "pretext", "config": "moco_v2_R50_200ep", "data": "x", "points": points}
    elif kind in ("config", "data"):
        suite = {"kind": "pretext", "config": "moco_v2_R50_200ep", "data": "x", "points": ["a"]}
        suite[kind] = name
    else:
        own = name.replace("\0", "").rpartition("/")[2][:200] + ".yaml"
        with contextlib.suppress(OSError):
            _write(folder, "VERSION: 2\n", own)
        suite = {"tasks": ["voc_C4"], "initialisations": ["random"], "seeds": [1]}
        suite[kind if kind != "file" else "tasks"] = [own if kind == "file" else name + ".yaml"]
    return Case("suite", _write(folder, _dump(suite), "s.yaml"))


def flags(rng: Random, folder: Path) -> Case:
    word = rng.choice(
        [
            *("--submit=partition=x", "--submit", "--num-gpus=9", "--config-file=/dev/zero", "--"),
            *("--output=/x", "--outp", "-h", "--predict", "--export=x.pth", "--dist-url=tcp://x:1"),
            *("--overrides-from-file", "--no-overrides-from-file", "--force"),
        ]
    )
    pretext = {"kind": "pretext", "config": "moco_v2_R50_200ep", "data": "x", "points": ["a"]}
    suite = rng.choice(
        [
            {**pretext, "evaluation": [word]},
            {**pretext, "evaluation": ["--protocol", word]},
            {**pretext, "evaluation": ["--size", 32, word, "x"]},
            {**pretext, "evaluation": word},
            {**pretext, "data": word},
            {**pretext, "config": word},
            {**pretext, "points": {word: {}}},
            {**pretext, "random": True, "overrides": {"MOCO.ENCODER.ARCH": word}},
            _suite(rng, {word: 1}),
            _suite(rng, {"SEED": word}),
            _suite(rng, {"OUTPUT_DIR": word}),
            _suite(rng, {"OUTPUT_DIR": f"{folder}/../escaped"}),
            {"tasks": [word], "initialisations": ["random"]},
            {"tasks": ["voc_C4"], "initialisations": [word]},
            {"tasks": ["voc_C4"], "initialisations": ["random"], "seeds": [word]},
        ]
    )
    return Case("suite", _write(folder, _dump(suite)))


_SUITE_KEYS = {
    "transfer": ("tasks", "initialisations", "seeds", "overrides"),
    "pretext": (
        *("points", "config", "data", "generate", "evaluation", "random", "images", "seeds"),
        "overrides",
    ),
    "demo": ("momentum", "queue", "finetune_steps", "pretrain_images", "pretrain_steps", "seeds"),
}


def suite_types(rng: Random, folder: Path) -> Case:
    kind = rng.choice(["transfer", "pretext", "demo"])
    suite: dict[Any, Any] = {"kind": kind}
    if kind == "transfer":
        suite |= {"tasks": ["voc_C4"], "initialisations": ["random"], "seeds": [1]}
    elif kind == "pretext":
        suite |= {"config": "moco_v2_R50_200ep", "data": "x", "points": {"a": {}}, "seeds": [1]}
    key = rng.choice(["kind", "title", "nonsense", *_SUITE_KEYS[kind] * 3])
    suite[key] = rng.choice([_any_value(rng, folder), {_literal(rng): {}}, list(range(9000))])
    if rng.random() < 0.2:
        suite[rng.choice([1, None, True, 1.5])] = 1
    return Case("suite", _write(folder, _dump(suite)))


def _mutated(rng: Random, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice([1, 3, 10, 50])):
        place = rng.randrange(len(data) + 1)
        action = rng.randrange(4)
        if action == 0:
            data[place:place] = rng.choice([b"{", b"[", b"&a ", b"*a", b": ", b"\n", b"!!", b"- "])
        elif action == 1:
            del data[place : place + rng.randrange(1, 9)]
        elif action == 2 and place < len(data):
            data[place] = rng.choice([rng.randrange(256), *rng.choices(range(32, 127), k=9)])
        else:
            data[place:place] = data[place : place + rng.randrange(1, 40)]
    return bytes(data)


def mutations(rng: Random, folder: Path) -> Case:
    if rng.random() < 0.5:
        file = rng.choice(sorted(config_root().rglob("*.yaml")))
        text = file.read_text().replace("../", f"{file.parent.parent}/")
        return Case("config", _write(folder, _mutated(rng, text.encode())))
    file = rng.choice(list(packaged_suites().values()))
    return Case("suite", _write(folder, _mutated(rng, file.read_bytes())))


def sound(rng: Random, folder: Path) -> Case:
    """What must be read: the campaign is not to be passed by refusing all."""
    if rng.random() < 0.5:
        files = [f for f in config_root().rglob("*.yaml") if "densepose" not in f.name]
        link = folder / "a.yaml"
        _write(folder, f"_BASE_: {rng.choice(sorted(files))}\n", "b.yaml")
        link.symlink_to("b.yaml")
        return Case("config", link, ["DATASETS.TRAIN", "('shards:x-{0..9}.tar',)"], sound=True)
    names = [name for name in packaged_suites() if "densepose" not in name]
    return Case("suite", packaged_suites()[rng.choice(sorted(names))], sound=True)


KINDS: tuple[Callable[[Random, Path], Case], ...] = (
    *(recursion, aliases, tags, bases, bases, commands, commands, commands, scalars, encodings),
    *(duplicates, wrong_types, wrong_types, wrong_types, literals, literals, weights, paths, paths),
    *(flags, suite_types, suite_types, mutations, mutations, sound),
)


def make(seed: int, folder: Path) -> tuple[str, Case]:
    """The case of a seed, its files in `folder`; every kind in turn."""
    rng = Random(seed)
    kind = KINDS[seed % len(KINDS)]
    return kind.__name__, kind(rng, folder)


# ---- judging -------------------------------------------------------------------------------------


def run_case(seed: int) -> Result:
    """Make the case, read it in a process of its own, and judge."""
    with tempfile.TemporaryDirectory(prefix="moco_d2_fuzz_") as name:
        root = Path(name).resolve()
        folder, out = root / "in", root / "deep" / "out"
        folder.mkdir()
        kind, case = make(seed, folder)
        before = _tree(root)
        started = time.perf_counter()
        outcome, failure = _judge(case, root, folder, out)
        seconds = time.perf_counter() - started
        failure = _written(root, out, before, outcome) or failure
        if outcome == REFUSED and case.sound and not failure:
            failure = "what is sound was refused"
        return Result(kind, outcome, failure, seconds)


def _judge(case: Case, root: Path, folder: Path, out: Path) -> tuple[str, str]:
    """In another process: what came of it, and what is wrong with that."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(case, root, folder, out, writer)
    os.close(writer)
    status = _wait(child)
    with open(reader, encoding="utf-8") as file:  # noqa: PTH123 - a pipe
        said = file.read()
    if status is None:
        return REFUSED, f"more than {LIMIT_S} s"
    if os.WIFSIGNALED(status):
        return REFUSED, f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    if not said:
        return REFUSED, f"ended with exit code {os.WEXITSTATUS(status)} and without a word"
    outcome, failure = json.loads(said)
    return outcome, failure


def _wait(child: int) -> int | None:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _child(case: Case, root: Path, folder: Path, out: Path, writer: int) -> None:
    """Never returns."""
    outcome, failure = REFUSED, ""
    asked: list[str] = []
    try:
        os.setsid()
        os.chdir(folder)
        os.environ["WDS_HIDDEN"] = "pipe:"
        (root / "tmp").mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(root / "tmp")
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        _watch_network(asked)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        try:
            DOORS[case.door](case, out)
            outcome = READ
        except UserError as error:
            text = str(error)
            if "\n" in text or not 10 < len(text) < _LONGEST_SENTENCE:
                failure = f"not a sentence: {text[:200]!r}"
    except BaseException as error:  # whatever it is, it is a finding
        where = traceback.extract_tb(error.__traceback__)[-1]
        failure = f"{type(error).__name__}: {error}"[:300] + f" ({where.name}, line {where.lineno})"
    finally:
        if asked:
            failure = f"the network was asked: {asked[0]}"
        with contextlib.suppress(BaseException):
            os.write(writer, json.dumps([outcome, failure]).encode())
        os._exit(0)


def _watch_network(asked: list[str]) -> None:
    """Let no connection be made from here on; those that are tried are added to `asked`."""

    def refuse(*args: Any, **_: Any) -> Any:
        asked.append(str(args[1:] or args)[:100])
        raise OSError("no network")

    for name in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, name, refuse)
    socket.getaddrinfo = socket.create_connection = refuse  # type: ignore[assignment]


def _tree(root: Path) -> set[str]:
    return {str(Path(folder, name)) for folder, _, names in os.walk(root) for name in names}


def _written(root: Path, out: Path, before: set[str], outcome: str) -> str:
    """What is wrong with the files that are there now."""
    if (root / "in" / "ran").exists():
        return "a command was run"
    new = _tree(root) - before - _tree(root / "tmp") - {str(root / "in" / "metrics.json")}
    outside = sorted(name for name in new if not name.startswith(f"{out}{os.sep}"))
    folders = sorted(str(p) for p in root.iterdir() if p.name not in ("in", "deep", "tmp"))
    if outside or folders:
        return f"written outside: {(outside or folders)[0]}"
    if outcome == REFUSED and new:
        return f"left behind: {min(new)}"
    return ""


def _prepare() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    # What the first reading imports and caches, no case shall be charged for.
    load_config("voc_C4_moco.yaml")
    load_suite("table_2b")
    with contextlib.suppress(UserError):
        list_shards("/nonexistent/{0,1}.tar")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()
    _prepare()
    results: dict[int, Result] = {}
    for seed in range(args.seed, args.seed + args.cases):
        results[seed] = run_case(seed)
    kinds: dict[str, collections.Counter[str]] = {}
    for result in results.values():
        kinds.setdefault(result.kind, collections.Counter())[result.outcome] += 1
    for kind in sorted(kinds):
        print(f"{kind:14}" + "".join(f"{count:6} {o}" for o, count in sorted(kinds[kind].items())))
    failures = [f"seed {s}: {r.kind}: {r.failure}" for s, r in results.items() if r.failure]
    print(*failures, sep="\n")
    figures = {
        "cases": len(results),
        "failures": len(failures),
        **{o: sum(r.outcome == o for r in results.values()) for o in (REFUSED, READ)},
        "slowest_s": round(max(result.seconds for result in results.values()), 2),
    }
    print(figures)
    if args.json:
        text = json.dumps({**figures, "seed": args.seed, "kinds": kinds}, indent=2)
        args.json.write_text(text + "\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
