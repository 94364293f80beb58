"""Our VOC evaluator against Detectron2's, and what its exact mode promises."""

import math
import os

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from support.commands import run_processes
from support.paths import SUPPORT
from support.toy_data import make_voc
from support.transfer.voc_cases import evaluate, make_case

from moco_d2.errors import UserError
from moco_d2.transfer.data.voc_annotations import parse_xml, read_objects
from moco_d2.transfer.evaluation.voc_evaluation import VOCEvaluator, _rounded

CASES = 200
METRICS = ("AP", "AP50", "AP75")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Detectron2 divides by no objects
def test_compatible_mode_is_detectron2s_bit_for_bit(tmp_path):
    finite = 0
    for seed in range(CASES):
        case = make_case(tmp_path / str(seed), seed, year=(2007, 2012)[seed % 2])
        theirs = evaluate(PascalVOCDetectionEvaluator(case.dataset), case)
        ours = evaluate(VOCEvaluator(case.dataset), case)
        for metric in METRICS:
            np.testing.assert_array_equal(ours[metric], theirs[metric], f"case {seed} {metric}")
        finite += 0 < ours["AP"] < 100
    assert finite > CASES / 2


def test_many_detections_whose_equal_scores_an_unstable_sort_reorders(tmp_path):
    case = make_case(tmp_path, 1, year=2007, images=60, classes=2, objects=8, false_positives=40)
    theirs = evaluate(PascalVOCDetectionEvaluator(case.dataset), case)
    ours = evaluate(VOCEvaluator(case.dataset), case)
    assert {metric: ours[metric] for metric in METRICS} == theirs


def test_class_results_are_those_whose_mean_is_ap50(tmp_path):
    case = make_case(tmp_path, 3, year=2007)
    results = evaluate(VOCEvaluator(case.dataset), case)
    per_class = [results[f"AP50-class {i}"] for i in range(4)]
    assert np.mean(per_class) == results["AP50"]
    assert len(set(per_class)) > 1
    assert all(type(value) is float for value in results.values())


@pytest.mark.parametrize("year", [2007, 2012])
def test_exact_mode_does_not_depend_on_the_order_of_images(tmp_path, year):
    case = make_case(tmp_path, 5, year=year, images=40)
    order = np.random.default_rng(0).permutation(40)

    def both_orders(mode):
        evaluator = VOCEvaluator(case.dataset, mode=mode)
        return evaluate(evaluator, case), evaluate(evaluator, case, order)

    first, second = both_orders("exact")
    assert first == second
    assert 0 < first["AP"] < 100
    # The difference that it takes away: equal scores, ranked as they arrive.
    first, second = both_orders("compatible")
    assert first != second


def test_exact_mode_agrees_with_detectron2_where_nothing_rounds_and_no_scores_are_equal(tmp_path):
    case = make_case(tmp_path, 7, year=2012, images=20)
    scores = np.random.default_rng(0).permutation(1000) / 1000
    for output in case.outputs:
        found = output["instances"]
        found.scores = found.scores.new_tensor(scores[: len(found)])
        scores = scores[len(found) :]
        found.pred_boxes.tensor.round_()
    theirs = evaluate(PascalVOCDetectionEvaluator(case.dataset), case)
    exact = evaluate(VOCEvaluator(case.dataset, mode="exact"), case)
    for metric in METRICS:
        assert exact[metric] == pytest.approx(theirs[metric], abs=1e-9)


def test_exact_mode_tells_scores_apart_that_the_devkits_files_do_not(tmp_path):
    case = make_case(tmp_path, 11, year=2012, images=20)
    close = np.random.default_rng(0).permutation(1000) / 1e6 + 0.5  # all 0.500 or 0.501
    for output in case.outputs:
        found = output["instances"]
        found.scores = found.scores.new_tensor(close[: len(found)])
        close = close[len(found) :]
    exact = evaluate(VOCEvaluator(case.dataset, mode="exact"), case)
    for output in case.outputs:  # the same order, far enough apart for three decimals
        output["instances"].scores = (output["instances"].scores - 0.5) * 1000
    apart = evaluate(VOCEvaluator(case.dataset, mode="exact"), case)
    assert exact == apart
    assert 0 < exact["AP"] < 100


def test_equal_scores_are_one_point_of_the_exact_curve(tmp_path):
    """One object, found by the second of two detections with one score: precision there is 1/2."""
    case = make_case(tmp_path, 9, year=2012, images=1, classes=1)
    image_id = case.inputs[0]["image_id"]
    (tmp_path / "Annotations" / f"{image_id}.xml").write_text(
        "<annotation><object><name>class 0</name><bndbox><xmin>11</xmin><ymin>11</ymin>"
        "<xmax>60</xmax><ymax>60</ymax></bndbox></object></annotation>"
    )
    found = type(case.outputs[0]["instances"])((200, 200))
    box = case.outputs[0]["instances"].pred_boxes.tensor.new_tensor(
        [[100, 100, 150, 150], [10, 10, 60, 60]]
    )
    found.pred_boxes = type(case.outputs[0]["instances"].pred_boxes)(box)
    found.scores = box.new_tensor([0.5, 0.5])
    found.pred_classes = box.new_zeros(2).long()
    case.outputs[0]["instances"] = found
    evaluator = VOCEvaluator(case.dataset, mode="exact")
    assert evaluate(evaluator, case)["AP50"] == 50.0
    found.scores = box.new_tensor([0.4, 0.5])
    assert evaluate(evaluator, case)["AP50"] == 100.0


def test_rounding_is_that_of_printed_text():
    rng = np.random.default_rng(0)
    values = np.concatenate((rng.uniform(-1, 500, 20_000), np.arange(0, 40, 0.125))).astype("f4")
    for decimals in (1, 3):
        printed = np.array([float(f"{v:.{decimals}f}") for v in values.tolist()])
        np.testing.assert_array_equal(_rounded(values, decimals), printed)


def test_two_processes_give_the_result_of_one(tmp_path):
    outputs = run_processes(2, SUPPORT / "transfer" / "voc_two_processes.py", tmp_path)
    assert "equal" in outputs[0]


def test_no_detections_and_no_images_at_all(tmp_path):
    case = make_case(tmp_path, 1, year=2007)
    results = evaluate(VOCEvaluator(case.dataset), case, order=[])
    assert {results[metric] for metric in METRICS} == {0.0}


def test_area_of_a_class_without_objects_is_nan_as_detectron2s(tmp_path):
    case = make_case(tmp_path, 4, year=2012)
    results = evaluate(VOCEvaluator(case.dataset), case)
    assert math.isnan(results["AP50-class 3"]) and math.isnan(results["AP"])


def test_changed_annotation_is_read_again(tmp_path):
    file = make_voc(tmp_path / "VOC2007") / "Annotations/test000.xml"
    (before,) = read_objects(file)
    file.write_text(file.read_text().replace(before.name, "other"))
    os.utime(file, ns=(0, 0))
    assert read_objects(file)[0].name == "other"


LAUGHS = '<!DOCTYPE a [<!ENTITY x "haha">]><annotation>&x;</annotation>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation>&x;</annotation>'


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (LAUGHS, "declares the XML entity 'x'"),
        (OUTSIDE, "declares the XML entity 'x'"),
        ("<annotation><object>", "is damaged"),
        ("<annotation><object><name>a</name></object></annotation>", "bndbox of four numbers"),
        ("<annotation><object></object></annotation>", "has no name"),
    ],
)
def test_damaged_or_hostile_annotation_is_one_sentence(tmp_path, content, sentence):
    file = tmp_path / "a.xml"
    file.write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_objects(file)


def test_entities_are_refused_in_every_encoding(tmp_path):
    file = tmp_path / "a.xml"
    file.write_text('<?xml version="1.0" encoding="utf-16"?>' + LAUGHS, encoding="utf-16")
    with pytest.raises(ValueError, match="XML entity"):
        parse_xml(file)


def test_annotations_and_splits_are_regular_files_of_a_sound_size(tmp_path):
    """A pipe, which an archive may hold, would let the run wait for its writer for ever."""
    case = make_case(tmp_path, 1, year=2007)
    annotation = next((tmp_path / "Annotations").glob("*.xml"))
    annotation.write_text("<annotation>" + " " * (17 << 20) + "</annotation>")
    with pytest.raises(UserError, match=r"is damaged .*more than 16777216 bytes"):
        read_objects(annotation)
    annotation.unlink()
    os.mkfifo(annotation)
    with pytest.raises(UserError, match=r"is damaged .*not a regular file"):
        read_objects(annotation)
    split = tmp_path / "ImageSets" / "Main" / "test.txt"
    split.unlink()
    os.mkfifo(split)
    with pytest.raises(UserError, match=r"cannot read .*test\.txt: .*not a regular file"):
        evaluate(VOCEvaluator(case.dataset), case)


def test_what_cannot_be_evaluated_is_refused(tmp_path):
    case = make_case(tmp_path, 1, year=2007)
    with pytest.raises(UserError, match="must be one of compatible, exact, got 'precise'"):
        VOCEvaluator(case.dataset, mode="precise")
    case.inputs[0]["image_id"] = "stranger"
    with pytest.raises(UserError, match=r"image stranger .* not in .*test\.txt"):
        evaluate(VOCEvaluator(case.dataset), case)
    next((tmp_path / "Annotations").glob("*.xml")).unlink()
    case.inputs[0]["image_id"] = case.inputs[1]["image_id"]
    with pytest.raises(UserError, match="cannot read annotation .*No such file"):
        evaluate(VOCEvaluator(case.dataset), case)
    MetadataCatalog.get("voc_of_1999").set(year=1999, dirname="", split="", thing_classes=[])
    with pytest.raises(UserError, match="year 1999 .* 2007 for 11-point AP or 2012"):
        VOCEvaluator("voc_of_1999")
