"""Detections of several finished runs in the same test images, a column a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from moco_d2.config.load import load_config
from moco_d2.engine.launch import choose_device
from moco_d2.errors import UserError
from moco_d2.files import atomic_write
from moco_d2.transfer.data.registered import load_dicts, register_datasets
from moco_d2.transfer.evaluation.tide import Detections, Objects, is_right
from moco_d2.transfer.inference.predict import Predictor
from moco_d2.untrusted_images import is_unreadable

CONFIG_FILE, WEIGHTS_FILE = "config.yaml", "model_final.pth"
_MOST_OBJECTS = 8  # in an image that is drawn: labels of more cover each other
_WIDTH = 6.7  # inches: a page of paper, so that letters are as large there as here
_LETTERS = 6  # points
_LONGEST_LABEL = 24
# Told apart by the line as well: right ones are solid, wrong ones dashed.
_OBJECT = {"edgecolor": "white", "linestyle": "-"}
_RIGHT = {"edgecolor": "#56B4E9", "linestyle": "-"}
_WRONG = {"edgecolor": "#E69F00", "linestyle": (0, (3, 2))}


def draw_side_by_side(runs: Mapping[str, Path], path: str | Path, *, images: int = 4) -> list[str]:
    """Draw test images with their annotated boxes, and each run's best detections in them.

    The images are spread evenly over those with 1 to 8 objects, in the order of the dataset. Of a
    run as many detections are drawn as objects are annotated: scores of different runs are too
    different for one threshold. A detection is right, its line solid, as in error_analysis.

    Args:
        runs: OUTPUT_DIR of a finished run by the name above its column; the same test set in all.
        path: of the picture, ``.png`` or ``.jpg``.
        images: number of rows, if there are so many.

    Returns:
        the names of the images, row by row.

    Raises:
        UserError: a run has no config.yaml or model_final.pth, its test set is not on this machine
            or another run has another, or it predicts no boxes.
    """
    cfgs = {name: _config(folder) for name, folder in runs.items()}
    test_sets = sorted({tuple(cfg.DATASETS.TEST) for cfg in cfgs.values()})
    if len(test_sets) != 1 or not test_sets[0]:
        raise UserError(
            "the runs have no test set in common "
            f"({'; '.join(', '.join(names) for names in test_sets)}); draw those of one task"
        )
    register_datasets(test_sets[0][:1])
    samples = _choose(load_dicts(test_sets[0][0]), images)
    metadata = MetadataCatalog.get(test_sets[0][0])
    classes = metadata.get("thing_classes") or []
    # One model in memory at a time.
    found = {name: _detect(cfg, samples) for name, cfg in cfgs.items()}
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
        for axis, of_run in zip(row[1:], found.values(), strict=True):
            right = is_right(of_run[i], truth)
            for label, score, box, good in zip(*of_run[i][1:], right, strict=True):
                _draw(axis, box, f"{_name(classes, label)} {score:.2f}", _RIGHT if good else _WRONG)
    with atomic_write(path) as temporary:
        quality = {} if temporary.suffix == ".png" else {"quality": 88, "subsampling": 0}
        figure.savefig(temporary, pil_kwargs=quality)
    return [Path(sample["file_name"]).name for sample in samples]


def _config(folder: Path) -> Any:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} has no {name}; give the folder in which tools/train_net.py left it"
            )
    cfg = load_config(folder / CONFIG_FILE, ["MODEL.WEIGHTS", str(folder / WEIGHTS_FILE)])
    choose_device(cfg)
    return cfg


def _choose(dicts: Sequence[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    fit = [d for d in dicts if 1 <= len(d.get("annotations", ())) <= _MOST_OBJECTS]
    if not fit:
        raise UserError(f"no test image has 1 to {_MOST_OBJECTS} annotated boxes; none is drawn")
    steps = np.linspace(0, len(fit) - 1, min(number, len(fit))).round().astype(int)
    return [fit[i] for i in steps]


def _detect(cfg: Any, samples: Sequence[dict[str, Any]]) -> list[Detections]:
    """The best detections in each image, as many as it has objects."""
    predictor = Predictor(cfg)
    found = []
    for sample in samples:
        output = predictor(_read(sample["file_name"], cfg.INPUT.FORMAT))
        if "instances" not in output:
            raise UserError("the runs predict regions, no boxes; none are drawn")
        instances = output["instances"].to("cpu")
        best = instances[instances.scores.argsort(descending=True)[: len(sample["annotations"])]]
        found.append(
            Detections(
                np.zeros(len(best), dtype=np.int64),
                best.pred_classes.numpy(),
                best.scores.numpy(),
                best.pred_boxes.tensor.numpy().astype(np.float64),
            )
        )
    return found


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
            f"cannot read the test image {file_name} ({error}); set DETECTRON2_DATASETS to where "
            "the datasets are"
        ) from error


def _draw(axis: Axes, box: np.ndarray, text: str, style: dict[str, Any]) -> None:
    x0, y0, x1, y1 = box
    edge = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, linewidth=1.4, **style)
    # Black behind the line: seen on any background.
    edge.set_path_effects(
        [patheffects.Stroke(linewidth=2.8, foreground="black"), patheffects.Normal()]
    )
    axis.add_patch(edge)
    width, height = axis.get_xlim()[1], axis.get_ylim()[0]
    at_right = (x0 + x1) / 2 > width / 2  # towards the middle, where there is room
    axis.text(
        min(x1, width) if at_right else max(x0, 0),
        max(y0, 0),
        text[:_LONGEST_LABEL],
        fontsize=_LETTERS,
        color="white",
        horizontalalignment="right" if at_right else "left",
        verticalalignment="bottom" if y0 > height / 10 else "top",
        bbox={"facecolor": "black", "alpha": 0.65, "pad": 0.8, "linewidth": 0},
        clip_on=True,
        parse_math=False,
    )


def _name(classes: Sequence[str], label: int) -> str:
    return str(classes[label]) if label < len(classes) else str(label)
