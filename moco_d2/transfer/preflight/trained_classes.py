"""Checks that an evaluation numbers the classes as the run that trained the detector."""

from collections.abc import Iterator
from pathlib import Path

from detectron2.config import CfgNode

from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.transfer.data.registered import register_datasets
from moco_d2.transfer.evaluation.known_classes import dataset_classes, first_difference
from moco_d2.transfer.preflight.findings import Finding

CONFIG_FILE = "config.yaml"


def check_trained_classes(cfg: CfgNode) -> Iterator[Finding]:
    """Yield a Finding if a class of DATASETS.TEST has another number than in the training.

    The training is that of the config.yaml beside MODEL.WEIGHTS. Nothing is known, and nothing is
    found, if there is none, or its datasets are not on this machine.

    Args:
        cfg: The config of the evaluation, whose test set is registered.
    """
    trained = _trained_classes(cfg)
    if trained is None:
        return
    name, expected = trained
    for test_set in cfg.DATASETS.TEST:
        classes = dataset_classes(cfg, test_set)
        different = first_difference(classes, expected)
        if different:
            number, one, other = different
            yield Finding(
                "DATASETS.TEST",
                str(tuple(cfg.DATASETS.TEST)),
                f"class {number} is {one!a} in dataset {test_set!r}, but the detector "
                f"{cfg.MODEL.WEIGHTS} learned it as {other!a} of {name!r}; let the files of both "
                "name the same classes in the same order",
            )


def _trained_classes(cfg: CfgNode) -> tuple[str, list[str]] | None:
    """Return a dataset of the run and its classes; None if they are not known."""
    file = Path(cfg.MODEL.WEIGHTS).parent / CONFIG_FILE
    if not file.is_file():
        return None
    try:
        datasets = load_config(file).DATASETS
    except UserError:  # the config of another program
        return None
    for name in (*datasets.TRAIN, *datasets.TEST):
        try:
            register_datasets((name,))
        except UserError:  # not on this machine
            continue
        if classes := dataset_classes(cfg, name):
            return name, classes
    return None
