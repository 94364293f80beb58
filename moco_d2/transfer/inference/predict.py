"""Drawing of a finished detector's predictions in images, for tools/train_net.py --predict."""

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import convert_image_to_rgb, read_image
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from detectron2.utils.visualizer import ColorMode, Visualizer
from PIL import Image

from moco_d2.engine.job import load_job
from moco_d2.errors import UserError
from moco_d2.files import atomic_write
from moco_d2.pixel_values import check_range, reading
from moco_d2.transfer.data.registered import register_datasets
from moco_d2.transfer.evaluation.known_classes import dataset_classes, head_classes
from moco_d2.transfer.inference.detector import load_detector
from moco_d2.transfer.preflight.trained_classes import check_trained_classes
from moco_d2.untrusted_images import is_unreadable

logger = logging.getLogger(__name__)

PREDICTIONS_FOLDER = "predictions"


def main(args: argparse.Namespace) -> None:
    """Draw the detections of MODEL.WEIGHTS in ``args.predict``; see tools/train_net.py --help."""
    if not comm.is_main_process():
        return
    images, overrides = split_words(args.predict)
    cfg = load_job(args, overrides)
    setup_logger(name="moco_d2", abbrev_name="moco_d2")
    draw_predictions(cfg, images)


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the words after --predict into image files and the ``KEY VALUE`` overrides after them.

    The first override is the first word that begins with a section of the config, as in
    MODEL.WEIGHTS, and is not a file.
    """
    sections = set(get_cfg())
    for i, word in enumerate(words):
        if word.split(".")[0] in sections and not Path(word).exists():
            return list(words[:i]), list(words[i:])
    return list(words), []


def draw_predictions(cfg: CfgNode, images: Sequence[str | Path]) -> list[Path]:
    """Write each image with its detections to OUTPUT_DIR/predictions/<name>.png, and log how many
    detections it has.

    Detections with a score of MOCO.DRAW_SCORE or more are drawn, with class names if DATASETS.TEST
    is on this machine. Semantic segmentation is drawn as colored regions.

    Args:
        cfg: The config of a finished run; MODEL.WEIGHTS is its model_final.pth.
        images: Image files in one of untrusted_images.FORMATS.

    Returns:
        The new files, in the order of `images`.

    Raises:
        UserError: If there is no image, if one cannot be read or needs MOCO.INPUT.RANGE, or as in
            load_detector.
    """
    if not images:
        raise UserError("--predict names no image; write --predict IMAGE [IMAGE ...] KEY VALUE ...")
    missing = next((image for image in images if not Path(image).is_file()), None)
    if missing is not None:
        if Path(missing).is_dir():
            raise UserError(
                f"--predict: {missing} is a folder; name its images, as {missing}/*.jpg"
            )
        raise UserError(f"--predict: image {missing} does not exist")
    files = [str(image) for image in images]
    problem = check_range(files, cfg.MOCO.INPUT.RANGE, dataset="--predict")
    if problem:
        raise UserError(problem)
    predictor = Predictor(cfg)
    metadata = _metadata(cfg)
    name_of = _distinct_names(Path(cfg.OUTPUT_DIR) / PREDICTIONS_FOLDER, images)
    written, scores = [], []
    for image in images:
        with reading(cfg.MOCO.INPUT.RANGE):
            pixels = _read(image, cfg.INPUT.FORMAT)
        output = predictor(pixels)
        drawn = draw(
            convert_image_to_rgb(pixels, cfg.INPUT.FORMAT), output, metadata, cfg.MOCO.DRAW_SCORE
        )
        path = name_of(Path(image))
        with atomic_write(path) as temporary:
            Image.fromarray(drawn).save(temporary)
        written.append(path)
        if "instances" in output:
            scores.append(output["instances"].scores.tolist())
            logger.info("%s: %s; drawn in %s", image, _counted(scores[-1], cfg), path)
        else:
            logger.info("%s: drawn in %s", image, path)
    if scores:
        logger.info("%s", _summary(scores, cfg))
    return written


def _counted(scores: Sequence[float], cfg: CfgNode) -> str:
    """Return a clause about the detections of an image with these scores."""
    drawn = sum(score >= cfg.MOCO.DRAW_SCORE for score in scores)
    text = f"{drawn} detection{'s' * (drawn != 1)} with a score of {cfg.MOCO.DRAW_SCORE:g} or more"
    if drawn < len(scores):
        best = "" if drawn else f", the best {max(scores):.2f}"
        text += f", {len(scores) - drawn} below{best}"
    return text


def _summary(scores: Sequence[Sequence[float]], cfg: CfgNode) -> str:
    """Return sentences about the detections of all images."""
    every = [score for of_image in scores for score in of_image]
    text = f"{len(scores)} image{'s' * (len(scores) != 1)}: {_counted(every, cfg)}"
    least = cfg.MOCO.DRAW_SCORE
    empty = sum(all(score < least for score in of_image) for of_image in scores)
    if not empty:
        return text
    lower = "; lower MOCO.DRAW_SCORE to draw more" if any(s < least for s in every) else ""
    return f"{text}. {empty} of the images {'has' if empty == 1 else 'have'} none{lower}"


class Predictor:
    """A finished detector that processes one image at a time.

    Unlike Detectron2's DefaultPredictor, it refuses incomplete weights, and expects images in
    INPUT.FORMAT.

    Examples:
    ::
        predictor = Predictor(cfg)
        predictor(read_image("street.jpg", cfg.INPUT.FORMAT))["instances"].pred_boxes
    """

    def __init__(self, cfg: CfgNode):
        self._model = load_detector(cfg)
        # The same resizing as in evaluation; with MIN_SIZE_TEST 0, the image keeps its size.
        self._resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)

    @torch.no_grad()
    def __call__(self, pixels: np.ndarray) -> dict[str, Any]:
        """
        Args:
            pixels: Image of (H, W, 3) uint8 in INPUT.FORMAT.

        Returns:
            The model's output, "instances" or "sem_seg", at the size of the image.
        """
        height, width = pixels.shape[:2]
        resized = self._resize.get_transform(pixels).apply_image(pixels)
        tensor = torch.as_tensor(resized.astype(np.float32).transpose(2, 0, 1))
        return self._model([{"image": tensor, "height": height, "width": width}])[0]


def draw(
    pixels: np.ndarray, output: dict[str, Any], metadata: Metadata, min_score: float
) -> np.ndarray:
    """Draw the output of a model in an image.

    Args:
        pixels: Image of (H, W, 3) uint8, RGB.
        output: Output of a Detectron2 model for this image.
        metadata: Metadata with the class names.
        min_score: Minimum score of a detection that is drawn, in [0, 1].

    Returns:
        Image of (H, W, 3) uint8, RGB.
    """
    canvas = Visualizer(pixels, metadata, instance_mode=ColorMode.IMAGE)
    drawn = canvas.get_output()
    if "sem_seg" in output:
        drawn = canvas.draw_sem_seg(output["sem_seg"].argmax(dim=0).cpu())
    if "instances" in output:
        instances = output["instances"].to("cpu")
        drawn = canvas.draw_instance_predictions(instances[instances.scores >= min_score])
    return drawn.get_image()


def _read(image: str | Path, image_format: str) -> np.ndarray:
    try:
        return read_image(str(image), format=image_format)
    except Exception as error:
        if not is_unreadable(error):
            raise
        raise UserError(f"--predict: image {image} cannot be read ({error})") from error


def _metadata(cfg: CfgNode) -> Metadata:
    """Return the class names of DATASETS.TEST, or numbers if it is not on this machine or its
    classes are not those of the head.
    """
    names = tuple(cfg.DATASETS.TEST[:1])
    try:
        register_datasets(names)
    except UserError as error:
        logger.warning("classes are drawn as numbers: %s", error)
        return _numbered(cfg)
    if not names:
        return _numbered(cfg)
    (head, _), classes = head_classes(cfg), dataset_classes(cfg, *names)
    problems = [finding.message for finding in check_trained_classes(cfg)]
    if len(classes) != head:
        problems = [f"{names[0]!r} has {len(classes)} classes and the head {head}"]
    if problems:
        logger.warning("classes are drawn as numbers: %s", problems[0])
        return _numbered(cfg)
    return MetadataCatalog.get(*names)


def _numbered(cfg: CfgNode) -> Metadata:
    """Return numbers as stuff classes. Only these need names; detections are drawn without."""
    metadata = Metadata()
    metadata.set(stuff_classes=[str(i) for i in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)])
    return metadata


def _distinct_names(folder: Path, images: Sequence[str | Path]) -> Callable[[Path], Path]:
    """Return a function that gives each image a file ``name.png`` in `folder`. A number is added if
    images of several folders have the same name, or one of `images` is this file.
    """
    inputs = {Path(image).resolve() for image in images}
    used = {path.stem for path in inputs if path == (folder / f"{path.stem}.png").resolve()}

    def name_of(image: Path) -> Path:
        name, n = image.stem, 1
        while name in used:
            n += 1
            name = f"{image.stem}_{n}"
        used.add(name)
        return folder / f"{name}.png"

    return name_of
