"""Whether a run's datasets are known, their files there, and their classes those of the head.

DATASETS.TRAIN and TEST take Detectron2's registered names, and paths
(data/custom_datasets.py).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from moco_d2.config.densepose import uses_densepose
from moco_d2.errors import UserError
from moco_d2.transfer.data.custom_datasets import FORMS
from moco_d2.transfer.data.registered import files_of, load_dicts, missing_files, register_datasets
from moco_d2.transfer.evaluation.build import evaluator_types
from moco_d2.transfer.evaluation.known_classes import dataset_classes, head_classes
from moco_d2.transfer.preflight.findings import Finding, Refusal


def check_datasets(cfg: Any, *, eval_only: bool = False) -> list[Finding]:
    """Findings where datasets are not there, or have other classes than the head.

    Args:
        cfg: the config as it will run.
        eval_only: only DATASETS.TEST is used.

    Returns:
        what is wrong; a Refusal for a run that cannot be made: a dense pose run, one with proposals
        from a file, which Detectron2 unpickles, or one with several test sets.
    """
    if uses_densepose(cfg):
        return [_sent_to_densepose(cfg)]
    found: list[Finding] = []
    if cfg.MODEL.LOAD_PROPOSALS:
        found.append(
            Refusal(
                "MODEL.LOAD_PROPOSALS",
                "True",
                "Detectron2 reads proposals from pickles, which can run code, and no task here "
                "uses any; set it to False",
            )
        )
    if len(cfg.DATASETS.TEST) > 1:
        found.append(
            Refusal(
                "DATASETS.TEST",
                str(tuple(cfg.DATASETS.TEST)),
                f"it names {len(cfg.DATASETS.TEST)} sets, and a run is recorded with the results "
                "of one; name one",
            )
        )
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
    absent = missing_files(dicts)
    if not absent:
        return
    incomplete = sum(not absent.isdisjoint(files_of(d)) for d in dicts)
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


def _sent_to_densepose(cfg: Any) -> Refusal:
    """Our command would train without the labels of dense pose."""
    return Refusal(
        "MODEL.DENSEPOSE_ON",
        str(cfg.MODEL.DENSEPOSE_ON),
        "dense pose runs are trained by the DensePose project itself: "
        "DETECTRON2_ENV_MODULE=moco_d2 python detectron2/projects/DensePose/train_net.py "
        f"--config-file configs/{cfg.MOCO.TASK}_moco.yaml MODEL.WEIGHTS {cfg.MODEL.WEIGHTS}",
    )
