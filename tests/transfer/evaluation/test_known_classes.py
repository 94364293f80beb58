import contextlib
import io

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image
from support.toy_data import SIDE

from moco_d2.config.load import load_config
from moco_d2.transfer.data.registered import register_datasets
from moco_d2.transfer.evaluation.build import build_evaluator


@pytest.fixture
def results(tmp_path):
    """Evaluation results of a config on its test set, of what is found in each image."""

    def results(config, overrides, inputs, outputs):
        cfg = load_config(config, [*overrides, "OUTPUT_DIR", str(tmp_path)])
        evaluator = build_evaluator(cfg, cfg.DATASETS.TEST[0])
        evaluator.reset()
        evaluator.process(inputs, outputs)
        with contextlib.redirect_stdout(io.StringIO()):
            return evaluator.evaluate()

    return results


def detections(boxes, classes):
    found = Instances((SIDE, SIDE))
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    found.pred_classes = torch.tensor(classes)
    found.scores = torch.full((len(classes),), 0.9)
    return {"instances": found}


@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_detections_of_a_class_that_the_dataset_lacks(kind, voc, coco, words, results):
    """COCO's evaluator stops at one."""
    data = {"voc": voc, "coco": coco}[kind]
    config = {"voc": "voc_C4_random.yaml", "coco": "coco_FPN_1x_random.yaml"}[kind]
    register_datasets(data["DATASETS.TEST"])
    dicts = DatasetCatalog.get(data["DATASETS.TEST"][0])
    objects = [(d, d["annotations"][0]) for d in dicts]
    inputs = [{"image_id": d["image_id"]} for d, _ in objects]
    boxes, labels = [], []
    for _, item in objects:
        x0, y0, x1, y1 = item["bbox"]
        boxes.append([x0, y0, x1, y1] if kind == "voc" else [x0, y0, x0 + x1, y0 + y1])
        labels.append(item["category_id"])
    own = [detections([box], [label]) for box, label in zip(boxes, labels, strict=True)]
    more = [detections([box, box], [label, 2]) for box, label in zip(boxes, labels, strict=True)]
    head = "MODEL.ROI_HEADS.NUM_CLASSES"
    of_two = results(config, [*words(data), head, "2"], inputs, own)
    of_three = results(config, [*words(data), head, "3"], inputs, more)
    assert of_three["bbox"] == pytest.approx(of_two["bbox"], nan_ok=True)
    assert of_two["bbox"]["AP50"] == pytest.approx(100)


def test_regions_of_a_class_that_the_dataset_lacks(tmp_path, results):
    labels = np.zeros((4, 6), np.uint8)
    labels[:, 3:] = 1
    Image.fromarray(labels).save(tmp_path / "labels.png")
    name = "two regions"
    sample = {"file_name": "a.jpg", "sem_seg_file_name": str(tmp_path / "labels.png")}
    DatasetCatalog.register(name, lambda: [sample])
    MetadataCatalog.get(name).set(
        stuff_classes=["left", "right"], ignore_label=255, evaluator_type="sem_seg"
    )
    scores = torch.zeros(3, 4, 6)
    scores[0, :, :3] = scores[1, :, 3:] = 1
    scores[2, :, ::2] = 2  # the best where it must not be asked
    found = results(
        "voc_semantic_random.yaml",
        ["DATASETS.TEST", f"('{name}',)"],
        [{"file_name": "a.jpg"}],
        [{"sem_seg": scores}],
    )
    assert found["sem_seg"]["mIoU"] == pytest.approx(100)
    DatasetCatalog.remove(name)
