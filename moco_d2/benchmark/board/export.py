"""The results of one initialization in the forms of the Hugging Face hub, written by its library:
a model card with a model index, and an entry of ``.eval_results/``.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from moco_d2.benchmark.board.page import board_parts, escaped, interval_text, markdown
from moco_d2.benchmark.records.run_records import Record, read_records
from moco_d2.benchmark.statistics import Summary
from moco_d2.benchmark.tables.answer import headline_metrics
from moco_d2.benchmark.tables.comparison import measured_tables
from moco_d2.benchmark.tables.grouping import file_names
from moco_d2.benchmark.tables.table import Cell, Table
from moco_d2.errors import UserError, closest
from moco_d2.files import write_text

CARD, EVAL_RESULTS = "README.md", ".eval_results"
_DECIMALS = 4  # of a value for other programs


def export(
    folders: Iterable[str | Path],
    initialization: str,
    out: str | Path,
    *,
    dataset_id: str | None = None,
    task_id: str | None = None,
    source_url: str | None = None,
) -> list[Path]:
    """Write the model card of an initialization and, for a benchmark of the hub, its entry.

    The card compares the initialization with the others in `folders`. The entry has the mean of the
    task's first primary metric; its notes have the interval and the number of runs.

    Args:
        folders: Folders with records at any depth, or records.
        initialization: The row that is exported.
        out: Folder for ``README.md`` and ``.eval_results/TASK.yaml``.
        dataset_id: A dataset of the hub that is a benchmark, ``OWNER/NAME``; None for no entry.
        task_id: A task in the eval.yaml of that dataset.
        source_url: An address where the results are explained.

    Returns:
        The files that were written.

    Raises:
        UserError: If there are no such records, an entry is wanted for several tasks, an argument
            is missing or invalid, or the library is missing or too old.
    """
    hub = _library()
    if (dataset_id is None) != (task_id is None):
        raise UserError("--dataset-id and --task-id go together; give both, or neither")
    if dataset_id is not None:
        _check_id(hub, dataset_id)
    records = read_records(folders)
    tables = [
        table
        for table in measured_tables(records)
        if any(row.label == initialization for row in table.rows)
    ]
    if not tables:
        names = sorted({record.initialization for record in records})
        hint = closest(initialization, names) or f"there are {', '.join(names)}"
        raise UserError(f"no run of the initialization {initialization!r:.100}; {hint}")
    if dataset_id is not None and len(tables) > 1:
        raise UserError(
            f"an entry has one task, but there are {', '.join(t.task for t in tables)}; give the "
            "folder of one of them"
        )
    card = _card(
        *(hub, records, tables),
        initialization=initialization,
        folder=Path(out),
        dataset_id=dataset_id,
    )
    texts = {Path(out) / CARD: card}
    if dataset_id is not None:
        name = f"{file_names([tables[0].task])[tables[0].task]}.yaml"
        entry = _entry(records, tables[0], initialization)
        entry |= {"dataset_id": dataset_id, "task_id": task_id, "source_url": source_url}
        content = hub.eval_result_entries_to_yaml([hub.EvalResultEntry(**entry)])
        texts[Path(out) / EVAL_RESULTS / name] = yaml.safe_dump(content, sort_keys=False)
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


def _library() -> Any:
    try:
        import huggingface_hub

        huggingface_hub.EvalResultEntry  # noqa: B018 - older versions lack it
    except (ImportError, AttributeError) as error:
        raise UserError(
            "the export needs a huggingface_hub that knows .eval_results: pip install -U "
            "'moco_d2[hub]'"
        ) from error
    return huggingface_hub


def _check_id(hub: Any, dataset_id: str) -> None:
    try:
        hub.utils.validate_repo_id(dataset_id)
    except ValueError as error:
        raise UserError(
            f"--dataset-id must be OWNER/NAME of a dataset on the hub, got {dataset_id!r:.100}"
        ) from error


def _cells(table: Table, initialization: str) -> dict[str, Cell]:
    row = next(row for row in table.rows if row.label == initialization)
    return {cell.metric: cell for cell in row.cells if cell.mean is not None and cell.n is not None}


def _card(
    hub: Any,
    records: Sequence[Record],
    tables: Sequence[Table],
    *,
    initialization: str,
    folder: Path,
    dataset_id: str | None,
) -> str:
    results = [
        hub.EvalResult(
            task_type="image-segmentation" if metric.startswith("sem_seg") else "object-detection",
            dataset_type=dataset_id or table.title.removeprefix(f"{table.task}: "),
            dataset_name=table.title.removeprefix(f"{table.task}: "),
            metric_type=metric,
            # The library joins the results of one dataset, so the metric names the task.
            metric_name=f"{table.task}, {title} (mean, {cell.n} seed{'s' * (cell.n != 1)})",
            metric_value=round(cell.mean, _DECIMALS),
        )
        for table in tables
        for metric, title in zip(table.metrics, table.columns, strict=True)
        if (cell := _cells(table, initialization).get(metric))
        and cell.mean is not None
        and cell.n is not None
    ]
    data = hub.ModelCardData(
        model_name=initialization,
        tags=["detectron2", "moco_d2", "object-detection"],
        eval_results=results,
    )
    _, (compared, provenance, _) = board_parts(records, folder)
    body = "\n".join(
        [
            f"# {escaped(initialization)}\n",
            "The results are those of detectors that moco_d2 fine-tuned from these weights and, "
            "with the same settings, from others. A mark beside a result says where a run differs "
            "in more than its weights.\n",
            markdown(compared),
            markdown(provenance),
        ]
    )
    return str(hub.ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _entry(records: Sequence[Record], table: Table, initialization: str) -> dict[str, Any]:
    """Return the fields of an entry that come from the records."""
    metric, title = next(iter(headline_metrics(table).items()))
    cell = _cells(table, initialization).get(metric)
    if cell is None or cell.mean is None or cell.n is None:
        raise UserError(f"the runs of {initialization} have no {title}, which is what is exported")
    finished = max(
        r.finished for r in records if (r.task, r.initialization) == (table.task, initialization)
    )
    interval = interval_text(Summary(cell.mean, cell.std, cell.n))
    return {
        "value": round(cell.mean, _DECIMALS),
        "date": finished.date().isoformat(),
        "notes": f"{table.task}, {title}: {interval}, mean of {cell.n} fine-tuning runs by moco_d2",
    }
