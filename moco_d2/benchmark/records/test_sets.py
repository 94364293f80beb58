"""Runs with several test sets, as one record for each set, so that each set has its own table."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from moco_d2.benchmark.records.run_records import Record


def short_name(dataset: str) -> str:
    """Return the name of a dataset without folders: ``coco:/a/b/c.json:/d/e`` is coco:c.json:e."""
    return ":".join(part.rstrip("/").rsplit("/", 1)[-1] for part in dataset.split(":"))


def by_test_set(records: Iterable[Record]) -> list[Record]:
    """Return the records with one test set each.

    The first of several sets in DATASETS.TEST is the primary one: its record keeps the name of the
    task, with which published values are compared. The task of another set is ``voc_C4 on SET``.
    """
    return [part for record in records for part in _parts(record)]


def _parts(record: Record) -> list[Record]:
    names = record.datasets_test
    if len(names) < 2:
        return [record]
    short = list(map(short_name, names))
    parts = []
    for i, name in enumerate(names):
        shown = short[i] if short.count(short[i]) == 1 else name
        parts.append(
            dataclasses.replace(
                record,
                test_set=name,
                task=f"{record.task} on {shown}" if i else record.task,
                metrics=_of_set(record.metrics, name, names),
                history=tuple(
                    {"iteration": entry["iteration"], **values}
                    for entry in record.history
                    if (values := _of_set(entry, name, names))
                ),
                errors={n: e for n, e in (record.errors or {}).items() if n == name} or None,
            )
        )
    return parts


def _of_set(metrics: Mapping[str, Any], name: str, names: Iterable[str]) -> dict[str, Any]:
    """Return the metrics of one set, ``{"bbox/AP": 12.3}`` of ``{"SET/bbox/AP": 12.3}``."""
    # The name of a set may begin with that of another.
    longer = tuple(f"{n}/" for n in names if n != name and n.startswith(f"{name}/"))
    return {
        key.removeprefix(f"{name}/"): value
        for key, value in metrics.items()
        if key.startswith(f"{name}/") and not (longer and key.startswith(longer))
    }
