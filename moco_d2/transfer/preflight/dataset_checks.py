"""Whether a run's datasets are known, their files there, and their classes those of the head.

DATASETS.TRAIN and TEST take Detectron2's registered names, and paths (custom_datasets.py).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from moco_d2.config.densepose import refuse_densepose
from moco_d2.engine.annotation_files import check_annotation_files
from moco_d2.errors import UserError, closest
from moco_d2.transfer.data.custom_datasets import FORMS, register_by_path
from moco_d2.transfer.data.voc_annotations import read_objects, read_split, split_file
from moco_d2.transfer.evaluation.build import evaluator_types
from moco_d2.transfer.evaluation.known_classes import dataset_classes, head_classes
from moco_d2.transfer.preflight.annotation_checks import check_annotations
from moco_d2.transfer.preflight.findings import Finding, Refusal
from moco_d2.transfer.preflight.mask_checks import guarded_reading


def register_datasets(names: tuple[str, ...]) -> None:
    """Register those of `names` that are paths; check that the others are registered. Idempotent.

    Raises:
        UserError: unknown name (names the closest), or a path that is not such a dataset.
    """
    for name in names:
        if name in DatasetCatalog.list():
            continue
        if not register_by_path(name):
            raise UserError(
                f"dataset {name!r} is not registered; "
                + (closest(name, DatasetCatalog.list()) or f"write {FORMS}")
            )


def load_dicts(name: str) -> list[dict[str, Any]]:
    """The dicts of a registered dataset.

    Raises:
        UserError: its annotations are missing, cannot be read or cannot be trained on; names the
            file.
    """
    check_annotation_files(name)
    _check_xml(name)
    dicts = _load(name)
    check_annotations(name, dicts)
    return dicts


def _load(name: str) -> list[dict[str, Any]]:
    try:
        with guarded_reading():
            return DatasetCatalog.get(name)
    except FileNotFoundError as error:
        raise UserError(
            f"dataset {name!r}: {error.filename} does not exist; set DETECTRON2_DATASETS to the "
            "folder that holds VOC2007/, VOC2012/, coco/, lvis/ or cityscapes/"
        ) from error
    except AssertionError as error:  # Detectron2's loaders: an inconsistent file, or one missing
        reason = " ".join(str(error).split())
        raise UserError(f"dataset {name!r} cannot be read, because of: {reason}") from error
    except ModuleNotFoundError as error:
        raise UserError(f"dataset {name!r} needs {error.name}: pip install {error.name}") from error
    except (
        *(KeyError, TypeError, ValueError, IndexError, AttributeError),
        *(OverflowError, RecursionError),
    ) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"dataset {name!r}: its annotations are damaged, and Detectron2's reader finds {what}; "
            "mend the file"
        ) from error


def _check_xml(name: str) -> None:
    """Read VOC annotations as the evaluation does, before Detectron2's reader, which expands the
    entities that they declare.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") != "pascal_voc":
        return
    if not Path(split_file(metadata.dirname, metadata.split)).is_file():
        return  # of what is missing Detectron2 tells
    for image in read_split(metadata.dirname, metadata.split):
        file = Path(metadata.dirname) / "Annotations" / f"{image}.xml"
        if file.is_file():
            read_objects(file)


def leave_out_missing(names: tuple[str, ...]) -> None:
    """Register datasets anew without the images of which a file is missing: what --force does to
    those of DATASETS.TRAIN. All processes must call.
    """
    for name in names:
        load = DatasetCatalog[name]
        absent = _missing_files(load())
        if absent:
            DatasetCatalog.remove(name)
            DatasetCatalog.register(
                name, lambda load=load, absent=absent: [d for d in load() if not absent & _files(d)]
            )


def _missing_files(dicts: list[dict[str, Any]]) -> set[str]:
    """The files of a dataset that any process lacks. All processes must call."""
    here = {file for d in dicts for file in _files(d) if not Path(file).is_file()}
    return set().union(*comm.all_gather(here))


def _files(sample: dict[str, Any]) -> set[str]:
    """The image, and in semantic segmentation that of its labels."""
    return {sample[key] for key in ("file_name", "sem_seg_file_name") if key in sample}


def check_datasets(cfg: Any, *, eval_only: bool = False) -> list[Finding]:
    """Findings where datasets are not there, or have other classes than the head.

    Args:
        cfg: the config as it will run.
        eval_only: only DATASETS.TEST is used.

    Raises:
        UserError: DATASETS.TEST does not name one set; a dense pose run; or one with proposals from
            a file, which Detectron2 unpickles, and with that runs what is in it.
    """
    refuse_densepose(cfg)
    if cfg.MODEL.LOAD_PROPOSALS:
        raise UserError(
            "MODEL.LOAD_PROPOSALS is True: Detectron2 reads proposals from pickles, which can run "
            "code, and no task here uses any; set it to False"
        )
    if len(cfg.DATASETS.TEST) != 1:
        raise UserError(
            f"DATASETS.TEST names {len(cfg.DATASETS.TEST)} sets; a run is recorded with the "
            "results of one"
        )
    found: list[Finding] = []
    there: list[tuple[str, str]] = []
    trained_on: set[str] = set()
    for split in ("TEST",) if eval_only else ("TRAIN", "TEST"):
        key, names = f"DATASETS.{split}", tuple(cfg.DATASETS[split])
        if not names:
            found.append(Refusal(key, str(names), f"it names no dataset; write {FORMS}"))
        for name in names:
            try:
                register_datasets((name,))
                dicts = load_dicts(name)
                if split == "TEST":
                    evaluator_types(name)
            except UserError as error:
                found.append(Refusal(key, str(names), str(error)))
                continue
            there.append((key, name))
            found += _check_files(key, names, name, dicts)
            images = {str(Path(d["file_name"]).absolute()) for d in dicts}
            if split == "TRAIN":
                trained_on |= images
            else:
                found += _check_apart(key, names, images, trained_on)
    return [*found, *_check_number_of_classes(cfg, there), *_check_class_names(cfg, there)]


def _check_files(
    key: str, names: tuple[str, ...], name: str, dicts: list[dict[str, Any]]
) -> Iterator[Finding]:
    absent = _missing_files(dicts)
    if not absent:
        return
    incomplete = sum(not absent.isdisjoint(_files(d)) for d in dicts)
    what = (
        f"dataset {name!r}: files of {incomplete} of its {len(dicts)} images are missing, first "
        f"{min(absent)}; put them there or remove their annotations"
    )
    if key == "DATASETS.TRAIN":
        yield Finding(key, str(names), f"{what}, or train without these images")
    else:  # the evaluation reads the annotations by itself, and would count these as not found
        yield Refusal(key, str(names), what)


def _check_apart(
    key: str, names: tuple[str, ...], images: set[str], trained_on: set[str]
) -> Iterator[Finding]:
    both = images & trained_on
    if both:
        yield Finding(
            key,
            str(names),
            f"{len(both)} of its {len(images)} images are in DATASETS.TRAIN, first {min(both)}; "
            "name a set that is not trained on",
        )


def _check_number_of_classes(cfg: Any, datasets: list[tuple[str, str]]) -> Iterator[Finding]:
    head, key = head_classes(cfg)
    numbers = {name: len(dataset_classes(cfg, name)) for _, name in datasets}
    numbers = {name: number for name, number in numbers.items() if number}
    for number in sorted(set(numbers.values()) - {head}):
        names = " and ".join(repr(name) for name, of_it in numbers.items() if of_it == number)
        what = f"there are {number} classes in {names}"
        alike = set(numbers.values()) == {number}
        fix = f"set {key} {number}" if alike else "let all their files name the same classes"
        if number < head:
            what += ", and the head's others are left out of the evaluation"
            yield Finding(key, str(head), f"{what}; {fix}")
        else:
            yield Refusal(key, str(head), f"{what}; {fix}")
    if not cfg.MODEL.KEYPOINT_ON:
        return
    head, key = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"
    for _, name in datasets:
        number = len(MetadataCatalog.get(name).get("keypoint_names", ()))
        if number != head:
            yield Refusal(key, str(head), f"{name!r} has {number} keypoints; set {key} {number}")


def _check_class_names(cfg: Any, datasets: list[tuple[str, str]]) -> Iterator[Finding]:
    """Where a dataset numbers its classes otherwise than the first one."""
    classes = [(key, name, dataset_classes(cfg, name)) for key, name in datasets]
    for key, name, theirs in classes[1:]:
        _, first, expected = classes[0]
        pairs = enumerate(zip(theirs, expected, strict=False))
        different = [(number, one, other) for number, (one, other) in pairs if one != other]
        if not different:
            continue
        number, one, other = different[0]
        # Detectron2 itself refuses to join training sets of other classes.
        kind = Refusal if key == "DATASETS.TRAIN" else Finding
        yield kind(
            key,
            str(tuple(cfg.DATASETS[key.rpartition(".")[2]])),
            f"class {number} of dataset {name!r} is {one!r}, and of {first!r} {other!r}; let their "
            "files name the same classes in the same order",
        )
