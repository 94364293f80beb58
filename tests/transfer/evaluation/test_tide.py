"""Decomposition of errors: cases with known answers, and the evaluators that ask for it."""

import copy
import logging

import numpy as np
import pytest
from detectron2.evaluation import DatasetEvaluators
from support.transfer.coco_cases import coco_evaluator, evaluate_coco, make_case
from support.transfer.voc_cases import OBJECT
from support.transfer.voc_cases import evaluate as evaluate_voc
from support.transfer.voc_cases import make_case as make_voc_case

from moco_d2.errors import UserError
from moco_d2.transfer.evaluation.build import box_errors
from moco_d2.transfer.evaluation.tide import KINDS, Detections, Objects, decompose, is_right
from moco_d2.transfer.evaluation.voc_evaluation import VOCEvaluator

CAT, DOG = 0, 1
BOX = (10.0, 10.0, 110.0, 110.0)
FAR = (300.0, 300.0, 400.0, 400.0)
HALF = (10.0, 10.0, 110.0, 50.0)  # IoU 0.4 with BOX
AGAIN = (12.0, 10.0, 112.0, 110.0)  # IoU 0.96


def errors_of(found, truth):
    """decompose of (image, class, score, box) and (image, class, box, "" | "ignored" | "crowd")."""
    images, classes, scores, boxes = zip(*found, strict=True) if found else ((), (), (), ())
    ignored = np.array([item[3] != "" for item in truth])
    return decompose(
        Detections(
            np.array(images, dtype=int),
            np.array(classes, dtype=int),
            np.array(scores, dtype=float),
            np.array(boxes, dtype=float).reshape(-1, 4),
        ),
        Objects(
            np.array([item[0] for item in truth]),
            np.array([item[1] for item in truth]),
            np.array([item[2] for item in truth], dtype=float),
            ignored,
            np.array([item[3] == "crowd" for item in truth]),
        ),
    )


def costs(result):
    return {kind: result[kind] for kind in KINDS if result[kind]}


RIGHT = (0, CAT, 0.5, BOX)
CATS = [(0, CAT, BOX, ""), (1, CAT, BOX, "")]
# Of two objects one is found: at 51 of 101 recalls the precision is that of the found one.
HALF_AP = 100 * 51 / 101
# The found one comes second.
SECOND = HALF_AP / 2


@pytest.mark.parametrize(
    ("found", "truth", "ap", "expected"),
    [
        ([RIGHT], CATS[:1], 100.0, {}),
        ([RIGHT], CATS, HALF_AP, {"Miss": 100 - HALF_AP}),
        # An error that would find the second object: it is not missed.
        ([RIGHT, (1, CAT, 0.9, HALF)], CATS, SECOND, {"Loc": 100 - SECOND}),
        # The class in which it is wrongly found has no object: its AP is not in the mean.
        ([RIGHT, (1, DOG, 0.9, BOX)], CATS, HALF_AP, {"Cls": 100 - HALF_AP}),
        ([RIGHT, (0, CAT, 0.4, AGAIN)], CATS[:1], 100.0, {}),
        ([(0, CAT, 0.9, AGAIN), RIGHT, (1, CAT, 0.4, BOX)], CATS, None, {"Dupe": None}),
        ([RIGHT, (0, CAT, 0.9, FAR)], CATS[:1], 50.0, {"Bkg": 50.0}),
        # In an image without any object.
        ([RIGHT, (7, CAT, 0.9, BOX)], CATS[:1], 50.0, {"Bkg": 50.0}),
        ([], CATS, 0.0, {}),
    ],
)
def test_one_error_of_each_kind(found, truth, ap, expected):
    result = errors_of(found, truth)
    if ap is not None:
        assert result["AP50"] == pytest.approx(ap)
    assert set(costs(result)) == set(expected)
    for kind, cost in expected.items():
        assert cost is None or result[kind] == pytest.approx(cost)


def test_wrong_class_and_wrong_box():
    """A detection of a cat that overlaps only a dog, by 0.4; both cats and the dog are found."""
    truth = [*CATS[:1], (1, DOG, BOX, "")]
    found = [RIGHT, (1, CAT, 0.9, HALF), (1, DOG, 0.9, BOX)]
    result = errors_of(found, truth)
    assert result["AP50"] == pytest.approx(75.0)
    assert costs(result) == pytest.approx({"Both": 25.0})


def test_a_duplicate_costs_the_precision_behind_it():
    found = [(0, CAT, 0.9, BOX), (0, CAT, 0.8, AGAIN), (1, CAT, 0.7, BOX)]
    result = errors_of(found, CATS)
    assert result["AP50"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)
    assert costs(result) == pytest.approx({"Dupe": 100 - result["AP50"]})


def test_of_several_errors_for_one_object_the_best_is_corrected_and_the_others_go():
    """Two boxes for the second cat, both poor: one right detection more, and no false one."""
    found = [RIGHT, (1, CAT, 0.9, HALF), (1, CAT, 0.8, HALF)]
    result = errors_of(found, CATS)
    assert result["AP50"] == pytest.approx(HALF_AP / 3)
    assert costs(result) == pytest.approx({"Loc": 100 - HALF_AP / 3})


def test_a_correction_is_shared_between_loc_and_cls():
    """The dog's box is good and comes first, so it is what would find the cat: correcting only the
    cat's poor box takes that away.
    """
    truth = [*CATS, (2, DOG, BOX, "")]
    found = [(1, DOG, 0.9, BOX), (2, DOG, 0.8, BOX), (1, CAT, 0.7, HALF), RIGHT]
    result = errors_of(found, truth)
    assert result["AP50"] == pytest.approx((SECOND + 50) / 2)
    # Without the poor box: cats HALF_AP. With the dog as a cat: cats 100 * (51 + 50 * 2/3) / 101.
    assert result["Loc"] == pytest.approx((HALF_AP - SECOND) / 2)
    with_cat = 100 * (51 + 50 * 2 / 3) / 101
    assert result["Cls"] == pytest.approx((with_cat + 100) / 2 - result["AP50"])
    assert result["Miss"] == 0


def test_equal_scores_keep_their_order():
    wrong, right = (0, CAT, 0.5, FAR), (0, CAT, 0.5, BOX)
    assert errors_of([right, wrong], CATS[:1])["AP50"] == pytest.approx(100)
    assert errors_of([wrong, right], CATS[:1])["AP50"] == pytest.approx(50)


def test_a_detection_takes_the_free_object_it_overlaps_most():
    near = (14.0, 10.0, 114.0, 110.0)
    truth = [(0, CAT, BOX, ""), (0, CAT, near, "")]
    result = errors_of([(0, CAT, 0.9, AGAIN), (0, CAT, 0.8, BOX)], truth)
    assert result["AP50"] == pytest.approx(100)
    assert not costs(result)


def test_which_are_right_is_said_in_the_order_they_are_given():
    found = [(0, CAT, 0.3, AGAIN), (0, CAT, 0.9, BOX), (1, CAT, 0.5, FAR), (1, CAT, 0.4, BOX)]
    images, classes, scores, boxes = (np.array(values) for values in zip(*found, strict=True))
    nothing = np.zeros(2, dtype=bool)
    truth = Objects(np.array([0, 1]), np.array([CAT] * 2), np.array([BOX] * 2), nothing, nothing)
    right = is_right(Detections(images, classes, scores, boxes), truth)
    assert right.tolist() == [False, True, False, True]


@pytest.mark.parametrize("kind", ["ignored", "crowd"])
def test_ignored_objects_excuse_and_need_not_be_found(kind):
    truth = [*CATS[:1], (0, CAT, FAR, kind)]
    result = errors_of([RIGHT, (0, CAT, 0.9, FAR), (0, CAT, 0.8, FAR)], truth)
    assert result == {"AP50": 100.0, **dict.fromkeys(KINDS, 0.0)}
    # Of another class it excuses nothing, and is no object that the detection could be right for.
    truth = [*CATS[:1], (0, DOG, FAR, kind)]
    result = errors_of([RIGHT, (0, CAT, 0.9, FAR)], truth)
    assert costs(result) == pytest.approx({"Bkg": 50.0})


def test_a_crowd_excuses_what_lies_inside_and_a_difficult_object_what_it_overlaps():
    inside = (300.0, 300.0, 320.0, 320.0)  # IoU 0.04 with FAR
    for kind, ap in (("crowd", 100.0), ("ignored", 50.0)):
        result = errors_of([RIGHT, (0, CAT, 0.9, inside)], [*CATS[:1], (0, CAT, FAR, kind)])
        assert result["AP50"] == pytest.approx(ap)


def test_without_objects_there_is_nothing_to_decompose():
    with pytest.raises(ValueError, match="no object"):
        errors_of([RIGHT], [(0, CAT, BOX, "crowd")])


def random_case(seed, images=25, classes=4):
    rng = np.random.default_rng(seed)
    found, truth = [], []
    for image in range(images):
        n = int(rng.integers(0, 7))
        corner = rng.uniform(0, 150, (n, 2))
        boxes = np.concatenate((corner, corner + rng.uniform(10, 90, (n, 2))), axis=1)
        labels = rng.integers(0, classes, n)
        truth += [(image, labels[k], boxes[k], "") for k in range(n)]
        for k in np.repeat(np.arange(n), rng.integers(0, 4, n)):
            box = boxes[k] + rng.normal(0, 8, 4)
            box[2:] = np.maximum(box[2:], box[:2] + 1)
            label = labels[k] if rng.random() < 0.75 else rng.integers(0, classes)
            found.append((image, label, rng.random(), box))
    return found, truth


def slow_decomposition(found, truth):
    """The definition again, one detection after the other, as the paper's section 2 says it."""

    def iou(a, b):
        w = min(a[2], b[2]) - max(a[0], b[0])
        h = min(a[3], b[3]) - max(a[1], b[1])
        common = max(w, 0) * max(h, 0)
        area = lambda box: (box[2] - box[0]) * (box[3] - box[1])  # noqa: E731
        return common / (area(a) + area(b) - common)

    found = sorted(found, key=lambda item: -item[2])
    taken, verdict = {}, []
    for d, (image, label, _, box) in enumerate(found):
        near = [
            (iou(box, t[2]), -g)
            for g, t in enumerate(truth)
            if t[0] == image and t[1] == label and g not in taken
        ]
        if near and max(near)[0] >= 0.5:
            taken[-max(near)[1]] = d
    finder = {}
    for d, (image, label, _, box) in enumerate(found):
        here = [(iou(box, t[2]), g) for g, t in enumerate(truth) if t[0] == image]
        own = max([(o, g) for o, g in here if truth[g][1] == label], default=(0, None))
        other = max([(o, g) for o, g in here if truth[g][1] != label], default=(0, None))
        if d in taken.values():
            verdict.append(("", None))
        elif 0.1 <= own[0] <= 0.5:
            verdict.append(("Loc", own[1]))
        elif other[0] >= 0.5:
            verdict.append(("Cls", other[1]))
        elif own[0] >= 0.5:
            verdict.append(("Dupe", None))
        elif max(own[0], other[0]) <= 0.1:
            verdict.append(("Bkg", None))
        else:
            verdict.append(("Both", None))
        if verdict[-1][1] is not None and verdict[-1][1] not in taken:
            finder.setdefault(verdict[-1][1], d)

    def mean_ap(corrected):
        missed = [g for g in range(len(truth)) if g not in taken and g not in finder]
        aps = []
        for c in sorted({t[1] for t in truth}):
            wanted = sum(t[1] == c for t in truth)
            if corrected == "Miss":
                wanted -= sum(truth[g][1] == c for g in missed)
            points = []
            for d, (kind, g) in enumerate(verdict):
                label, right = found[d][1], kind == ""
                if kind == corrected and kind:
                    if finder.get(g) != d or g is None:
                        continue
                    label, right = truth[g][1], True
                if label == c:
                    points.append(right)
            if not wanted and not points:
                continue
            curve, true = [], 0
            for n, right in enumerate(points, start=1):
                true += right
                curve.append((true / wanted if wanted else 0.0, true / n))
            levels = np.linspace(0, 1, 101)
            aps.append(np.mean([max((p for r, p in curve if r >= x), default=0) for x in levels]))
        return 100 * np.mean(aps)

    base = mean_ap(None)
    return {"AP50": base} | {kind: max(mean_ap(kind) - base, 0) for kind in KINDS}


def test_as_the_definition_says_it_detection_by_detection():
    seen = dict.fromkeys(KINDS, 0)
    for seed in range(8):
        case = random_case(seed)
        fast = errors_of(*case)
        assert fast == pytest.approx(slow_decomposition(*case), abs=1e-9)
        seen = {kind: seen[kind] + (fast[kind] > 0) for kind in KINDS}
    assert all(seen.values())


@pytest.fixture
def coco(tmp_path):
    """Evaluated: (evaluator, its results)."""

    def build(seed, **options):
        truth, found = make_case(seed, **options)
        evaluator = coco_evaluator(tmp_path, truth)
        return evaluator, evaluate_coco(evaluator, truth["images"], found)

    return build


def test_ap50_is_the_coco_evaluators(coco):
    """With crowds, empty images, equal scores and classes without objects."""
    for seed in range(4):
        evaluator, results = coco(seed)
        errors = evaluator.box_errors()
        assert list(errors) == ["AP50", *KINDS]
        assert errors["AP50"] == pytest.approx(results["bbox"]["AP50"], abs=1e-9)
        assert all(type(value) is float for value in errors.values())


def test_ap50_is_the_coco_evaluators_for_more_detections_than_it_counts(coco):
    _, results = coco(0, images=3, classes=3, false_positives=300)
    assert results["bbox"]["AP50"] > 0


def test_ap50_is_the_coco_evaluators_whatever_the_order_of_the_images(tmp_path):
    """Equal scores of two images are in the order of the images' ids."""
    truth, found = make_case(3)
    evaluator = coco_evaluator(tmp_path, truth)
    expected = evaluate_coco(evaluator, truth["images"], found)
    results = evaluate_coco(evaluator, truth["images"][::-1], found)
    assert results["bbox"] == pytest.approx(expected["bbox"], nan_ok=True)


def test_ap50_is_the_coco_evaluators_if_a_box_overlaps_two_objects_equally(tmp_path):
    truth, found = make_case(0, images=1)
    one, two = truth["annotations"][0], copy.deepcopy(truth["annotations"][0])
    one |= {"bbox": [0, 0, 100, 100], "category_id": 2, "iscrowd": 0}
    two |= {"bbox": [40, 0, 100, 100], "category_id": 2, "iscrowd": 0, "id": 2}
    truth["annotations"] = [one, two]
    between = found[0] | {"bbox": [20, 0, 100, 100], "category_id": 2, "score": 0.9}
    left = found[0] | {"bbox": [5, 0, 100, 100], "category_id": 2, "score": 0.5}
    results = evaluate_coco(coco_evaluator(tmp_path, truth), truth["images"], [between, left])
    assert results["bbox"]["AP50"] == pytest.approx(100)


def test_annotations_of_images_that_the_file_does_not_list_count_nowhere(tmp_path):
    truth, found = make_case(1)
    left_out = truth["images"].pop()["id"]
    assert any(a["image_id"] == left_out for a in truth["annotations"])
    evaluator = coco_evaluator(tmp_path, truth)
    results = evaluate_coco(evaluator, truth["images"], found)
    assert evaluator.box_errors()["AP50"] == pytest.approx(results["bbox"]["AP50"], abs=1e-9)


def test_two_ap50s_that_disagree_stop_the_run(tmp_path):
    truth, found = make_case(0)
    evaluator = coco_evaluator(tmp_path, truth)
    found_often = [a for a in evaluator._coco_api.dataset["annotations"] if a["category_id"] == 2]
    for item in found_often[:3]:
        item["area"] = 1e300  # pycocotools ignores these objects
    with pytest.raises(UserError, match=r"has no result: AP50 .* by COCO's .* by the decomposit"):
        evaluate_coco(evaluator, truth["images"], found)


def test_without_objects_or_detections_there_is_nothing_to_compare(tmp_path):
    truth, found = make_case(0)
    evaluator = coco_evaluator(tmp_path, truth)
    assert np.isnan(evaluate_coco(evaluator, truth["images"], [])["bbox"]["AP50"])
    for item in truth["annotations"]:
        item["iscrowd"] = 1
    evaluator = coco_evaluator(tmp_path, truth)
    assert np.isnan(evaluate_coco(evaluator, truth["images"], found)["bbox"]["AP50"])


def test_voc_boxes_include_their_last_pixel_and_difficult_objects_are_ignored(tmp_path):
    case = make_voc_case(tmp_path, 0, year=2007, images=1, classes=2, false_positives=3)
    (image,) = case.inputs
    plain = OBJECT.format("class 0", 0, 11, 11, 12, 12)
    objects = plain + OBJECT.format("class 1", 1, 51, 51, 90, 90)
    (tmp_path / "Annotations" / f"{image['image_id']}.xml").write_text(
        f"<annotation>{objects}</annotation>"
    )
    instances = case.outputs[0]["instances"][:3]
    # The first is exactly half of its object, from its first pixel to the end of it.
    boxes = [(10.0, 10.0, 12.0, 11.0), (50.0, 50.0, 90.0, 90.0), (120.0, 120.0, 150.0, 150.0)]
    instances.pred_boxes.tensor = instances.pred_boxes.tensor.new_tensor(boxes)
    instances.pred_classes = instances.pred_classes.new_tensor([0, 1, 0])
    instances.scores = instances.scores.new_tensor([0.8004, 0.9, 0.8001])  # equal when rounded
    case.outputs[0]["instances"] = instances
    evaluator = VOCEvaluator(case.dataset)
    evaluate_voc(evaluator, case)
    assert evaluator.box_errors() == {"AP50": 100.0, **dict.fromkeys(KINDS, 0.0)}


def test_a_failure_is_a_warning_and_other_evaluators_say_nothing(coco, caplog):
    evaluator, _ = coco(0)
    both = DatasetEvaluators([evaluator, object()])
    assert box_errors({"plain": object()}) is None
    assert box_errors({"a": both, "b": object()}) == {"a": evaluator.box_errors()}
    evaluator._gathered = evaluator._errors = None
    with caplog.at_level(logging.WARNING):
        assert box_errors({"a": evaluator}) is None
    assert "the errors on a cannot be decomposed" in caplog.text
