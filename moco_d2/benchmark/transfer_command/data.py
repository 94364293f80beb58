"""DATA of tools/transfer.py: short forms of dataset names, and what a dataset holds."""

import dataclasses
import json
import os
import re
import statistics
from pathlib import Path
from typing import Any

from moco_d2.errors import UserError
from moco_d2.files import ANNOTATIONS, expand_home, is_folder, is_regular_file, no_file

_YEAR = re.compile(r"(?:voc)?_?(2007|2012)", re.IGNORECASE)
# The splits of the paper; the annotations of VOC2012's test images are not public.
_OF_YEAR = {"train": "voc_{}_trainval", "test": "voc_{}_test"}
_TEST_OF_2012 = "voc_2012_val"
_SPLITS = {"train": ("trainval", "train"), "test": ("test", "val")}
_MOST_BYTES = 4 << 30  # of an annotation file; COCO's train2017 has 0.4 GiB


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the training and the test sets hold.

    Attributes:
        classes: Number of classes of the training sets.
        keypoints: Number of keypoints of an object; 0 if the annotations have none.
        images: Number of training images.
        short_side: Median of the short sides of the training images, in pixels.
        test_images: Number of test images.
    """

    classes: int
    keypoints: int
    images: int
    short_side: float
    test_images: int


def absolute(path: Path) -> Path:
    """Return a path that holds from any current folder, without ``..``. Links stay as they are,
    except that ``..`` leads out of the folder that a link leads to.
    """
    path = path.absolute()
    return Path(os.path.realpath(path)) if ".." in path.parts else path


def dataset_name(data: str, purpose: str) -> str:
    """Return the dataset's name in a config.

    Args:
        data: A VOC year ("VOC2007"), the folder of a VOC year, a COCO annotation file whose images
            lie near it, or a name that is returned as it is: ``voc:FOLDER:SPLIT``,
            ``coco:ANNOTATIONS.json:IMAGES`` or a registered dataset.
        purpose: "train" or "test", which selects the split of a VOC year.

    Raises:
        UserError: If the folder is no VOC year, the images of a COCO file are not near it, a VOC
            year is also a folder here, or a path leads to no annotation file.
    """
    year = _YEAR.fullmatch(data)
    if year:
        name = _OF_YEAR[purpose].format(year[1])
        name = _TEST_OF_2012 if name == "voc_2012_test" else name
        if Path(data).is_dir():
            raise UserError(
                f"--{purpose} {data} is a folder here and the name of a dataset; write ./{data} or "
                f"{name}"
            )
        return name
    path = expand_home(data)
    if path.is_dir():
        return _voc_folder(path, purpose)
    if path.suffix == ".json" and path.is_file():
        return f"coco:{absolute(path)}:{absolute(_image_folder(path))}"
    kind, _, rest = data.partition(":")
    if "://" in data:
        return data
    if kind in ("voc", "coco") and rest:
        return _absolute(kind, rest)
    in_folder = path.is_absolute() or (path.parent != Path() and is_folder(path.parent))
    if in_folder or path.suffix in (".json", ".gz"):
        reason = "is not named .json, as COCO's annotation files are; unpack or rename it"
        if not is_regular_file(path):
            reason = no_file(path, ANNOTATIONS)
        raise UserError(f"--{purpose} {data} {reason}")
    return data


def _absolute(kind: str, rest: str) -> str:
    """Return a dataset by path with absolute folders, so that a suite may be run from anywhere."""
    if kind == "voc":
        folder, _, split = rest.rpartition(":")
        return f"voc:{absolute(expand_home(folder))}:{split}" if folder else f"voc:{rest}"
    file, found, images = rest.partition(".json:")
    if not found:
        return f"coco:{rest}"
    return f"coco:{absolute(expand_home(f'{file}.json'))}:{absolute(expand_home(images))}"


def _voc_folder(folder: Path, purpose: str) -> str:
    for split in _SPLITS[purpose]:
        if (folder / "ImageSets" / "Main" / f"{split}.txt").is_file():
            return f"voc:{absolute(folder)}:{split}"
    files = " or ".join(f"ImageSets/Main/{split}.txt" for split in _SPLITS[purpose])
    raise UserError(
        f"--{purpose} {folder} is a folder without {files}: name a split with voc:{folder}:SPLIT, "
        "or a COCO annotation file"
    )


def _image_folder(file: Path) -> Path:
    """Return the folder near a COCO file that holds its first image."""
    problem = f"{file} is not a COCO instances file"
    if file.stat().st_size > _MOST_BYTES:
        raise UserError(f"{file} has more than {_MOST_BYTES >> 30} GiB; divide it")
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        name = content["images"][0]["file_name"]
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise UserError(f"{problem}: it must have images with a file_name") from error
    if not isinstance(name, str) or "://" in name:
        raise UserError(f"{problem}: file_name must be the name of a file, got {name!r:.100}")
    above, part = file.absolute().parent, file.stem.removeprefix("instances_")
    folders = [above, above / "images", above.parent / "images" / part, above.parent / part]
    folders += [above.parent / "images", above.parent]
    for folder in folders:
        if (folder / name).is_file():
            return folder
    looked = ", ".join(map(str, folders))
    raise UserError(
        f"{file}: its first image {name!r:.100} is in none of {looked}; write coco:{file}:IMAGES "
        "with the folder of the images"
    )


def read_facts(train: tuple[str, ...], test: tuple[str, ...]) -> Facts:
    """Read the datasets. Call it in a process of its own (runs.children.in_child), because it
    registers them and needs their memory.

    Raises:
        UserError: If a dataset is unknown or cannot be read, if the training sets have different
            classes, or if test images are also training images.
    """
    from detectron2.data import MetadataCatalog

    from moco_d2.transfer.data.registered import load_dicts, register_datasets

    register_datasets((*train, *test))
    dicts = [sample for name in train for sample in load_dicts(name)]
    if not dicts:
        raise UserError(f"--train {' '.join(train)} has no images")
    _check_apart(train, test, {sample["file_name"] for sample in dicts})
    metadata = [MetadataCatalog.get(name) for name in train]
    classes = [list(data.get("thing_classes") or ()) for data in metadata]
    for name, names in zip(train, classes, strict=True):
        if not names:
            raise UserError(f"--train {name} has no classes of objects; name a detection dataset")
        if names != classes[0]:
            raise UserError(f"--train {name} has other classes than {train[0]}; train on one")
    return Facts(
        classes=len(classes[0]),
        keypoints=len(metadata[0].get("keypoint_names") or ()),
        images=len(dicts),
        short_side=statistics.median(_short_side(sample) for sample in dicts),
        test_images=sum(len(load_dicts(name)) for name in test),
    )


def _check_apart(train: tuple[str, ...], test: tuple[str, ...], trained_on: set[str]) -> None:
    from moco_d2.transfer.data.registered import load_dicts

    known = set(map(os.path.realpath, trained_on))
    tested = {os.path.realpath(sample["file_name"]) for name in test for sample in load_dicts(name)}
    # Where the folder of images is wrong, no image exists: the later check of files says so.
    if shared := {file for file in known & tested if Path(file).exists()}:
        raise UserError(
            f"--test {' '.join(test)}: {len(shared)} of its {len(tested)} images are also in "
            f"--train {' '.join(train)}, first {min(shared)}; a test needs images that the "
            "detectors were not trained on, so name others, or divide these into two sets"
        )


def _short_side(sample: dict[str, Any]) -> float:
    return float(min(sample["height"], sample["width"]))
