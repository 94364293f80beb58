"""Detections of several runs side by side, one row an image."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, Visualizer
from PIL import Image

from moco_d2.transfer.datasets import register_datasets

_ENLARGE = 3  # the demo's images are small; text needs pixels


def draw_detections(runs: dict[str, Path], path: Path, *, images: int = 6) -> None:
    """Draw the first test images with their annotations and each run's best detections.

    As many detections as there are annotated objects: after so few steps, scores of different runs
    are too different for one threshold.

    Args:
        runs: OUTPUT_DIR of a finished run by the name above its column; the same test set in all.
        path: PNG to write.
        images: number of rows.
    """
    predictors = {name: _predictor(folder) for name, folder in runs.items()}
    test_set = next(iter(predictors.values())).cfg.DATASETS.TEST[0]
    register_datasets((test_set,))
    dicts = DatasetCatalog.get(test_set)[:images]
    metadata = MetadataCatalog.get(test_set)
    columns = ["annotated", *runs]
    figure, axes = plt.subplots(
        len(dicts), len(columns), figsize=(3 * len(columns), 2.4 * len(dicts)), squeeze=False
    )
    for row, sample in zip(axes, dicts, strict=True):
        pixels = np.asarray(Image.open(sample["file_name"]).convert("RGB"))
        drawn = [_visualizer(pixels, metadata).draw_dataset_dict(sample)]
        for predictor in predictors.values():
            found = predictor(pixels[:, :, ::-1])["instances"].to("cpu")
            drawn.append(
                _visualizer(pixels, metadata).draw_instance_predictions(
                    _best(found, len(sample["annotations"]))
                )
            )
        for axis, picture in zip(row, drawn, strict=True):
            axis.imshow(picture.get_image())
            axis.axis("off")
    for axis, name in zip(axes[0], columns, strict=True):
        axis.set_title(name)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _predictor(folder: Path) -> DefaultPredictor:
    cfg = get_cfg()
    cfg.merge_from_file(str(folder / "config.yaml"), allow_unsafe=False)
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    register_datasets(cfg.DATASETS.TEST)  # DefaultPredictor reads the metadata
    return DefaultPredictor(cfg)


def _visualizer(pixels: np.ndarray, metadata) -> Visualizer:
    return Visualizer(pixels, metadata, scale=_ENLARGE, instance_mode=ColorMode.IMAGE)


def _best(found: Instances, number: int) -> Instances:
    return found[found.scores.argsort(descending=True)[:number]]
