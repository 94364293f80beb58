"""Registered datasets: look them up, read them, and leave out images with missing files."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from moco_d2.engine.annotation_files import check_annotation_files
from moco_d2.errors import UserError, closest
from moco_d2.transfer.data.annotation_checks import check_annotations
from moco_d2.transfer.data.box_layout import corners_problem
from moco_d2.transfer.data.custom_datasets import FORMS, register_by_path
from moco_d2.transfer.data.mask_checks import Size, guarded_reading
from moco_d2.transfer.data.voc_annotations import read_annotation, read_split, split_file


def register_datasets(names: tuple[str, ...]) -> None:
    """Register each of `names` that is a path, and check that the others are registered.
    Idempotent.

    Raises:
        UserError: If a name is unknown (the message names the closest one), or a path is not such a
            dataset.
    """
    for name in names:
        if name in DatasetCatalog.list():
            continue
        if not register_by_path(name):
            raise UserError(
                f"dataset {name!r} is not registered; "
                + (closest(name, DatasetCatalog.list()) or f"write {FORMS}")
            )


_kept: list[dict[str, list[dict[str, Any]]]] = []  # one after keep_dicts: name -> dicts


def keep_dicts() -> None:
    """Let load_dicts read each dataset once, in a process that only examines them and then ends."""
    _kept.append({})


def load_dicts(name: str) -> list[dict[str, Any]]:
    """Return the dicts of a registered dataset.

    Raises:
        UserError: If its annotations are missing, cannot be read or cannot be trained on. The
            message names the file.
    """
    if _kept and name in _kept[0]:
        return _kept[0][name]
    check_annotation_files(name)
    _check_xml(name)
    _guard(name)
    dicts = _load(name)
    check_annotations(name, dicts)
    if _kept:
        _kept[0][name] = dicts
    return dicts


def _guard(name: str) -> None:
    """Register a dataset again, so that later readings, as of Detectron2's loaders, give the same
    dicts as those that are checked.
    """
    load = DatasetCatalog[name]
    if getattr(load, "func", None) is not _read_guarded:
        lvis = MetadataCatalog.get(name).get("evaluator_type") == "lvis"
        DatasetCatalog.remove(name)
        DatasetCatalog.register(name, functools.partial(_read_guarded, load, lvis=lvis))


def _read_guarded(load: Callable[[], list[dict[str, Any]]], *, lvis: bool) -> list[dict[str, Any]]:
    with guarded_reading(lvis=lvis):
        return load()


def _load(name: str) -> list[dict[str, Any]]:
    try:
        return DatasetCatalog.get(name)
    except FileNotFoundError as error:
        raise UserError(
            f"dataset {name!r}: {error.filename} does not exist; set DETECTRON2_DATASETS to the "
            "folder that holds VOC2007/, VOC2012/, coco/, lvis/ or cityscapes/"
        ) from error
    except AssertionError as error:  # Detectron2's loaders assert that files exist and match
        reason = " ".join(str(error).split())
        raise UserError(f"dataset {name!r} cannot be read: {reason}") from error
    except ModuleNotFoundError as error:
        raise UserError(f"dataset {name!r} needs {error.name}: pip install {error.name}") from error
    except (
        *(KeyError, TypeError, ValueError, IndexError, AttributeError),
        *(OverflowError, RecursionError),
    ) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"dataset {name!r}: its annotations are damaged (Detectron2's reader reports: {reason}"
            "); repair the file"
        ) from error


def _check_xml(name: str) -> None:
    """Read VOC annotations as the evaluation does, and check the layout of their boxes. It must
    happen before Detectron2's reader, which would expand XML entities.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") != "pascal_voc":
        return
    if not Path(split_file(metadata.dirname, metadata.split)).is_file():
        return  # Detectron2's reader reports the missing file
    boxes, sizes = [], []
    for image in read_split(metadata.dirname, metadata.split):
        file = Path(metadata.dirname) / "Annotations" / f"{image}.xml"
        if file.is_file():
            objects, size = read_annotation(file)
            boxes += [item.box for item in objects]
            sizes += [None if size is None else Size(*size)] * len(objects)
    problem = corners_problem(np.array(boxes, dtype=np.float64).reshape(-1, 4), sizes)
    if problem:
        raise UserError(f"dataset {name!r}: {problem}")


def leave_out_missing(names: tuple[str, ...]) -> None:
    """Register datasets again without the images with a missing file, as --force does for
    DATASETS.TRAIN. All processes must call this function.
    """
    for name in names:
        load = DatasetCatalog[name]
        absent = missing_files(load())
        if absent:
            DatasetCatalog.remove(name)
            DatasetCatalog.register(
                name,
                lambda load=load, absent=absent: [d for d in load() if not absent & files_of(d)],
            )


def missing_files(dicts: list[dict[str, Any]]) -> set[str]:
    """Return the files of a dataset that any process lacks. All processes must call it."""
    missing = {file for d in dicts for file in files_of(d) if not Path(file).is_file()}
    return set().union(*comm.all_gather(missing))


def files_of(sample: dict[str, Any]) -> set[str]:
    """Return the image file and, in semantic segmentation, the label file."""
    return {sample[key] for key in ("file_name", "sem_seg_file_name") if key in sample}
