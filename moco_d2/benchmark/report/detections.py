"""The section of the report with detections of each initialization in the same test images."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

from moco_d2.benchmark.html import Image, Section
from moco_d2.benchmark.records.run_records import Record
from moco_d2.benchmark.tables.grouping import Runs, file_names
from moco_d2.errors import UserError

TITLE = "Detections"
_FILES = ("config.yaml", "model_final.pth")  # files of a run that are needed to draw
_MOST_COLUMNS = 4  # a picture with more is not legible on paper
_INTRODUCTION = (
    "The test images are the same for every initialization. They are spread evenly over those with "
    "1 to 8 objects, and not chosen by result. For each run the detections with the highest scores "
    "are drawn, as many as there are objects. Solid blue: correct, with the class of an object, an "
    "IoU of at least 0.5 with it, and no better detection of it. Dashed orange: wrong. White: "
    "annotated."
)

_logger = logging.getLogger(__name__)


def _is_further_set(runs: Runs) -> bool:
    """Return whether the runs are those of another than their first test set."""
    records = [record for group in runs.values() for record in group]
    return any(r.test_set and r.test_set != r.config["DATASETS"]["TEST"][0] for r in records)


def detection_section(tasks: Mapping[str, Runs], folder: Path, *, images: int = 4) -> Section:
    """Return a picture of each task whose runs have their models, and a reason for each other task.

    Args:
        tasks: Runs by task and initialization, see grouping.by_task.
        folder: Folder of the pictures, such as detections_voc_C4.jpg.
        images: Number of rows of a picture.
    """
    drawn, sentences = [], []
    files = file_names(tasks)
    for task, runs in tasks.items():
        if _is_further_set(runs):
            sentences.append(f"{task}: not drawn; the images of the first test set are drawn.")
            continue
        chosen, seed = _choose(runs)
        shown = dict(list(chosen.items())[:_MOST_COLUMNS])
        left_out = [name for name in runs if name not in shown]
        path = folder / f"detections_{files[task]}.jpg"
        try:
            names = _draw(task, runs, shown, path, images)
        except UserError as error:
            sentences.append(f"{task}: not drawn, {error}.")
            continue
        except Exception as error:
            # A model or dataset from elsewhere may fail in any way; the rest of the page is valid.
            _logger.warning("detections of %s are not drawn: %r", task, error)
            sentences.append(f"{task}: not drawn, {type(error).__name__}: {error}.")
            continue
        if left_out:
            sentences.append(
                f"{task}: {', '.join(left_out)} not shown, because the models do not exist or the "
                f"picture has {_MOST_COLUMNS} columns already."
            )
        caption = f"{task}, seed {seed}: {', '.join(names)}"
        alt = (
            f"Test images of {task} with annotated boxes and the detections of "
            f"{', '.join(shown)}; rows: {', '.join(names)}"
        )
        drawn.append(Image(path, caption, alt))
    text = "\n\n".join(([_INTRODUCTION] if drawn else []) + sentences)
    return Section(TITLE, text=text, images=drawn)


def _choose(runs: Runs) -> tuple[dict[str, Record], int | None]:
    """Return one run with a model per initialization, and their seed, the most common one."""
    kept = {
        name: {r.seed: r for r in group if all((r.path.parent / f).is_file() for f in _FILES)}
        for name, group in runs.items()
    }
    seeds = [seed for by_seed in kept.values() for seed in by_seed]
    if not seeds:
        return {}, None
    seed = min(set(seeds), key=lambda s: (-seeds.count(s), s))
    return {name: by_seed[seed] for name, by_seed in kept.items() if seed in by_seed}, seed


def _draw(task: str, runs: Runs, shown: Mapping[str, Record], path: Path, images: int) -> list[str]:
    if not shown:
        folder = next(iter(runs.values()))[0].path.parent
        raise UserError(
            f"no run has kept its model: {' and '.join(_FILES)} of tools/train_net.py must be "
            f"beside record.json, for example in {folder}"
        )
    try:
        from moco_d2.transfer.inference.side_by_side import draw_side_by_side
    except ImportError as error:
        raise UserError(f"drawing needs Detectron2 ({error})") from error
    with warnings.catch_warnings():  # Detectron2 calls deprecated functions of torch
        warnings.simplefilter("ignore")
        folders = {name: record.path.parent for name, record in shown.items()}
        return draw_side_by_side(folders, path, images=images)
