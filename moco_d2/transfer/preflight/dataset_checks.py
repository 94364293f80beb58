"""Checks that the datasets of a run are known, their files exist, and their classes match the head.

DATASETS.TRAIN and TEST accept Detectron2's registered names and paths (data/custom_datasets.py).
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from moco_d2.config.densepose import uses_densepose
from moco_d2.errors import UserError
from moco_d2.pixel_values import check_range
from moco_d2.records.names import appearance
from moco_d2.transfer.data.custom_datasets import FORMS, VOC_CLASSES_FILE, mirrored_name
from moco_d2.transfer.data.registered import files_of, load_dicts, missing_files, register_datasets
from moco_d2.transfer.evaluation.build import evaluator_types
from moco_d2.transfer.evaluation.known_classes import (
    dataset_classes,
    first_difference,
    head_classes,
)
from moco_d2.transfer.preflight.findings import Finding, Refusal
from moco_d2.transfer.preflight.image_headers import check_images
from moco_d2.transfer.preflight.mask_and_keypoint_checks import check_masks_and_keypoints
from moco_d2.transfer.preflight.object_checks import check_objects
from moco_d2.transfer.preflight.semantic_labels import check_semantic_labels
from moco_d2.transfer.preflight.voc_checks import check_voc


def check_datasets(cfg: CfgNode, *, eval_only: bool = False) -> list[Finding]:
    """Return a finding for every dataset that is missing or has other classes than the head.

    Args:
        cfg: The config as it will run.
        eval_only: Whether only DATASETS.TEST is used.

    Returns:
        The findings; among them a Refusal for a dense pose run, for proposals from a file (which
        Detectron2 unpickles) and for a test set that is named twice.
    """
    if uses_densepose(cfg):
        return [_densepose_refusal(cfg)]
    findings: list[Finding] = []
    if cfg.MODEL.LOAD_PROPOSALS:
        findings.append(
            Refusal(
                "MODEL.LOAD_PROPOSALS",
                "True",
                "Detectron2 reads proposals from pickles, which can run code, and no task of the "
                "package uses them; set it to False",
            )
        )
    if len(set(cfg.DATASETS.TEST)) < len(cfg.DATASETS.TEST):
        findings.append(
            Refusal(
                "DATASETS.TEST",
                str(tuple(cfg.DATASETS.TEST)),
                "it names a set twice, but a record has one result of a set; name each once",
            )
        )
    loaded: list[tuple[str, str]] = []
    trained_on: set[tuple[int, int] | str] = set()
    for split in ("TEST",) if eval_only else ("TRAIN", "TEST"):
        key, names = f"DATASETS.{split}", tuple(cfg.DATASETS[split])
        if not names and (split == "TRAIN" or eval_only):
            findings.append(Refusal(key, str(names), f"it names no dataset; write {FORMS}"))
        for name in names:
            try:
                register_datasets((name,))
                dicts = load_dicts(name)
                if split == "TEST":
                    evaluator_types(name)
                check_images(name, dicts)
            except UserError as error:
                findings.append(Refusal(key, str(names), str(error)))
                continue
            loaded.append((key, name))
            findings += _check_files(key, names, name, dicts)
            findings += _check_range(cfg, name, dicts)
            findings += check_objects(key, names, name, dicts)
            findings += check_masks_and_keypoints(cfg, split, name, dicts)
            findings += check_semantic_labels(cfg, split, name, dicts)
            findings += check_voc(key, names, name, dicts)
            files = {_identity(d["file_name"]): d["file_name"] for d in dicts}
            findings += _check_files_once(key, names, name, files, dicts)
            if split == "TRAIN":
                findings += _check_trained_once(key, names, name, files, trained_on)
                trained_on |= files.keys()
            else:
                findings += _check_apart(key, names, files, trained_on)
    return [*findings, *_check_number_of_classes(cfg, loaded), *_check_class_names(cfg, loaded)]


def _check_files(
    key: str, names: tuple[str, ...], name: str, dicts: list[dict[str, Any]]
) -> Iterator[Finding]:
    absent = missing_files(dicts)
    if not absent:
        return
    incomplete = sum(not absent.isdisjoint(files_of(d)) for d in dicts)
    message = (
        f"dataset {name!r}: files of {incomplete} of its {len(dicts)} images are missing, first "
        f"{min(absent)}{_similar(min(absent))}; add the files or remove their annotations"
    )
    rest = (d for d in dicts if absent.isdisjoint(files_of(d)))
    if key == "DATASETS.TRAIN" and any(map(_has_labels, rest)):
        yield Finding(key, str(names), f"{message}, or train without these images")
    else:  # without them nothing is trained on; the evaluators would count the objects as missed
        yield Refusal(key, str(names), message)


def _has_labels(sample: dict[str, Any]) -> bool:
    return "annotations" not in sample or any(
        annotation.get("iscrowd", 0) == 0 for annotation in sample["annotations"]
    )


def _similar(file: str) -> str:
    """Return a hint at the file that a missing file's name means, or ""."""
    forward = file.replace("\\", "/")
    if forward != file and Path(forward).is_file():
        return f" (there is {forward}: write / instead of \\)"
    try:
        others = [path.name for path in Path(file).parent.iterdir()]
    except OSError:
        return ""
    name = Path(file).name.casefold()
    other = next((other for other in sorted(others) if other.casefold() == name), "")
    return f" (there is {other}, which differs in upper and lower case)" if other else ""


def _check_files_once(
    key: str,
    names: tuple[str, ...],
    name: str,
    files: dict[tuple[int, int] | str, str],
    dicts: list[dict[str, Any]],
) -> Iterator[Finding]:
    """Check that each image of a detection set is one file; VOC's lists are checked before."""
    kind = MetadataCatalog.get(name).get("evaluator_type")
    if len(files) == len(dicts) or kind == "pascal_voc" or "annotations" not in dicts[0]:
        return
    counts = Counter(d["file_name"] for d in dicts)
    # `files` has the last of the names of a file.
    last = set(files.values())
    first = next(f for f, count in counts.items() if count > 1 or f not in last)
    yield Finding(
        key,
        str(names),
        f"dataset {name!r}: {len(dicts) - len(files)} of its {len(dicts)} images are the file of "
        f"another of its images, first {first}; list each file once, with all its objects",
    )


def _check_trained_once(
    key: str,
    names: tuple[str, ...],
    name: str,
    files: dict[tuple[int, int] | str, str],
    trained_on: set[tuple[int, int] | str],
) -> Iterator[Finding]:
    both = files.keys() & trained_on
    if both:
        yield Finding(
            key,
            str(names),
            f"{len(both)} of the {len(files)} images of dataset {name!r} are in a set before it, "
            f"first {min(files[image] for image in both)}; name each image in one set",
        )


def _check_range(cfg: CfgNode, name: str, dicts: list[dict[str, Any]]) -> Iterator[Finding]:
    value_range = cfg.MOCO.INPUT.RANGE
    files = [d["file_name"] for d in dicts]
    problem = check_range(files, value_range, dataset=f"dataset {name!r}")
    if problem:
        yield Refusal("MOCO.INPUT.RANGE", str(tuple(value_range)), problem)


def _identity(file: str) -> tuple[int, int] | str:
    """Return the same value for all names of a file: links have other names."""
    try:
        status = Path(file).stat()
    except OSError:
        return str(Path(file).absolute())
    return status.st_dev, status.st_ino


def _check_apart(
    key: str,
    names: tuple[str, ...],
    files: dict[tuple[int, int] | str, str],
    trained_on: set[tuple[int, int] | str],
) -> Iterator[Finding]:
    images = files.keys()
    both = images & trained_on
    if both:
        yield Finding(
            key,
            str(names),
            f"{len(both)} of its {len(images)} images are in DATASETS.TRAIN, first "
            f"{min(str(Path(files[image]).absolute()) for image in both)}; name a set that is not "
            "trained on",
        )


def _check_number_of_classes(cfg: CfgNode, datasets: list[tuple[str, str]]) -> Iterator[Finding]:
    head, key = head_classes(cfg)
    numbers = {name: len(dataset_classes(cfg, name)) for _, name in datasets}
    numbers = {name: number for name, number in numbers.items() if number}
    for number in sorted(set(numbers.values()) - {head}):
        names = " and ".join(repr(name) for name, classes in numbers.items() if classes == number)
        problem = f"there are {number} classes in {names}"
        equal = set(numbers.values()) == {number}
        all_files = f"let all their files name the same classes{_where(*numbers)}"
        fix = f"set {key} {number}" if equal else all_files
        if number < head:
            problem += ", and the evaluation ignores the head's other classes"
            yield Finding(key, str(head), f"{problem}; {fix}")
        else:
            yield Refusal(key, str(head), f"{problem}; {fix}")
    if not cfg.MODEL.KEYPOINT_ON:
        return
    head, key = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"
    yield from _check_keypoint_names(datasets)
    for _, name in datasets:
        number = len(MetadataCatalog.get(name).get("keypoint_names", ()))
        if number != head:
            yield Refusal(key, str(head), f"{name!r} has {number} keypoints; set {key} {number}")


def _check_keypoint_names(datasets: list[tuple[str, str]]) -> Iterator[Finding]:
    names = [list(MetadataCatalog.get(name).get("keypoint_names", ())) for _, name in datasets]
    for (key, name), points in zip(datasets, names, strict=True):
        different = first_difference(points, names[0])
        if different:
            number, one, other = different
            yield Refusal(
                key,
                repr(name),
                f"keypoint {number} is {one!r}, but {other!r} in {datasets[0][1]!r}; let their "
                "files name the same keypoints in the same order",
            )
        paired = {
            point
            for pair in MetadataCatalog.get(name).get("keypoint_flip_map", ())
            for point in pair
        }
        alone = [point for point in points if point not in paired and mirrored_name(point)]
        if alone and key == "DATASETS.TRAIN":
            yield Finding(
                key,
                repr(name),
                f"keypoint {alone[0]!r} has no partner {mirrored_name(alone[0])!r}, with which it "
                "is exchanged in a mirrored image; rename the keypoint of the other side",
            )


def _check_class_names(cfg: CfgNode, datasets: list[tuple[str, str]]) -> Iterator[Finding]:
    """Yield a finding for each dataset that numbers its classes differently from the first one."""
    classes = [(key, name, dataset_classes(cfg, name)) for key, name in datasets]
    for key, name, class_names in classes[1:]:
        _, first, expected = classes[0]
        different = first_difference(class_names, expected)
        if different is None:
            continue
        number, *names = different
        # Names that look alike are shown by their codes.
        alike = appearance(names[0]) == appearance(names[1])
        one, other = map(ascii if alike else repr, names)
        # Detectron2 itself refuses to join training sets of other classes.
        kind = Refusal if key == "DATASETS.TRAIN" else Finding
        yield kind(
            key,
            str(tuple(cfg.DATASETS[key.rpartition(".")[2]])),
            f"class {number} is {one} in dataset {name!r} and {other} in {first!r}; let their "
            f"files name the same classes in the same order{_where(name, first)}",
        )


def _where(*names: str) -> str:
    """Return where a VOC folder names its classes, if one of the datasets is such a folder."""
    is_voc = any(name.startswith("voc:") for name in names)
    return f" (in {VOC_CLASSES_FILE} of a VOC folder)" if is_voc else ""


def _densepose_refusal(cfg: CfgNode) -> Refusal:
    """Refuse dense pose, because this package would train without its labels."""
    return Refusal(
        "MODEL.DENSEPOSE_ON",
        str(cfg.MODEL.DENSEPOSE_ON),
        "dense pose runs are trained by the DensePose project itself: "
        "DETECTRON2_ENV_MODULE=moco_d2 python detectron2/projects/DensePose/train_net.py "
        f"--config-file configs/{cfg.MOCO.TASK}_moco.yaml MODEL.WEIGHTS {cfg.MODEL.WEIGHTS}",
    )
