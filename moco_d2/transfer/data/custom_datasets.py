"""Registration of detection datasets by path, without code.

* ``voc:FOLDER:SPLIT``              a folder with JPEGImages, Annotations and ImageSets/Main
* ``coco:ANNOTATIONS.json:IMAGES``  a COCO file of boxes, masks or keypoints, and its image folder

The files name the classes. COCO's classes are in the order of their ids, which need not be
contiguous. VOC's classes are in the order of FOLDER/classes.txt (one per line) or, without this
file, sorted by name over all annotations of the folder, so all its splits have the same classes.
"""

import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any
from xml.parsers import expat

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from moco_d2.errors import UserError
from moco_d2.files import ANNOTATIONS, expand_home, is_folder, is_regular_file, no_file
from moco_d2.records.names import invisible, name_problem
from moco_d2.transfer.data.coco_entry_types import coco_problem
from moco_d2.transfer.data.coco_normalization import normalize_numbers
from moco_d2.transfer.data.voc_annotations import class_name, parse_xml
from moco_d2.transfer.data.voc_dataset import load_voc

FORMS = "voc:FOLDER:SPLIT or coco:ANNOTATIONS.json:IMAGES"
VOC_CLASSES_FILE = "classes.txt"
VOC_07_METRIC_YEAR = 2007  # 11-point AP, as in the paper's VOC results

_SIDES = (
    (re.compile("left", re.IGNORECASE), "right"),
    (re.compile("(?<![A-Za-z0-9])l(?![A-Za-z0-9])", re.IGNORECASE), "r"),
)
_COCO_KEYS = ("images", "annotations", "categories")


def register_by_path(name: str) -> bool:
    """Register `name` with Detectron2 if it is a path in one of the two forms.

    Returns:
        Whether it is such a path.

    Raises:
        UserError: If there is no such dataset at the path.
    """
    kind, _, rest = name.partition(":")
    if kind not in ("voc", "coco"):
        return False
    character = invisible(name)
    if character:
        raise UserError(
            f"dataset {name!a} has the invisible character {character}: rename the folder or "
            "write the name again"
        )
    # All names may have colons.
    first, colon, second = rest.rpartition(":") if kind == "voc" else _divided(rest)
    if not (first and colon and second):
        raise UserError(f"dataset {name!r}: write {FORMS}")
    if "://" in rest:
        raise UserError(f"dataset {name!r} is an address: download it, and write {FORMS}")
    register = _register_voc if kind == "voc" else _register_coco
    register(name, expand_home(first), second)
    return True


def _divided(rest: str) -> tuple[str, str, str]:
    """Divide FILE:FOLDER after the shortest name of a file, or else at the first colon."""
    colons = [i for i, character in enumerate(rest) if character == ":"]
    for i in colons:
        if is_regular_file(expand_home(rest[:i])):
            return rest[:i], ":", rest[i + 1 :]
    return rest.partition(":")


def _register_voc(name: str, root: Path, split: str) -> None:
    split_file = root / "ImageSets" / "Main" / f"{split}.txt"
    if not is_regular_file(split_file):
        reason = no_file(split_file, (".txt",))
        raise UserError(
            f"dataset {name!r}: {split_file} {reason}; {root} must be a VOC folder with "
            f"JPEGImages, Annotations and ImageSets/Main/{split}.txt"
        )
    classes = _voc_classes(name, root)
    DatasetCatalog.register(name, lambda: load_voc(root, split, classes))
    MetadataCatalog.get(name).set(
        thing_classes=classes,
        dirname=str(root),
        split=split,
        year=VOC_07_METRIC_YEAR,
        evaluator_type="pascal_voc",
    )


def _voc_classes(name: str, root: Path) -> list[str]:
    annotated: dict[str, Path] = {}
    for file in sorted((root / "Annotations").glob("*.xml")):
        if file.name.startswith("."):  # macOS writes ._NAME.xml beside NAME.xml
            continue
        try:
            objects = parse_xml(file).iter("object")
        except expat.ExpatError as error:
            raise UserError(f"dataset {name!r}: {file} is not an XML file ({error})") from error
        except ValueError as error:
            raise UserError(f"dataset {name!r}: {file} is refused: {error}") from error
        for obj in objects:
            annotated.setdefault(class_name(obj), file)
    if not annotated:
        raise UserError(f"dataset {name!r}: no annotated object in {root / 'Annotations'}/*.xml")
    listed = root / VOC_CLASSES_FILE
    if not listed.is_file():
        classes = sorted(annotated)
        problem = name_problem(classes, ignore_case=True)
        if problem:
            files = f"{root / 'Annotations'}/*.xml"
            raise UserError(
                f"dataset {name!r}: in {files}, {problem}, or list the classes in {listed}"
            )
        return classes
    try:
        lines = listed.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"dataset {name!r}: {listed} is not UTF-8; write it in UTF-8") from error
    classes = [" ".join(line.split()) for line in lines if line.strip()]
    twice = [label for label, count in Counter(classes).items() if count > 1]
    problem = f"{twice[0]!a} is listed twice: remove one" if twice else name_problem(classes)
    if problem:
        raise UserError(f"dataset {name!r}: in {listed}, {problem}")
    for label, file in annotated.items():
        if label not in classes:
            raise UserError(
                f"dataset {name!r}: {file} has an object {label!r}, which {listed} does not list; "
                "add it to the list"
            )
    return classes


def _register_coco(name: str, file: Path, images: str) -> None:
    folder = expand_home(images)
    if not is_regular_file(file):
        reason = no_file(file, ANNOTATIONS)
        raise UserError(f"dataset {name!r}: annotation file {file} {reason}")
    if not is_folder(folder):
        reason = "is a file; name its folder" if is_regular_file(folder) else "does not exist"
        raise UserError(f"dataset {name!r}: image folder {folder} {reason}")
    categories = _coco_categories(name, file)
    metadata: dict[str, Any] = {"thing_classes": [c["name"] for c in categories]}
    keypoints = [c["keypoints"] for c in categories if c.get("keypoints")]
    different = next((points for points in keypoints if points != keypoints[0]), None)
    if different:
        raise UserError(
            f"dataset {name!r}: {file} has categories with different keypoints, {keypoints[0]} and "
            f"{different}, but a detector has one list; give all categories the same list"
        )
    if keypoints:
        metadata["keypoint_names"] = keypoints[0]
        metadata["keypoint_flip_map"] = _flip_map(keypoints[0])
    DatasetCatalog.register(name, lambda: load_coco_json(str(file), str(folder), name))
    MetadataCatalog.get(name).set(
        json_file=str(file), image_root=str(folder), evaluator_type="coco", **metadata
    )


def _coco_categories(name: str, file: Path) -> list[dict[str, Any]]:
    """Return the categories in the order of their ids, in which Detectron2 numbers them."""
    invalid = f"dataset {name!r}: {file} is not a COCO instances file"
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{invalid} ({error}); write it in UTF-8") from error
    except (ValueError, RecursionError) as error:  # damaged, not UTF-8, a number of 5000 digits
        raise UserError(f"{invalid} ({error})") from error
    missing = [k for k in _COCO_KEYS if not isinstance(content, dict) or k not in content]
    if missing:
        raise UserError(f"{invalid}: it has no {missing[0]!r}")
    normalize_numbers(content)
    problem = coco_problem(content)
    if problem:
        raise UserError(f"{invalid}: {problem}; correct the file")
    categories = sorted(content["categories"], key=lambda category: category["id"])
    names = [category["name"] for category in categories]
    if not names:
        raise UserError(f"{invalid}: it has no categories; name those of its objects")
    ids = defaultdict(list)
    for category in categories:
        ids[category["name"]].append(category["id"])
    for label, numbers in ids.items():
        if not label.strip():
            raise UserError(f"{invalid}: category {numbers[0]} has an empty name; give it a name")
        if len(numbers) > 1:
            raise UserError(
                f"{invalid}: categories {numbers[0]} and {numbers[1]} have the same name, "
                f"{label!r}; rename one, or merge them"
            )
    problem = name_problem(names)
    if problem:
        raise UserError(f"dataset {name!r}: in the categories of {file}, {problem}")
    used = {annotation["category_id"] for annotation in content["annotations"]}
    unknown = used - {category["id"] for category in categories}
    if unknown:
        raise UserError(
            f"{invalid}: annotations have category_id {min(unknown)}, which 'categories' lacks"
        )
    return categories


def _flip_map(keypoints: list[str]) -> list[tuple[str, str]]:
    """Return the pairs of left and right keypoints, which are exchanged in a mirrored image."""
    mirrored = ((left, mirrored_name(left)) for left in keypoints)
    return [(left, right) for left, right in mirrored if right in keypoints]


def mirrored_name(keypoint: str) -> str:
    """Return the name of the keypoint on the right of one on the left, or "".

    The left one has "left" in its name, or "l" as a word (l_eye, eye_l); both in any case.
    """
    for pattern, right in _SIDES:
        found = pattern.search(keypoint)
        if found:
            left = found[0]
            side = right.upper() if left.isupper() else right
            side = side.capitalize() if left.istitle() else side
            return keypoint[: found.start()] + side + keypoint[found.end() :]
    return ""
