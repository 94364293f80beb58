"""The differences between two runs by their records, as Markdown that is readable as text."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from moco_d2.benchmark.records.matching import FOOTNOTES, Matching
from moco_d2.benchmark.records.run_records import Record, read_content, to_record
from moco_d2.config.plain import flatten, free_keys
from moco_d2.errors import UserError
from moco_d2.records.run_schema import RECORD_FILE

_ABSENT = "–"
_WIDEST = 64  # characters of a cell: a sha256
_MOST_KEYS_NAMED = 6
_MOST_ALONE = 5  # keys of one section that only one config has; more are only counted
_MOST_CLASSES = 10
# A metric of a single class: "bbox/AP50-car", "sem_seg/IoU-car".
_OF_A_CLASS = re.compile(r"/(AP\d*|IoU|ACC|BoundaryIoU|min\(IoU, B-Iou\))-")

Row = tuple[str, ...]


def compare(a: str | Path, b: str | Path) -> str:
    """Return the differences between two runs. The first line says whether they are matched.

    Args:
        a, b: Output folders, or records in files of any name. Differences are b minus a.

    Raises:
        UserError: If a record does not exist or is damaged.
    """
    files = [record_file(Path(run)) for run in (a, b)]
    first, second = contents = [record_content(file) for file in files]
    records = [to_record(*pair) for pair in zip(files, contents, strict=True)]
    sections = {
        "Run": _rows(*map(_run, files, contents)),
        "Config": _config_rows(*(record.config for record in records)),
        "Data": _rows(*map(_data, contents)),
        "Weights": _differing(*map(_weights, contents)),
        **{
            name.capitalize(): _differing(first[name], second[name])
            for name in ("schedule", "preflight", "environment", "hardware")
        },
        "Cost": _rows(*map(_cost, contents)),
    }
    whole, of_classes = _metric_rows(records[0].metrics, records[1].metrics)
    lost = _number_rows(*(flatten(content["errors"] or {}) for content in contents))
    numbers = {
        "Metrics, in percent": whole,
        "Classes that differ most": of_classes,
        "AP50 lost to each kind of error": lost,
    }
    texts = {title: list(rows) for title, rows in sections.items()}
    same = [title.lower() for title, rows in texts.items() if not rows]
    parts = [
        _verdict(records, contents),
        *_reservations(records),
        *([f"The same in both: {', '.join(same)}."] if same else []),
        *(_section(title, ("A", "B"), rows) for title, rows in texts.items() if rows),
        *(_section(title, ("A", "B", "B - A"), rows) for title, rows in numbers.items() if rows),
    ]
    return "\n\n".join(parts) + "\n"


def record_file(path: Path) -> Path:
    """Return the record of an output folder, or the file itself.

    Raises:
        UserError: If there is none.
    """
    file = path / RECORD_FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"there is no record {file}; give the output folder of a finished run of "
            "tools/train_net.py, or import the run first: tools/benchmark.py import"
        )
    return file


def record_content(file: Path) -> dict[str, Any]:
    """Return results.read_content of a record of fine-tuning.

    Raises:
        UserError: If it cannot be read, is damaged, or is a record of another kind.
    """
    try:
        content = read_content(file)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{file}: {error}; run it again") from error
    if content is None:
        raise UserError(
            f"{file} is not a record of fine-tuning; give a record of tools/train_net.py"
        )
    return content


def _verdict(records: Iterable[Record], contents: Iterable[Mapping[str, Any]]) -> str:
    a, b = records
    reasons = []
    if a.task != b.task:
        reasons.append(f"the tasks are {_code(a.task)} and {_code(b.task)}")
    keys = _differing_keys(flatten(a.config), flatten(b.config))
    bound = [key for key in keys if key not in free_keys(a.config)]
    if bound:
        reasons.append(f"the configs differ in {_listed(bound)}")
    counts = [flatten(content.get("data") or {}) for content in contents]
    for key in _differing_keys(*counts):
        if None not in (numbers := [count.get(key) for count in counts]):
            test = key.partition(".")[2]
            name = _code(test) if test else "the training set"
            unit = "" if key == "train_content" else " images"
            reasons.append(f"{name} has {numbers[0]} and {numbers[1]}{unit}")
    if reasons:
        return f"**Not matched**: {'; '.join(reasons)}."
    return f"**Matched**: the configs {f'differ only in {_listed(keys)}' if keys else 'are equal'}."


def _reservations(records: Iterable[Record]) -> Iterator[str]:
    for name, record in zip("AB", records, strict=True):
        marks = [FOOTNOTES[mark] for mark in Matching([record]).marks([record])]
        if marks:
            yield f"{name}: {'; '.join(marks)}."


def _listed(keys: list[str]) -> str:
    named = [_code(key) for key in keys[:_MOST_KEYS_NAMED]]
    if len(keys) > len(named):
        named.append(f"{len(keys) - len(named)} more")
    return " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)


def _differing_keys(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    missing = object()
    return sorted(k for k in {**a, **b} if a.get(k, missing) != b.get(k, missing))


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Row]:
    a, b = flatten(a), flatten(b)
    for key in _differing_keys(a, b):
        yield key, *_values(a, b, key)


def _rows(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Row]:
    """Return a row for each field that at least one of the two runs has."""
    a, b = ({k: v for k, v in flatten(x).items() if v is not None} for x in (a, b))
    for key in {**a, **b}:
        yield key, *_values(a, b, key)


def _config_rows(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Row]:
    """Yield a row for each key that differs. Many keys of a section that only one config has are
    one row.
    """
    a, b = flatten(a), flatten(b)
    alone: dict[str, list[str]] = {}
    for key in _differing_keys(a, b):
        if (key in a) != (key in b):
            alone.setdefault(key.partition(".")[0], []).append(key)
    many = {section: keys for section, keys in alone.items() if len(keys) > _MOST_ALONE}
    for key in _differing_keys(a, b):
        section = key.partition(".")[0]
        if key not in many.get(section, ()):
            yield key, *_values(a, b, key)
    for section, keys in many.items():
        counts = [sum(key in config for key in keys) for config in (a, b)]
        yield f"{section}.*", *(f"{count} keys" if count else _ABSENT for count in counts)


def _run(file: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    run = content["run"]
    names = ("seed", "command", "finished", "seconds")
    return {
        "record": str(file),
        "task": run.get("task"),
        "initialization": run.get("initialisation"),
        **{name: run.get(name) for name in names},
        "origin": content["origin"]["how"],
        "source": content["origin"]["source"],
    }


def _data(content: Mapping[str, Any]) -> dict[str, Any]:
    datasets, schedule = content["config"]["resolved"]["DATASETS"], content["schedule"]
    return {
        "train": datasets["TRAIN"],
        "test": datasets["TEST"],
        **(content.get("data") or {}),
        "images_seen": schedule["max_iter"] * schedule["ims_per_batch"],
    }


def _weights(content: Mapping[str, Any]) -> dict[str, Any]:
    return {**(content["weights"] or {"file": "random initialization"}), **content["coverage"]}


def _cost(content: Mapping[str, Any]) -> dict[str, Any]:
    cost = content["cost"]
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in cost.items()}


def _metric_rows(
    a: Mapping[str, float | None], b: Mapping[str, float | None]
) -> tuple[list[Row], list[Row]]:
    """Return the rows of all classes together, and of the classes that differ most."""
    classes = {key for key in {**a, **b} if _OF_A_CLASS.search(key)}
    apart = {
        key: abs(second - first)
        for key in classes
        if (first := a.get(key)) is not None and (second := b.get(key)) is not None
    }
    both = [key for key, points in apart.items() if points]
    most = sorted(both, key=lambda key: (-apart[key], key))[:_MOST_CLASSES]
    whole = ({k: v for k, v in metrics.items() if k not in classes} for metrics in (a, b))
    return _number_rows(*whole), _number_rows({k: a[k] for k in most}, {k: b[k] for k in most})


def _number_rows(a: Mapping[str, float | None], b: Mapping[str, float | None]) -> list[Row]:
    rows = []
    for key in {**a, **b}:
        first, second = a.get(key), b.get(key)
        cells = [_ABSENT if number is None else f"{number:.2f}" for number in (first, second)]
        difference = None if first is None or second is None else second - first
        rows.append((key, *cells, _ABSENT if difference is None else f"{difference:+.2f}"))
    return rows


def _values(a: Mapping[str, Any], b: Mapping[str, Any], key: str) -> tuple[str, str]:
    """Return both values of a key as text. Long values begin where they begin to differ."""
    first, second = (_text(values[key]) if key in values else _ABSENT for values in (a, b))
    pairs = enumerate(zip(first, second, strict=False))
    differ = next((i for i, (x, y) in pairs if x != y), min(len(first), len(second)))
    start = differ - _WIDEST // 4
    if first != second and max(len(first), len(second)) > _WIDEST and start > 0:
        first, second = f"…{first[start:]}", f"…{second[start:]}"
    return first, second


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _section(title: str, columns: Row, rows: list[Row]) -> str:
    cells = [("", *columns), *(tuple(map(_code, row)) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in cells
    ]
    lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    return f"## {title}\n\n" + "\n".join(lines)


def _code(text: str) -> str:
    """Return text as code in Markdown, where nothing is markup, on one line of limited length."""
    text = "".join(c if c.isprintable() else "?" for c in text[: _WIDEST + 1])
    if len(text) > _WIDEST:
        text = text[: _WIDEST - 1] + "…"
    if text == _ABSENT:
        return text
    return f"`{text.replace('`', chr(39)).replace('|', chr(92) + '|')}`"
