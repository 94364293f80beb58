"""Two parts of the training images of a task, drawn for the trials of its learning rates.

A fraction of the first training set is held out: the images with the smallest hashes of seed and
name, which are the same on every machine. The runner writes both parts, with links to the images,
to ``drawn/TASK/`` in the folder of the suite.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from moco_d2.benchmark.runs.children import in_child
from moco_d2.benchmark.runs.suites import FOLDER, Cell
from moco_d2.errors import UserError
from moco_d2.files import write_text

#: The divided dataset, the fraction that is held out, and the seed.
Draw = tuple[str, float, int]
#: Setting of a trial: its Draw.
DRAWN = "tune.drawn"
_DRAWN_FOLDER = "drawn"
_KEPT, _HELD_OUT = "kept", "held_out"
_VOC = re.compile(r"voc(:|_\d{4}_)")
_COCO = re.compile(r"coco(:|_\d{4}_)|keypoints_coco_\d{4}_")


def names_of_parts(task: str, divided: str, source: Path) -> tuple[str, str]:
    """Return the names of the part that trials train on and of the part that is held out.

    Raises:
        UserError: If the dataset `divided` has neither VOC's nor COCO's layout.
    """
    folder = f"{FOLDER}/{_DRAWN_FOLDER}/{task}"
    if _VOC.match(divided):
        return f"voc:{folder}:{_KEPT}", f"voc:{folder}:{_HELD_OUT}"
    if _COCO.match(divided):
        kept, held = (f"coco:{folder}/{part}.json:{folder}/images" for part in (_KEPT, _HELD_OUT))
        return kept, held
    raise UserError(
        f"{source}: held_out of tune divides datasets of VOC and COCO, not {divided!r:.200}; name "
        "two parts in train and test of tune"
    )


def draw_parts(cells: Iterable[Cell], folder: Path) -> None:
    """Write the parts of the trials among some cells of a suite.

    Raises:
        UserError: If a dataset cannot be read, or has too few images or objects for two parts.
            Nothing of this dataset is written then.
    """
    draws = {cell.task: cell.settings[DRAWN] for cell in cells if DRAWN in cell.settings}
    if draws:
        in_child({"train_net.py"}, _write_all, draws, folder)


def _write_all(draws: Mapping[str, Draw], folder: Path) -> None:
    from detectron2.data import MetadataCatalog

    from moco_d2.transfer.data.registered import load_dicts, register_datasets

    for task, (name, _, _) in draws.items():
        register_datasets((name,))
        filled = {sample["image_id"] for sample in load_dicts(name) if sample["annotations"]}
        metadata, home = MetadataCatalog.get(name), folder / _DRAWN_FOLDER / task
        write = _write_voc if _VOC.match(name) else _write_coco
        write(metadata, home, filled, draws[task])


def _write_voc(metadata: Any, home: Path, filled: Set[str], draw: Draw) -> None:
    from moco_d2.transfer.data.custom_datasets import VOC_CLASSES_FILE
    from moco_d2.transfer.data.voc_annotations import read_split

    images = list(read_split(metadata.dirname, metadata.split))
    held = _held_out(images, filled, draw)
    for part in (_KEPT, _HELD_OUT):
        lines = [f"{image}\n" for image in images if (image in held) == (part == _HELD_OUT)]
        _write(home / "ImageSets" / "Main" / f"{part}.txt", "".join(lines))
    for entry in ("JPEGImages", "Annotations", VOC_CLASSES_FILE):
        _link(home / entry, Path(metadata.dirname) / entry)


def _write_coco(metadata: Any, home: Path, filled: Set[int], draw: Draw) -> None:
    content = json.loads(Path(metadata.json_file).read_text(encoding="utf-8-sig"))
    names = {image["file_name"]: image["id"] in filled for image in content["images"]}
    with_objects = {name for name, has_some in names.items() if has_some}
    held = _held_out(names, with_objects, draw)
    ids = {image["id"] for image in content["images"] if image["file_name"] in held}
    for part in (_KEPT, _HELD_OUT):
        chosen = {
            key: [entry for entry in content[key] if (entry[of] in ids) == (part == _HELD_OUT)]
            for key, of in (("images", "id"), ("annotations", "image_id"))
        }
        _write(home / f"{part}.json", json.dumps({**content, **chosen}))
    _link(home / "images", Path(metadata.image_root))


def _held_out(images: Collection[str], filled: Set[str], draw: Draw) -> set[str]:
    """Return the images that are held out; `filled` are those with objects."""
    name, fraction, seed = draw
    if len(images) < 2:
        raise UserError(f"held_out of tune: {name} has {len(images)} image(s), too few to divide")
    order = sorted(images, key=lambda i: hashlib.sha256(f"held out {seed} {i}".encode()).digest())
    held = set(order[: min(max(1, round(fraction * len(order))), len(order) - 1)])
    for part, objects in (("held-out part", filled & held), ("part to train on", filled - held)):
        if not objects:
            raise UserError(
                f"held_out of tune: the {part} of {name} would have no object, as {len(filled)} of "
                f"its {len(order)} images have some; take another fraction or seed"
            )
    return held


def _write(path: Path, text: str) -> None:
    if path.is_file() and path.read_bytes() != text.encode():
        raise UserError(
            f"{path} was drawn from other images, or by another fraction or seed; choose another "
            "--folder, so that all trials have the same parts"
        )
    write_text(path, text)


def _link(path: Path, target: Path) -> None:
    target = target.absolute()
    if not target.exists() or (path.is_symlink() and path.readlink() == target):
        return  # not every dataset lists its classes
    try:
        path.symlink_to(target)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror}); choose another --folder"
        ) from error
