#!/usr/bin/env python3
"""Convert damaged and hostile checkpoints: each is refused with one sentence or converted as is.

Each case follows from a seed. It is a sound checkpoint in one of five containers with one
alteration, or a hostile file (hostile_files.py), and is converted in a new child process. A case
fails if the converter raises anything but its one-sentence error, takes more than ten seconds or
more memory than stated, ends the interpreter, leaves a file behind after an error, or runs code
from the file. It also fails if altered weights are converted although the container has checksums
or the alteration can be noticed without them.

    python campaigns/fuzz_checkpoints.py [--cases 3000] [--seed 0] [--json FILE]
"""

import argparse
import collections
import concurrent.futures
import contextlib
import faulthandler
import functools
import io
import json
import logging
import math
import multiprocessing
import os
import pickle
import random
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parent))

import moco_d2  # noqa: F401  isort: skip  before Detectron2

import hostile_files as hostile
import numpy as np
import safetensors.torch
import torch

from moco_d2.checkpoint.convert import convert
from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.checkpoint.mapping import Architecture, build_torchvision, to_detectron2
from moco_d2.errors import UserError

ROOT = Path(__file__).parents[1]
LIMIT_S = 10  # CPU time of a case
BLOCKED_S = 60  # wall-clock time of a case
ADDRESSES = 16 << 30  # bytes of address space of a case
MEMORY = 1 << 30  # bytes that a case may use, plus MEMORY_A_BYTE for each byte of its file
MEMORY_A_BYTE = 12
_CRASHED = 70  # exit code of a child after an exception in the campaign itself
LONGEST_SENTENCE = 2000  # characters
COMMANDS = 20  # cases that also run through the command line
ARCHITECTURE = Architecture(50, width_factor=1 / 16)  # 0.1 million weights

State = dict[str, Any]
CONTAINERS = (".pth", ".legacy.pth", ".pkl", ".safetensors", ".npz")
WITH_CHECKSUMS = (".pth", ".npz")
# The outcomes of a case.
REFUSED, SAME, ALTERED = "refused", "converted unaltered", "converted altered"


@functools.cache
def _network() -> State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_torchvision(ARCHITECTURE)
    return {k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}


def sound() -> State:
    """Return a state_dict that can be converted."""
    return {name: tensor.clone() for name, tensor in _network().items()}


def write(state: Any, container: str, path: Path) -> None:
    """Save `state` in the format of the container."""
    if container == ".safetensors":
        safetensors.torch.save_file(
            {k: v.clone().contiguous() for k, v in state.items() if isinstance(v, torch.Tensor)},
            path,
        )
    elif container == ".npz":
        np.savez(path, **{k: v.numpy() for k, v in state.items() if isinstance(v, torch.Tensor)})
    elif container == ".pkl":
        path.write_bytes(pickle.dumps(_as_arrays(state, {}), protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=container == ".pth")


def _as_arrays(value: Any, done: dict[int, Any]) -> Any:
    if isinstance(value, torch.Tensor):
        return value.numpy()
    if isinstance(value, dict):
        if id(value) not in done:
            done[id(value)] = new = {}
            new.update({k: _as_arrays(v, done) for k, v in value.items()})
        return done[id(value)]
    return value


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function: Callable, *args: object):
        self.call = function, args

    def __reduce__(self):
        return self.call


# Alterations of the content: (random, state, marker) -> content to save, which must be refused.


def _some(rng: random.Random, state: State, ndim: int | None = None) -> str:
    names = [k for k, v in state.items() if v.is_floating_point() and ndim in (None, v.ndim)]
    return rng.choice(names)


def not_a_number(rng, state, marker):
    tensor = state[_some(rng, state)].view(-1)
    tensor[rng.randrange(len(tensor))] = rng.choice([float("nan"), float("inf"), -float("inf")])
    return state


def wrong_dtype(rng, state, marker):
    name = _some(rng, state)
    state[name] = state[name].to(rng.choice([torch.int8, torch.int64, torch.bool, torch.uint8]))
    return state


def wrong_shape(rng, state, marker):
    name = _some(rng, state)
    tensor = state[name]
    state[name] = rng.choice(
        [
            tensor[None],
            tensor[:0],
            tensor.reshape(-1)[:-1],
            tensor[..., None],
            torch.cat([tensor] * 2),
        ]
    ).contiguous()
    return state


def missing(rng, state, marker):
    del state[_some(rng, state)]
    return state


def a_stage_missing(rng, state, marker):
    stage = f"layer{rng.randint(1, 4)}."
    return {k: v for k, v in state.items() if not k.startswith(stage)}


def unknown(rng, state, marker):
    state[rng.choice(["layer1.0.gate.weight", "conv2.weight", "x", "layer9.0.conv1.weight"])] = (
        torch.ones(3)
    )
    return state


def renamed(rng, state, marker):
    name = _some(rng, state)
    state[name.replace(".", "_", 1) + "x"] = state.pop(name)
    return state


def two_networks(rng, state, marker):
    other = {f"b.{k}": v + 1 if v.is_floating_point() else v for k, v in state.items()}
    return {f"a.{k}": v for k, v in state.items()} | other


def deep(rng, state, marker):
    for _ in range(50):
        state = {"state_dict": state}
    return state


def cycle(rng, state, marker):
    content = {"model": {"net.weight": torch.ones(3)}}
    content["model"]["again"] = content
    return content


def laughs(rng, state, marker):
    """Nest lists: a few hundred bytes print as billions."""
    node: Any = "ha"
    for _ in range(40):
        node = [node] * 9
    del state[_some(rng, state)]
    return {"state_dict": state, "epoch": node, "arch": node, "moco_d2": {"config": node}}


def repeated(rng, state, marker):
    name = _some(rng, state, ndim=1)
    state[name] = torch.ones(1).expand(state[name].shape)
    return state


def no_network(rng, state, marker):
    return rng.choice([{}, {"epoch": 3}, {"state_dict": {}}, {"a.weight": torch.ones(2)}, {1: 2}])


def no_dict(rng, state, marker):
    return rng.choice([[state], torch.ones(3), "text", None, 7])


def code(rng, state, marker):
    gadget = rng.choice(
        [
            Calls(os.system, f"touch {marker}"),
            Calls(eval, f"open({str(marker)!r}, 'w')"),
            Calls(exec, f"open({str(marker)!r}, 'w')"),
            Calls(Path.touch, Path(marker)),
            Calls(subprocess.call, ["touch", str(marker)]),
        ]
    )
    return rng.choice([gadget, {"state_dict": state, "hook": gadget}, {"state_dict": gadget}])


CONTENT = (
    not_a_number, wrong_dtype, wrong_shape, missing, a_stage_missing, unknown, renamed,
    two_networks, deep, cycle, laughs, repeated, no_network, no_dict, code,
)  # fmt: skip
# Only torch's containers can hold these.
TORCH_ONLY = (deep, cycle, laughs, no_dict, code, repeated)


# Alterations of the file: (random, bytes) -> bytes.


def truncated(rng, data):
    return data[: rng.randrange(len(data))]


def flipped(rng, data):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 4, 64])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def flipped_in_the_header(rng, data):
    data = bytearray(data)
    data[rng.randrange(min(400, len(data)))] ^= 1 << rng.randrange(8)
    return bytes(data)


def flipped_at_the_end(rng, data):
    data = bytearray(data)
    data[-rng.randrange(1, min(400, len(data)))] ^= 1 << rng.randrange(8)
    return bytes(data)


def zeroed(rng, data):
    start = rng.randrange(len(data))
    length = min(rng.choice([16, 4096, 1 << 16]), len(data) - start)
    return data[:start] + bytes(length) + data[start + length :]


def inserted(rng, data):
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.choice([1, 17, 4096])) + data[at:]


def removed(rng, data):
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.choice([1, 17, 4096]) :]


def halves_swapped(rng, data):
    half = len(data) // 2
    return data[half:] + data[:half]


def appended(rng, data):
    return data + rng.randbytes(rng.choice([1, 100]))


def noise(rng, data):
    return rng.randbytes(rng.choice([1, 10, 10_000]))


def text(rng, data):
    return rng.choice(
        [
            b"Not Found",
            b"<!DOCTYPE html><html>404</html>",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "höfliche Ablehnung".encode() * 100,
        ]
    )


def empty(rng, data):
    return b""


def bomb(rng, data):
    """Make an archive whose members unpack to far more bytes than it has."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(4):
            archive.writestr(f"archive/data/{i}", bytes(32 << 20))
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    return file.getvalue()


def declared_size(rng, data):
    """Write a wrong size into the archive's directory, or at the start of another container."""
    at = data.rfind(b"PK\x01\x02")
    at = at + rng.choice([20, 24]) if at >= 0 else 0
    return data[:at] + rng.randbytes(4) + data[at + 4 :]


def duplicate_names(rng, data):
    file = io.BytesIO(data)
    if not zipfile.is_zipfile(file):
        return data[:-1]
    with zipfile.ZipFile(file, "a") as archive:
        name = rng.choice(archive.namelist())
        content = bytearray(archive.read(name))
        if content:
            content[-1] ^= 1
        archive.writestr(name, bytes(content))
    return file.getvalue()


BYTES = (
    truncated, truncated, flipped, flipped, flipped_in_the_header, flipped_at_the_end, zeroed,
    inserted, removed, halves_swapped, appended, noise, text, empty, bomb, declared_size,
    duplicate_names,
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """The result of a case.

    Args:
        kind: The alteration of the checkpoint.
        container: The suffix of its file.
        outcome: REFUSED, SAME or ALTERED.
        failure: What is wrong with the outcome, or None.
        seconds: The time of the case.
        mebibytes: The growth of its memory.
    """

    kind: str
    container: str
    outcome: str
    failure: str | None
    seconds: float
    mebibytes: float = 0.0


def make(seed: int, folder: Path) -> tuple[Path, str, str, bool]:
    """Make the file of a case.

    Returns:
        Its path, its kind, its container, and whether an alteration of its weights may be
        undetectable.
    """
    rng = random.Random(seed)
    container = rng.choice(CONTAINERS)
    marker = folder / "executed"
    path = folder / f"case{container}"
    if rng.random() < 0.02:
        path.mkdir()
        return path, "directory", container, False
    if rng.random() < HOSTILE:
        return _make_hostile(rng, folder)
    if rng.random() < 0.5:
        alter = rng.choice(CONTENT)
        if alter in TORCH_ONLY and container not in (".pth", ".legacy.pth"):
            container, path = ".pth", folder / "case.pth"
        write(alter(rng, sound(), marker), container, path)
        return path, alter.__name__, container, False
    change = rng.choice(BYTES)
    write(sound(), container, path)
    path.write_bytes(change(rng, path.read_bytes()))
    return path, change.__name__, container, container not in WITH_CHECKSUMS


HOSTILE = 0.5  # fraction of the cases
_PROGRAMS = (hostile.program_beside, hostile.program_beside, hostile.program_within,
             hostile.program_alone)  # fmt: skip
_ARCHIVES = (hostile.lying_directory, hostile.lying_header, hostile.lying_end,
             hostile.members_of_other_names, hostile.two_archives)  # fmt: skip


def _make_hostile(rng: random.Random, folder: Path) -> tuple[Path, str, str, bool]:
    """Make a hostile file, and return what `make` returns."""
    group = rng.choice(("program", "program", "program", "archive", "header", "exhausting"))
    if group == "program":
        maker, container = rng.choice(_PROGRAMS), rng.choice((".pth", ".legacy.pth", ".pkl"))
        path = folder / f"case{container}"
        maker(rng, sound(), container, path, write)
        return path, maker.__name__, container, False
    if group == "exhausting":
        container = rng.choice((".pth", ".legacy.pth"))
        path = folder / f"case{container}"
        if rng.random() < 0.5:
            write(hostile.exhausting_tensors(rng, sound()), container, path)
            return path, "exhausting_tensors", container, False
        path = folder / "case.pkl"
        path.write_bytes(hostile.exhausting_program(rng))
        return path, "exhausting_program", ".pkl", False
    container = ".pth" if group == "archive" else rng.choice((".safetensors", ".npz"))
    path = folder / f"case{container}"
    write(sound(), container, path)
    change = (
        rng.choice(_ARCHIVES)
        if group == "archive"
        else {".safetensors": hostile.lying_safetensors, ".npz": hostile.lying_npy}[container]
    )
    path.write_bytes(change(rng, path.read_bytes()))
    # The right one of two whole archives, and another type in a header, are undetectable.
    return path, change.__name__, container, change in (hostile.two_archives, hostile.lying_npy)


def run_case(seed: int) -> Result:
    """Make a case, convert it in a child process, and judge the outcome."""
    with tempfile.TemporaryDirectory(prefix="moco_d2_fuzz_") as name:
        folder = Path(name)
        path, kind, container, undetectable = make(seed, folder)
        receive, send = os.pipe()
        started = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            os.close(receive)
            _in_child(path, undetectable, send)
        os.close(send)
        with os.fdopen(receive, "rb") as pipe:
            hangs = not select.select([pipe], [], [], BLOCKED_S)[0]
            if hangs:
                os.kill(pid, signal.SIGKILL)
            answer = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        seconds = time.perf_counter() - started
        if hangs:
            outcome, failure, mebibytes = REFUSED, f"waits for more than {BLOCKED_S} s", 0.0
        elif code == -signal.SIGXCPU:
            outcome, failure, mebibytes = REFUSED, f"more than {LIMIT_S} s", 0.0
        elif code or not answer:
            outcome, failure, mebibytes = REFUSED, f"the interpreter ended with {code}", 0.0
        else:
            outcome, failure, mebibytes = json.loads(answer)
        if (folder / "executed").exists():
            failure = "code from the file was run"
        return Result(kind, container, outcome, failure, seconds, mebibytes)


def _in_child(path: Path, undetectable: bool, send: int) -> NoReturn:
    """Convert the file, send the outcome to the parent, and exit."""
    code = _CRASHED
    faulthandler.disable()  # pytest enables it
    try:
        before = _most_used()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESSES,) * 2)
        spent = resource.getrusage(resource.RUSAGE_SELF)
        limit = math.ceil(spent.ru_utime + spent.ru_stime) + LIMIT_S
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        outcome, failure = _convert(path, undetectable)
        grown = _most_used() - before
        allowed = MEMORY + MEMORY_A_BYTE * (path.stat().st_size if path.is_file() else 0)
        if grown > allowed and failure is None:
            failure = f"{grown >> 20} MiB of memory, but {allowed >> 20} MiB are allowed"
        os.write(send, json.dumps([outcome, failure, grown / (1 << 20)]).encode())
        code = 0
    finally:
        os._exit(code)


def _most_used() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _convert(path: Path, undetectable: bool) -> tuple[str, str | None]:
    """Convert the file, and return the outcome and the failure."""
    out = path.parent / "out"
    out.mkdir()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            convert(path, out / "w.pth", report=out / "r.json")
    except UserError as error:
        if "\n" in str(error) or not 10 <= len(str(error)) <= LONGEST_SENTENCE:
            return REFUSED, f"not a sentence: {str(error)[:200]!r}"
        return REFUSED, "a file was left behind" if list(out.iterdir()) else None
    except Exception as error:
        return REFUSED, f"{type(error).__name__}: {error}"[:300]
    if _unaltered(out / "w.pth"):
        return SAME, None
    return ALTERED, None if undetectable else "altered weights were converted"


def _unaltered(weights: Path) -> bool:
    written = load_checkpoint(weights)["model"]
    return all(
        torch.equal(written[to_detectron2(name)], tensor)
        for name, tensor in _network().items()
        if not name.endswith("num_batches_tracked")
    )


def run_command(seed: int) -> str | None:
    """Run the case of a seed through tools/convert.py, and return what is wrong, or None."""
    with tempfile.TemporaryDirectory(prefix="moco_d2_fuzz_") as name:
        folder = Path(name)
        path, kind, *_ = make(seed, folder)
        done = subprocess.run(
            [sys.executable, ROOT / "tools" / "convert.py", path, folder / "out" / "w.pth"],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode == 0:
            return None
        if done.returncode != 2 or done.stderr.count("\n") != 1 or "Traceback" in done.stderr:
            return f"{kind} (seed {seed}): exit {done.returncode}, {done.stderr[-300:]!r}"
        return f"{kind} (seed {seed}): left a file" if (folder / "out").exists() else None


def _prepare() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # zipfile warns about duplicate names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--commands", type=int, default=COMMANDS, help="cases that also run as commands"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    seeds = range(args.seed, args.seed + args.cases)
    pool = concurrent.futures.ProcessPoolExecutor(
        args.workers, multiprocessing.get_context("spawn"), initializer=_prepare
    )
    with pool:
        results = list(pool.map(run_case, seeds, chunksize=16))
        wrong = [w for w in pool.map(run_command, seeds[: args.commands]) if w]
    kinds: dict[str, collections.Counter[str]] = {}
    for result in results:
        kinds.setdefault(result.kind, collections.Counter())[result.outcome] += 1
    for kind in sorted(kinds):
        print(f"{kind:24}" + "".join(f"{count:6} {o}" for o, count in sorted(kinds[kind].items())))
    failures = [
        f"seed {seed}: {r.kind} in {r.container}: {r.failure}"
        for seed, r in zip(seeds, results, strict=True)
        if r.failure
    ]
    print(*failures, *wrong, sep="\n")
    total = collections.Counter(result.outcome for result in results)
    figures = {
        "cases": len(results),
        "failures": len(failures) + len(wrong),
        "commands": args.commands,
        **{outcome: total[outcome] for outcome in (REFUSED, SAME, ALTERED)},
        "slowest_s": round(max(result.seconds for result in results), 2),
        "most_mebibytes": round(max(result.mebibytes for result in results)),
    }
    print(figures)
    if args.json:
        args.json.write_text(json.dumps({**figures, "seed": args.seed, "kinds": kinds}, indent=2))
    sys.exit(bool(failures or wrong))


if __name__ == "__main__":
    main()
