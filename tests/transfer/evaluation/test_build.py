"""Which evaluator a dataset gets, and that each gives the numbers it should."""

import contextlib
import copy
import io
import json
import sys

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators, LVISEvaluator
from detectron2.structures import Instances
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support.transfer.coco_cases import KEYPOINTS, as_instances, make_case, write_lvis
from support.transfer.voc_cases import make_case as make_voc_case

from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.plugin import compat, evaluators
from moco_d2.transfer.evaluation.build import build_evaluator
from moco_d2.transfer.evaluation.semantic import MeanIoUEvaluator
from moco_d2.transfer.evaluation.voc_evaluation import VOCEvaluator

TASKS = ("bbox", "segm", "keypoints")
needs_fast_eval = pytest.mark.skipif(
    compat.has_compiled_operators(), reason="this Detectron2 has a COCOeval of its own"
)


def _evaluate(evaluator, truth, found, keypoints=False):
    evaluator.reset()
    for image in truth["images"]:
        instances = as_instances(found, image["id"], keypoints)
        evaluator.process([{"image_id": image["id"]}], [{"instances": instances}])
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluator.evaluate()


@pytest.fixture
def cfg(tmp_path):
    one_class = ["MODEL.ROI_HEADS.NUM_CLASSES", "1"]  # never more than the dataset
    return load_config("coco_FPN_1x_random.yaml", ["OUTPUT_DIR", str(tmp_path / "out"), *one_class])


def _stats(evaluator, truth, found, task):
    found = copy.deepcopy(found)
    for item in found:  # as Detectron2 does: the area is that of the mask
        if task != "bbox":
            del item["bbox"]
        if task == "keypoints":
            del item["segmentation"]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        run = evaluator(coco, coco.loadRes(found), task)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats


@pytest.mark.parametrize("name", ["hotcoco", "faster-coco-eval"])
@pytest.mark.parametrize(("task", "statistics"), zip(TASKS, (12, 12, 10), strict=True))
def test_all_statistics_are_those_of_pycocotools(name, task, statistics):
    for seed in range(6):
        truth, found = make_case(seed, images=20, objects=8)
        theirs = _stats(COCOeval, truth, found, task)
        ours = _stats(evaluators.coco_evaluators()[name], truth, found, task)
        assert len(theirs) == statistics
        # A mean of 1,010 precisions, summed in another order.
        np.testing.assert_allclose(ours[:statistics], theirs, rtol=0, atol=1e-15)
        assert np.all(theirs[:3] > 0)


@needs_fast_eval
def test_detectron2_evaluates_with_the_fastest_evaluator(monkeypatch):
    from detectron2.evaluation import coco_evaluation

    monkeypatch.setattr(evaluators, "fastest_coco_eval", lambda *arguments: arguments)
    assert coco_evaluation.COCOeval_opt("truth", "found", "bbox") == ("truth", "found", "bbox")
    assert list(evaluators.coco_evaluators()) == ["hotcoco", "faster-coco-eval", "pycocotools"]


@pytest.fixture
def without(monkeypatch):
    """Make packages look as if they were not installed."""

    def remove(*modules):
        for module in modules:
            monkeypatch.setitem(sys.modules, module, None)
        evaluators.coco_evaluators.cache_clear()

    yield remove
    evaluators.coco_evaluators.cache_clear()


def test_what_is_not_installed_is_no_evaluator(without):
    without("hotcoco")
    assert list(evaluators.coco_evaluators()) == ["faster-coco-eval", "pycocotools"]
    without("faster_coco_eval.core.faster_eval_api")
    assert list(evaluators.coco_evaluators()) == ["pycocotools"]


def test_the_next_evaluator_takes_what_one_refuses(monkeypatch, caplog):
    def refusing(*_):
        raise ValueError("annotations[3]: no")

    changed = evaluators.coco_evaluators() | {"hotcoco": refusing}
    monkeypatch.setattr(evaluators, "coco_evaluators", lambda: changed)
    monkeypatch.setattr(evaluators, "USED_EVALUATORS", set())
    truth, found = make_case(1, images=5)
    expected = _stats(COCOeval, truth, found, "bbox")
    found_stats = _stats(evaluators.fastest_coco_eval, truth, found, "bbox")
    np.testing.assert_allclose(found_stats[:12], expected, rtol=0, atol=1e-15)
    assert "faster-coco-eval" in evaluators.USED_EVALUATORS
    assert "annotations[3]: no" in caplog.text


def _register_coco(tmp_path, truth):
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(truth))
    name = f"coco_case_{tmp_path}"
    register_coco_instances(name, {}, str(file), str(tmp_path))
    MetadataCatalog.get(name).set(thing_classes=[c["name"] for c in truth["categories"]])
    MetadataCatalog.get(name).set(
        thing_dataset_id_to_contiguous_id={c["id"]: c["id"] - 1 for c in truth["categories"]}
    )
    return name


@pytest.mark.parametrize("keypoints", [False, True])
def test_coco_results_are_those_of_the_official_implementation(tmp_path, cfg, keypoints):
    truth, found = make_case(3)
    name = _register_coco(tmp_path, truth)
    sigmas = np.linspace(0.02, 0.1, KEYPOINTS).round(3).tolist()
    cfg.TEST.KEYPOINT_OKS_SIGMAS = sigmas
    ours = _evaluate(build_evaluator(cfg, name), truth, found, keypoints)
    official = COCOEvaluator(
        name, output_dir=str(tmp_path), use_fast_impl=False, kpt_oks_sigmas=sigmas
    )
    theirs = _evaluate(official, truth, found, keypoints)
    assert set(ours) == ({"bbox", "keypoints"} if keypoints else {"bbox", "segm"})
    for task, metrics in theirs.items():
        assert ours[task] == pytest.approx(metrics, abs=1e-12, nan_ok=True)
        assert metrics["AP"] > 0
    assert (tmp_path / "out/inference/coco_instances_results.json").is_file()


def test_keypoint_sigmas_of_the_config_count(tmp_path, cfg):
    truth, found = make_case(3)
    name = _register_coco(tmp_path, truth)

    def oks_ap(sigma):
        cfg.TEST.KEYPOINT_OKS_SIGMAS = [sigma] * KEYPOINTS
        return _evaluate(build_evaluator(cfg, name), truth, found, True)["keypoints"]["AP"]

    assert oks_ap(0.01) < oks_ap(0.2)


def test_lvis_on_current_numpy_agrees_with_another_implementation(tmp_path, cfg):
    import faster_coco_eval

    truth, found = make_case(5, images=30, classes=6)
    file = tmp_path / "lvis.json"
    write_lvis(file, truth, np.random.default_rng(0))
    name = f"lvis_case_{tmp_path}"
    MetadataCatalog.get(name).set(
        json_file=str(file),
        evaluator_type="lvis",
        thing_classes=[c["name"] for c in truth["categories"]],
    )
    evaluator = build_evaluator(cfg, name)
    assert isinstance(evaluator, LVISEvaluator)
    results = _evaluate(evaluator, truth, found)
    assert set(results) == {"bbox", "segm"}
    content = json.loads(file.read_text())
    known = {image["id"]: set(image["neg_category_ids"]) for image in content["images"]}
    for annotation in content["annotations"]:
        known[annotation["image_id"]].add(annotation["category_id"])
    for task, metrics in results.items():
        detections = json.loads(
            (tmp_path / "out/inference/lvis_instances_results.json").read_text()
        )
        if task == "segm":
            for item in detections:
                del item["bbox"]
        # faster-coco-eval leaves out what an image does not speak of, but stumbles over its masks.
        counted = [d for d in detections if d["category_id"] in known[d["image_id"]]]
        assert len(counted) < len(detections)
        with contextlib.redirect_stdout(io.StringIO()):
            coco = faster_coco_eval.COCO(copy.deepcopy(content))
            other = faster_coco_eval.COCOeval_faster(
                coco, coco.loadRes(counted), task, lvis_style=True
            )
            other.params.maxDets = [300]
            other.run()
        reference = other.stats_as_dict
        names = {"AP": "AP_all", "AP50": "AP_50", "AP75": "AP_75", "APr": "APr", "APf": "APf"}
        for ours, theirs in names.items():
            assert metrics[ours] == pytest.approx(100 * reference[theirs], abs=1e-9)
        assert 0 < metrics["AP"] < 100


def _mean_iou_case(tmp_path, kind="sem_seg"):
    """Two images of three classes, of which the last is predicted and never true."""
    rng = np.random.default_rng(0)
    dicts, predictions, truths = [], [], []
    for i in range(2):
        truth = rng.integers(0, 2, (12, 16)).astype(np.uint8)
        truth[:2] = 255
        prediction = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, 3, truth.shape))
        prediction[:2] = 0
        Image.fromarray(truth).save(tmp_path / f"{i}.png")
        dicts.append({"file_name": f"{i}.jpg", "sem_seg_file_name": str(tmp_path / f"{i}.png")})
        predictions.append(torch.eye(3)[torch.tensor(prediction).long()].permute(2, 0, 1))
        truths.append((truth, prediction))
    name = f"sem_seg_case_{tmp_path}"
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(
        stuff_classes=["a", "b", "c"], ignore_label=255, evaluator_type=kind
    )
    return name, dicts, predictions, truths


def test_mean_iou_is_over_the_classes_of_the_ground_truth(tmp_path, cfg):
    name, dicts, predictions, truths = _mean_iou_case(tmp_path)
    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    for image, prediction in zip(dicts, predictions, strict=True):
        evaluator.process([image], [{"sem_seg": prediction}])
    results = evaluator.evaluate()["sem_seg"]
    truth, found = (np.concatenate(arrays) for arrays in zip(*truths, strict=True))
    found, truth = found[truth != 255], truth[truth != 255]
    ious = [
        100 * np.sum((found == k) & (truth == k)) / np.sum((found == k) | (truth == k))
        for k in (0, 1)
    ]
    assert results["mIoU"] == pytest.approx(np.mean(ious), abs=1e-12)
    assert results["IoU-b"] == pytest.approx(ious[1], abs=1e-12)
    assert np.isnan(results["IoU-c"])


def test_cityscapes_instances(tmp_path, cfg, monkeypatch):
    """A tree as Cityscapes', and predictions that are its own instances, then with one missing."""
    monkeypatch.chdir(tmp_path)
    city = tmp_path / "gtFine/val/frankfurt"
    city.mkdir(parents=True)
    ids = np.zeros((64, 128), dtype=np.int32)
    ids[10:40, 10:40] = 26000  # the first car
    ids[20:60, 60:110] = 26001
    ids[0:8, 100:128] = 24000  # a person
    stem = "frankfurt_000000_000294"
    Image.fromarray(ids.astype(np.uint16)).save(city / f"{stem}_gtFine_instanceIds.png")
    name = f"cityscapes_case_{tmp_path}"
    MetadataCatalog.get(name).set(
        evaluator_type="cityscapes_instance",
        thing_classes=["person", "car"],
        gt_dir=str(tmp_path / "gtFine/val"),
    )
    instances = Instances((64, 128))
    instances.pred_masks = torch.stack([torch.tensor(ids == i) for i in (24000, 26000, 26001)])
    instances.pred_classes = torch.tensor([0, 1, 1])
    instances.scores = torch.tensor([0.9, 0.8, 0.7])

    def result(found):
        evaluator = build_evaluator(cfg, name)
        evaluator.reset()
        image = {"file_name": f"{stem}_leftImg8bit.png"}
        evaluator.process([image], [{"instances": found}])
        with contextlib.redirect_stdout(io.StringIO()):
            return evaluator.evaluate()["segm"]

    assert result(instances) == pytest.approx({"AP": 100.0, "AP50": 100.0})
    partly = result(instances[torch.tensor([0, 2])])
    assert 50 < partly["AP"] < 100
    # All detections of cars are where nothing is labeled, so they do not count: AP 0, and 100 of
    # persons. The scripts fail here.
    beside = instances[torch.tensor([0, 1])]
    beside.pred_masks[1] = False
    beside.pred_masks[1, 45:60, 0:30] = True
    assert result(beside) == pytest.approx({"AP": 50.0, "AP50": 50.0})
    assert not (tmp_path / "matches.json").exists()


def test_cityscapes_without_its_scripts_is_one_sentence(tmp_path, cfg, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    MetadataCatalog.get("cityscapes_bare").set(evaluator_type="cityscapes_instance")
    with pytest.raises(UserError, match="pip install cityscapesscripts"):
        build_evaluator(cfg, "cityscapes_bare")


def test_cityscapes_semantic_segmentation_needs_no_scripts(tmp_path, cfg):
    name, *_ = _mean_iou_case(tmp_path, "cityscapes_sem_seg")
    assert isinstance(build_evaluator(cfg, name), MeanIoUEvaluator)


def test_mode_of_the_voc_evaluator_is_the_configs(tmp_path, cfg):
    case = make_voc_case(tmp_path, 0, year=2007)
    MetadataCatalog.get(case.dataset).set(evaluator_type="pascal_voc")
    evaluator = build_evaluator(cfg, case.dataset)
    assert isinstance(evaluator, VOCEvaluator)
    cfg.MOCO.VOC_EVALUATION = "rough"
    with pytest.raises(UserError, match="got 'rough'"):
        build_evaluator(cfg, case.dataset)


def test_several_types_of_one_dataset_give_all_their_results(tmp_path, cfg):
    truth, found = make_case(2)
    name = _register_coco(tmp_path, truth)
    segmented, dicts, predictions, _ = _mean_iou_case(tmp_path)
    DatasetCatalog.register(f"{name} both", lambda: dicts)
    MetadataCatalog.get(f"{name} both").set(
        **{
            key: getattr(MetadataCatalog.get(name), key)
            for key in ("json_file", "thing_classes", "thing_dataset_id_to_contiguous_id")
        },
        **{
            key: getattr(MetadataCatalog.get(segmented), key)
            for key in ("stuff_classes", "ignore_label")
        },
        evaluator_type=("coco", "sem_seg"),
    )
    evaluator = build_evaluator(cfg, f"{name} both")
    assert isinstance(evaluator, DatasetEvaluators)
    evaluator.reset()
    output = {"instances": as_instances(found, 0, False), "sem_seg": predictions[0]}
    evaluator.process([{"image_id": 0, **dicts[0]}], [output])
    with contextlib.redirect_stdout(io.StringIO()):
        assert set(evaluator.evaluate()) == {"bbox", "segm", "sem_seg"}


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (None, r"has no evaluator_type: .*evaluator_type=\.\.\."),
        ("", "has no evaluator_type"),
        ("pascal-voc", "evaluator_type 'pascal-voc'; did you mean 'pascal_voc'"),
        (("coco", "tea"), "evaluator_type 'tea'; use one of pascal_voc, coco"),
    ],
)
def test_type_that_is_not_known_is_one_sentence(cfg, kind, sentence):
    name = f"dataset of type {kind}"
    if kind is not None:
        MetadataCatalog.get(name).set(evaluator_type=kind)
    with pytest.raises(UserError, match=sentence):
        build_evaluator(cfg, name)
