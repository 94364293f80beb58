"""A figure with the detections of several finished runs in the same test images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from moco_d2.config.load import load_config
from moco_d2.engine.device import choose_device
from moco_d2.errors import UserError
from moco_d2.files import atomic_write
from moco_d2.pixel_values import reading
from moco_d2.transfer.data.registered import load_dicts, register_datasets
from moco_d2.transfer.evaluation.tide import Detections, Objects, is_right
from moco_d2.transfer.inference.predict import Predictor
from moco_d2.untrusted_images import is_unreadable

CONFIG_FILE, WEIGHTS_FILE = "config.yaml", "model_final.pth"
_MAX_OBJECTS = 8  # maximum number of objects in an image; more labels would cover each other
_WIDTH = 6.7  # inches, the width of a printed page, so the font size is the same in print
_FONT_SIZE = 6  # points
_LONGEST_LABEL = 24
# Readable without color: boxes of right detections are solid, those of wrong ones dashed.
_OBJECT = {"edgecolor": "white", "linestyle": "-"}
_RIGHT = {"edgecolor": "#56B4E9", "linestyle": "-"}
_WRONG = {"edgecolor": "#E69F00", "linestyle": (0, (3, 2))}


def draw_side_by_side(runs: Mapping[str, Path], path: str | Path, *, images: int = 4) -> list[str]:
    """Draw test images with their annotated boxes in the first column and the best detections of
    each run in one more column.

    The images are spread evenly over all images with 1 to 8 objects, in the order of the dataset.
    For each run, as many detections are drawn as there are objects, because the scores of different
    runs need different thresholds. A solid line marks a right detection; see tide.is_right.

    Args:
        runs: OUTPUT_DIR of each finished run by the title of its column. All need the same test
            set.
        path: File of the picture, ``.png`` or ``.jpg``.
        images: Maximum number of rows.

    Returns:
        The names of the images, row by row.

    Raises:
        UserError: If a run has no config.yaml or model_final.pth or predicts no boxes, if runs have
            different test sets, or if the test set is not on this machine.
    """
    cfgs = {name: _config(folder) for name, folder in runs.items()}
    test_sets = sorted({tuple(cfg.DATASETS.TEST) for cfg in cfgs.values()})
    if len(test_sets) != 1 or not test_sets[0]:
        raise UserError(
            "the runs have no test set in common "
            f"({'; '.join(', '.join(names) for names in test_sets)}); choose runs of one task"
        )
    register_datasets(test_sets[0][:1])
    samples = _choose(load_dicts(test_sets[0][0]), images)
    metadata = MetadataCatalog.get(test_sets[0][0])
    classes = metadata.get("thing_classes") or []
    # Only one model is in memory at a time.
    detections = [_detect(cfg, samples) for cfg in cfgs.values()]
    with reading(next(iter(cfgs.values())).MOCO.INPUT.RANGE):
        pixels = [_read(sample["file_name"], "RGB") for sample in samples]
    columns = 1 + len(runs)
    ratios = [p.shape[0] / p.shape[1] for p in pixels]
    figure = Figure(
        figsize=(_WIDTH, _WIDTH / columns * sum(ratios) + 0.35),
        layout=ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, hspace=0.0, wspace=0.0),
        dpi=200,
    )
    axes = figure.subplots(len(samples), columns, squeeze=False, height_ratios=ratios)
    for axis, title in zip(axes[0], ["annotated", *runs], strict=True):
        axis.set_title(title[:_LONGEST_LABEL], fontsize=9, parse_math=False)
    for i, (row, sample) in enumerate(zip(axes, samples, strict=True)):
        for axis in row:
            axis.imshow(pixels[i])
            axis.axis("off")
        truth = _objects(sample)
        for label, box, ignored in zip(truth.classes, truth.boxes, truth.ignored, strict=True):
            _draw(row[0], box, _name(classes, label) + (" (ignored)" if ignored else ""), _OBJECT)
        for axis, run in zip(row[1:], detections, strict=True):
            right = is_right(run[i], truth)
            for label, score, box, good in zip(*run[i][1:], right, strict=True):
                _draw(axis, box, f"{_name(classes, label)} {score:.2f}", _RIGHT if good else _WRONG)
    with atomic_write(path) as temporary:
        quality = {} if temporary.suffix == ".png" else {"quality": 88, "subsampling": 0}
        figure.savefig(temporary, pil_kwargs=quality)
    return [Path(sample["file_name"]).name for sample in samples]


def _config(folder: Path) -> Any:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} has no {name}; use the OUTPUT_DIR of a finished tools/train_net.py run"
            )
    cfg = load_config(folder / CONFIG_FILE, ["MODEL.WEIGHTS", str(folder / WEIGHTS_FILE)])
    choose_device(cfg)
    return cfg


def _choose(dicts: Sequence[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    suitable = [d for d in dicts if 1 <= len(d.get("annotations", ())) <= _MAX_OBJECTS]
    if not suitable:
        raise UserError(f"no test image has 1 to {_MAX_OBJECTS} annotated boxes; none is drawn")
    steps = np.linspace(0, len(suitable) - 1, min(number, len(suitable))).round().astype(int)
    return [suitable[i] for i in steps]


def _detect(cfg: CfgNode, samples: Sequence[dict[str, Any]]) -> list[Detections]:
    """Return the best detections in each image, as many as it has objects."""
    predictor = Predictor(cfg)
    detections = []
    for sample in samples:
        with reading(cfg.MOCO.INPUT.RANGE):
            output = predictor(_read(sample["file_name"], cfg.INPUT.FORMAT))
        if "instances" not in output:
            raise UserError("the runs predict regions and no boxes; choose runs of a box detector")
        instances = output["instances"].to("cpu")
        best = instances[instances.scores.argsort(descending=True)[: len(sample["annotations"])]]
        detections.append(
            Detections(
                np.zeros(len(best), dtype=np.int64),
                best.pred_classes.numpy(),
                best.scores.numpy(),
                best.pred_boxes.tensor.numpy().astype(np.float64),
            )
        )
    return detections


def _objects(sample: dict[str, Any]) -> Objects:
    annotations = sample["annotations"]
    crowd = np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool)
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    return Objects(
        np.zeros(len(annotations), dtype=np.int64),
        np.array([a["category_id"] for a in annotations], dtype=np.int64),
        np.array(boxes, dtype=np.float64),
        crowd,
        crowd,
    )


def _read(file_name: str, image_format: str) -> np.ndarray:
    try:
        return read_image(file_name, format=image_format)
    except Exception as error:
        if not is_unreadable(error):
            raise
        raise UserError(
            f"cannot read the test image {file_name} ({error}); set DETECTRON2_DATASETS to the "
            "folder of the datasets"
        ) from error


def _draw(axis: Axes, box: np.ndarray, text: str, style: dict[str, Any]) -> None:
    x0, y0, x1, y1 = box
    edge = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, linewidth=1.4, **style)
    # A black outline makes the line visible on any background.
    edge.set_path_effects(
        [patheffects.Stroke(linewidth=2.8, foreground="black"), patheffects.Normal()]
    )
    axis.add_patch(edge)
    width, height = axis.get_xlim()[1], axis.get_ylim()[0]
    at_right = (x0 + x1) / 2 > width / 2  # the label extends toward the middle of the image
    axis.text(
        min(x1, width) if at_right else max(x0, 0),
        max(y0, 0),
        text[:_LONGEST_LABEL],
        fontsize=_FONT_SIZE,
        color="white",
        horizontalalignment="right" if at_right else "left",
        verticalalignment="bottom" if y0 > height / 10 else "top",
        bbox={"facecolor": "black", "alpha": 0.65, "pad": 0.8, "linewidth": 0},
        clip_on=True,
        parse_math=False,
    )


def _name(classes: Sequence[str], label: int) -> str:
    return str(classes[label]) if label < len(classes) else str(label)
