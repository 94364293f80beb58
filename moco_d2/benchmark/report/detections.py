"""Detections of each initialization in the same test images, as a section of the report."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from moco_d2.benchmark.html import Image, Section
from moco_d2.benchmark.records.results import Record
from moco_d2.benchmark.tables.grouping import file_names
from moco_d2.errors import UserError

TITLE = "Detections"
_FILES = ("config.yaml", "model_final.pth")  # that a run leaves, and drawing needs
_MOST_COLUMNS = 4  # of a picture that is legible on paper
_INTRODUCTION = (
    "The same test images for every initialization, spread evenly over those with 1 to 8 objects, "
    "not chosen by result. Of each run as many detections are drawn as there are objects, those "
    "with the highest scores. Solid blue: right, the class and an IoU of 0.5 or more with an "
    "object that no better detection has; dashed orange: wrong; white: annotated."
)

_logger = logging.getLogger(__name__)


def detection_section(
    tasks: Mapping[str, Mapping[str, Sequence[Record]]], folder: Path, *, images: int = 4
) -> Section:
    """A picture for every task whose runs have kept their models; why there is none for others.

    Args:
        tasks: runs by task and initialization, see grouping.by_task.
        folder: where the pictures are written, detections_voc_C4.jpg for that task.
        images: rows of a picture.
    """
    drawn, sentences = [], []
    files = file_names(tasks)
    for task, runs in tasks.items():
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
            # Whatever a model or dataset from elsewhere may do: the rest of the page stands.
            _logger.warning("detections of %s are not drawn: %r", task, error)
            sentences.append(f"{task}: not drawn, {type(error).__name__}: {error}.")
            continue
        if left_out:
            sentences.append(
                f"{task}: without {', '.join(left_out)}, whose models are not there, or for which "
                "there is no room."
            )
        caption = f"{task}, seed {seed}: {', '.join(names)}"
        alt = (
            f"Test images of {task} with annotated boxes, and what the detectors from "
            f"{', '.join(shown)} find in each; rows: {', '.join(names)}"
        )
        drawn.append(Image(path, caption, alt))
    text = "\n\n".join(([_INTRODUCTION] if drawn else []) + sentences)
    return Section(TITLE, text=text, images=drawn)


def _choose(runs: Mapping[str, Sequence[Record]]) -> tuple[dict[str, Record], int | None]:
    """Of each initialization a run that has kept its model, all with the seed that most have."""
    kept = {
        name: {r.seed: r for r in group if all((r.path.parent / f).is_file() for f in _FILES)}
        for name, group in runs.items()
    }
    seeds = [seed for by_seed in kept.values() for seed in by_seed]
    if not seeds:
        return {}, None
    seed = min(set(seeds), key=lambda s: (-seeds.count(s), s))
    return {name: by_seed[seed] for name, by_seed in kept.items() if seed in by_seed}, seed


def _draw(
    task: str,
    runs: Mapping[str, Sequence[Record]],
    shown: Mapping[str, Record],
    path: Path,
    images: int,
) -> list[str]:
    if not shown:
        folder = next(iter(runs.values()))[0].path.parent
        raise UserError(
            f"no run has kept its model: {' and '.join(_FILES)} must lie beside record.json, as "
            f"tools/train_net.py leaves them (looked in {folder} and its like)"
        )
    try:
        from moco_d2.transfer.inference.side_by_side import draw_side_by_side
    except ImportError as error:
        raise UserError(f"drawing needs Detectron2 ({error})") from error
    with warnings.catch_warnings():  # Detectron2's calls of what torch deprecates
        warnings.simplefilter("ignore")
        folders = {name: record.path.parent for name, record in shown.items()}
        return draw_side_by_side(folders, path, images=images)
