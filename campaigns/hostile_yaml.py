"""Makes hostile configs and suites for fuzz_yaml.py, each from a seed."""

import contextlib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import moco_d2  # noqa: F401  isort: skip  before Detectron2

import yaml

from moco_d2.benchmark.runs.suites import packaged_suites
from moco_d2.config.load import DATA_KEYS, config_root, load_config
from moco_d2.config.plain import flatten
from moco_d2.config.shard_patterns import SHARDS_PREFIX

Random = random.Random


@dataclass
class Case:
    """A file to read.

    Attributes:
        door: The name of its reader in DOORS of fuzz_yaml.py.
        file: The config or the suite.
        overrides: Overrides of the config, as from a suite.
        sound: Whether the file must be read and not refused.
    """

    door: str
    file: Path
    overrides: list[str] = field(default_factory=list)
    sound: bool = False


def _write(folder: Path, content: str | bytes, name: str = "a.yaml") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    return path


def _dump(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False)


def _nested(keys: list[str], value: Any) -> Any:
    for key in reversed(keys):
        value = {key: value}
    return value


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
        suite = {"tasks": ["voc_C4"], "initializations": [str(path)], "seeds": [1]}
        return Case("suite", _write(folder, _dump(suite), "s.yaml"))
    return Case("config", path)


def _command(rng: Random, folder: Path) -> str:
    """Return a disguised name of data that runs a command or uses the network."""
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
    content = {"VERSION": 2, **_nested(key.split("."), value)}
    door = rng.choice(["config", "base", "words", "suite"])
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
        suite = {"tasks": ["voc_C4"], "initializations": ["random"], "seeds": [1]}
        place = rng.choice(["overrides", "tasks", "initializations"])
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
    nested = _nested(parts[: rng.randrange(1, len(parts) + 1)], value)
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
    nested = _nested(key.split("."), value if kind == "file" else {value: 1})
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
    kind = rng.choice(["points", "tasks", "initializations", "config", "data", "file", "nested"])
    if kind == "points":
        suite = _suite(rng, {}) | {"kind": "pretext", "points": {name: {"MOCO.EPOCHS": 1}}}
        suite |= {"config": "moco_v2_R50_200ep", "data": "x"}
        for key in ("tasks", "initializations", "seeds"):
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
        suite = {"tasks": ["voc_C4"], "initializations": ["random"], "seeds": [1]}
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
            {"tasks": [word], "initializations": ["random"]},
            {"tasks": ["voc_C4"], "initializations": [word]},
            {"tasks": ["voc_C4"], "initializations": ["random"], "seeds": [word]},
        ]
    )
    return Case("suite", _write(folder, _dump(suite)))


_SUITE_KEYS = {
    "transfer": ("tasks", "initializations", "seeds", "overrides"),
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
        suite |= {"tasks": ["voc_C4"], "initializations": ["random"], "seeds": [1]}
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
    """Make a file that must be read, so that a reader that refuses everything fails."""
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
    """Make the case of a seed in `folder`, and return its kind and the case."""
    rng = Random(seed)
    kind = KINDS[seed % len(KINDS)]
    return kind.__name__, kind(rng, folder)
