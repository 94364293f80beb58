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
from typing import Any, NamedTuple

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


def draw_parts(cells: Iterable[Cell], folder: Path, *, begun: bool = False) -> None:
    """Write the parts of the trials among some cells of a suite.

    Args:
        cells: The cells.
        folder: The folder of the suite.
        begun: Whether runs of the suite have begun, so that the parts must stay as they are.

    Raises:
        UserError: If a dataset cannot be read, has too few images or objects for two parts, or was
            drawn otherwise for runs that have begun. Nothing is written then.
    """
    draws = {cell.task: cell.settings[DRAWN] for cell in cells if DRAWN in cell.settings}
    if draws:
        in_child({"train_net.py"}, _write_all, draws, folder, begun)


class _Parts(NamedTuple):
    """What is written for a task: path -> text, and link -> target."""

    texts: Mapping[Path, str]
    links: Mapping[Path, Path]


def _write_all(draws: Mapping[str, Draw], folder: Path, begun: bool) -> None:
    from detectron2.data import MetadataCatalog

    from moco_d2.transfer.data.registered import load_dicts, register_datasets

    drawn = []
    for task, (name, _, _) in draws.items():
        register_datasets((name,))
        load_dicts(name)  # checks the files
        metadata, home = MetadataCatalog.get(name), folder / _DRAWN_FOLDER / task
        divide = _divide_voc if _VOC.match(name) else _divide_coco
        drawn.append(divide(metadata, home, draws[task]))
    for path, text in (item for parts in drawn for item in parts.texts.items()):
        if begun and path.is_file() and path.read_bytes() != text.encode():
            raise UserError(
                f"{path} was drawn from other images, or by another fraction or seed; choose "
                "another --folder, so that all trials have the same parts"
            )
    for parts in drawn:
        for path, text in parts.texts.items():
            write_text(path, text)
        for link, target in parts.links.items():
            _link(link, target)


def _divide_voc(metadata: Any, home: Path, draw: Draw) -> _Parts:
    from moco_d2.transfer.data.custom_datasets import VOC_CLASSES_FILE
    from moco_d2.transfer.data.voc_annotations import read_objects, read_split

    root = Path(metadata.dirname)
    images = list(read_split(metadata.dirname, metadata.split))
    filled = {
        image
        for image in images
        if not all(item.difficult for item in read_objects(root / "Annotations" / f"{image}.xml"))
    }
    held = _held_out(images, filled, draw)
    texts = {
        home / "ImageSets" / "Main" / f"{part}.txt": "".join(
            f"{image}\n" for image in images if (image in held) == (part == _HELD_OUT)
        )
        for part in (_KEPT, _HELD_OUT)
    }
    entries = ("JPEGImages", "Annotations", VOC_CLASSES_FILE)
    return _Parts(texts, {home / entry: root / entry for entry in entries})


def _divide_coco(metadata: Any, home: Path, draw: Draw) -> _Parts:
    content = json.loads(Path(metadata.json_file).read_text(encoding="utf-8-sig"))
    filled = {x["image_id"] for x in content["annotations"] if not x.get("iscrowd")}
    names = {image["id"]: image["file_name"] for image in content["images"]}
    held = _held_out([*names.values()], {names[i] for i in names if i in filled}, draw)
    texts = {}
    for part in (_KEPT, _HELD_OUT):
        ids = {i for i, name in names.items() if (name in held) == (part == _HELD_OUT)}
        chosen = {
            key: [entry for entry in content[key] if entry[of] in ids]
            for key, of in (("images", "id"), ("annotations", "image_id"))
        }
        texts[home / f"{part}.json"] = json.dumps({**content, **chosen})
    return _Parts(texts, {home / "images": Path(metadata.image_root)})


def _held_out(images: Collection[str], filled: Set[str], draw: Draw) -> set[str]:
    """Return the images that are held out; `filled` are those with objects that count."""
    name, fraction, seed = draw
    if len(images) < 2:
        raise UserError(f"held_out of tune: {name} has {len(images)} image(s), too few to divide")
    order = sorted(images, key=lambda i: hashlib.sha256(f"held out {seed} {i}".encode()).digest())
    held = set(order[: min(max(1, round(fraction * len(order))), len(order) - 1)])
    for part, objects in (("held-out part", filled & held), ("part to train on", filled - held)):
        if not objects:
            raise UserError(
                f"held_out of tune: the {part} of {name} would have no object that counts, as "
                f"{len(filled)} of its {len(order)} images have some; take another fraction or seed"
            )
    return held


def _link(link: Path, target: Path) -> None:
    target = target.absolute()
    if not target.exists() or (link.is_dir() and not link.is_symlink()):
        return  # not every dataset lists its classes; a folder is a copy of the suite's
    try:
        link.unlink(missing_ok=True)  # the data may have moved
        link.symlink_to(target)
    except OSError as error:
        raise UserError(
            f"cannot write {link} ({error.strerror}); choose another --folder"
        ) from error
