"""AP of weighted images against evaluations of test sets in which each image is as often there."""

import contextlib
import copy
import io
import shutil
import tracemalloc

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import stats
from support.transfer import coco_cases, voc_cases

from moco_d2.benchmark.image_bootstrap import (
    RESAMPLES,
    Replicates,
    WeightedAP,
    bca_limits,
    freedom_of_images,
    replicates,
    uncertainty,
)
from moco_d2.plugin import evaluators
from moco_d2.records.image_matches import per_image
from moco_d2.transfer.evaluation.coco import complete_annotations, matches
from moco_d2.transfer.evaluation.voc_evaluation import VOCEvaluator

IMAGES = 16


def draws(count, images=IMAGES):
    """All images once, none but one, and random draws."""
    rng = np.random.default_rng(1)
    once, one = np.ones(images, dtype=int), np.bincount([3] * images, minlength=images)
    drawn = (rng.integers(0, images, images) for _ in range(count))
    return [once, one, *(np.bincount(each, minlength=images) for each in drawn)]


def loaded(truth, found, kind):
    """The annotations and the detections, as Detectron2 passes them to an evaluation."""
    found = copy.deepcopy(found)
    for item in found:
        if kind == "segm":
            del item["bbox"]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        complete_annotations(coco)
        return coco, coco.loadRes(found)


def repeated(truth, found, weights):
    """The test set in which each image is there as often as its weight says."""
    new = {**truth, "images": [], "annotations": []}
    new_found = []
    for image, weight in zip(truth["images"], weights, strict=True):
        for _ in range(weight):
            number = {"image_id": len(new["images"])}
            new["images"].append({**image, "id": number["image_id"]})
            for items, into in ((truth["annotations"], new["annotations"]), (found, new_found)):
                into += [{**i, **number} for i in items if i["image_id"] == image["id"]]
    return new, new_found


@pytest.mark.parametrize("matched_by", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_coco_ap_of_drawn_images_is_that_of_pycocotools(kind, matched_by, monkeypatch):
    installed = {n: e for n, e in evaluators.coco_evaluators().items() if n == matched_by}
    monkeypatch.setattr(evaluators, "coco_evaluators", lambda: installed)
    truth, found = coco_cases.make_case(3, images=IMAGES)
    for i, item in enumerate(found):  # equal scores of one image: see the module
        item["score"] += 1e-4 * (i % 50) if item["image_id"] % 2 else 1e-6 * i
    part = matches(*loaded(truth, found, kind), kind, list(range(IMAGES)))
    ap = WeightedAP(part)
    for weights in draws(8):
        with contextlib.redirect_stdout(io.StringIO()):
            literal = COCOeval(*loaded(*repeated(truth, found, weights), kind), kind)
            literal.evaluate()
            literal.accumulate()
            literal.summarize()
        expected = [100 * value if value >= 0 else np.nan for value in literal.stats[:3]]
        np.testing.assert_allclose(ap(weights), expected, rtol=0, atol=1e-10)
    assert ap(np.ones(IMAGES))[1] > 5


@pytest.mark.parametrize("year", [2007, 2012])
def test_voc_ap_of_drawn_images_is_that_of_an_evaluation_of_them(tmp_path, year):
    case = voc_cases.make_case(tmp_path, 2, year=year, images=IMAGES)
    evaluator = VOCEvaluator(case.dataset, mode="exact")
    voc_cases.evaluate(evaluator, case)
    outputs, names = evaluator.per_image()
    assert names == [image["image_id"] for image in case.inputs]
    ap, metadata = WeightedAP(outputs["bbox"]), MetadataCatalog.get(case.dataset)
    for number, weights in enumerate(draws(8)):
        drawn = np.repeat(np.arange(IMAGES), weights)
        root = tmp_path / f"drawn{number}"
        (root / "Annotations").mkdir(parents=True)
        (root / "ImageSets/Main").mkdir(parents=True)
        ids = [f"image{i}" for i in range(len(drawn))]
        (root / "ImageSets/Main/test.txt").write_text("\n".join(ids))
        for new, i in zip(ids, drawn, strict=True):
            shutil.copy(tmp_path / "Annotations" / f"{names[i]}.xml",
                        root / "Annotations" / f"{new}.xml")  # fmt: skip
        name = f"drawn {root}"
        MetadataCatalog.get(name).set(thing_classes=metadata.thing_classes, dirname=str(root),
                                      year=year, split="test")  # fmt: skip
        literal = VOCEvaluator(name, mode="exact")
        inputs = [{"image_id": new} for new in ids]
        literal.process(inputs, [case.outputs[i] for i in drawn])
        found = literal.evaluate()["bbox"]
        counted = np.bincount(outputs["bbox"].truth_class, minlength=4) > 0
        with_objects = ~np.isnan(ap.of_classes(weights)[0])
        if (with_objects | ~counted).all():  # else classes are left out of the mean here
            expected = [found[metric] for metric in ("AP", "AP50", "AP75")]
            np.testing.assert_allclose(ap(weights), expected, rtol=0, atol=1e-10)
        of_class = 100 * ap.of_classes(weights)[0]
        for label, each in enumerate(metadata.thing_classes):
            if with_objects[label]:
                assert of_class[label] == pytest.approx(found[f"AP50-{each}"], abs=1e-10)
    assert ap(np.ones(IMAGES))[1] > 5


@pytest.mark.parametrize("year", [2007, 2012])
def test_the_point_is_that_of_the_mode_that_rounds(tmp_path, year):
    case = voc_cases.make_case(tmp_path, 3, year=year, images=30)
    evaluator = VOCEvaluator(case.dataset)
    found = voc_cases.evaluate(evaluator, case)
    outputs, _ = evaluator.per_image()
    expected = [found[metric] for metric in ("AP", "AP50", "AP75")]
    assert WeightedAP(outputs["bbox"])(np.ones(30)).tolist() == pytest.approx(expected, abs=1e-10)


def test_two_runs_get_the_same_draws(tmp_path):
    case = voc_cases.make_case(tmp_path, 3, year=2007, images=30)
    evaluator = VOCEvaluator(case.dataset)
    voc_cases.evaluate(evaluator, case)
    (part,) = evaluator.per_image()[0].values()
    one, other = (replicates(part, 20) for _ in range(2))
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert one.drawn.shape == (20, 3) and one.left_out.shape == (30, 3)
    assert one.drawn.std(axis=0).min() > 0
    # Several draws are evaluated at a time, with the result of one by one.
    rng = np.random.default_rng(0)
    group = rng.permutation(30) % 30
    first = np.bincount(rng.integers(0, 30, 30), minlength=30)
    ap = WeightedAP(part)
    np.testing.assert_allclose(one.point, ap(np.ones(30)), rtol=0, atol=1e-10)
    np.testing.assert_allclose(one.drawn[0], ap(first), rtol=0, atol=1e-10)
    np.testing.assert_allclose(one.left_out[-1], ap(group != 29), rtol=0, atol=1e-10)


def test_bca_limits_are_scipys():
    rng = np.random.default_rng(0)
    values = rng.exponential(size=60)
    other = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa",
                            rng=np.random.default_rng(1))  # fmt: skip
    left_out = np.array([np.delete(values, i).mean() for i in range(60)])
    ours = bca_limits(other.bootstrap_distribution, values.mean(), left_out)
    assert ours == pytest.approx(tuple(other.confidence_interval), abs=2e-3)
    symmetric = np.quantile(other.bootstrap_distribution, [0.025, 0.975])
    assert abs(symmetric - ours).max() > 0.01


def parts(seeds, images, seed_std, image_std, rng):
    """Replicates of S seeds whose difference has these standard deviations, and its variance."""
    point = 1.0 + rng.normal(0, seed_std, seeds)
    drawn = point + rng.normal(0, image_std, (RESAMPLES, 1))
    left_out = point + rng.normal(0, image_std / images**0.5, (images, 1))
    return Replicates(point, drawn, left_out, images), point.var(ddof=1) / seeds, seeds - 1


def test_an_interval_has_the_part_of_the_seeds_and_that_of_the_images():
    rng = np.random.default_rng(0)
    found = uncertainty(*parts(3, 100, 0.2, 0.0, rng))
    (of, variance, freedom) = parts(3, 100, 0.2, 0.0, np.random.default_rng(0))
    half = stats.t.ppf(0.975, freedom) * variance**0.5
    mean = of.point.mean()
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half))
    assert found.images == pytest.approx(0, abs=1e-12)
    found = uncertainty(parts(3, 100, 0.0, 0.4, rng)[0], 0.0, 2)
    assert found.high - found.value == pytest.approx(1.99 * 0.4, rel=0.1)
    assert found.images == 1
    found = uncertainty(*parts(5, 100, 0.4, 0.4, rng))
    assert 0.5 < found.images < 0.97


def test_what_is_due_to_a_seed_on_these_images_counts_once():
    """Each seed's value has noise of its own over images: the spread between seeds holds it."""
    rng = np.random.default_rng(0)
    point = rng.normal(0, 0.4, 4)
    drawn = point + rng.normal(0, 0.4, (20_000, 4))
    found = uncertainty(Replicates(point, drawn, point + np.zeros((10, 4)), 5000), 0.04, 3)
    assert found.images < 0.05
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 3) * 0.2, rel=0.05)


def test_the_part_of_the_images_is_that_of_a_mean_over_few_of_them():
    """Where the value is a mean over images, t with I - 1 degrees of freedom is exact."""
    rng = np.random.default_rng(0)
    values = rng.normal(1, 2, 12)
    drawn = rng.choice(values, (200_000, 12)).mean(axis=1)[:, None]
    left_out = np.array([[np.delete(values, i).mean()] for i in range(12)])
    of = Replicates(values.mean(keepdims=True), drawn, left_out, 12)
    found = uncertainty(of, 0.0, 2)
    low, high = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert found.high - found.low == pytest.approx(high - low, rel=0.02)


@pytest.mark.parametrize(("sigma", "per_group"), [(0.3, 1), (0.5, 1), (0.5, 5)])
def test_a_variance_due_to_few_of_the_images_is_badly_known(sigma, per_group):
    """The degrees of freedom are 2 / (the squared relative error of the variance), as it is over
    many test sets."""
    rng, images = np.random.default_rng(0), 500
    sets = rng.lognormal(0, sigma, (2000, images))
    variances = sets.var(axis=1, ddof=1)
    over_sets = 2 / (variances.std() / variances.mean()) ** 2
    sums, found = sets.sum(axis=1, keepdims=True), []
    for total, of_set in zip(sums, sets, strict=True):
        left_out = (total - of_set.reshape(-1, per_group).sum(axis=1)) / (images - per_group)
        found.append(freedom_of_images(left_out, images))
    assert 1 / np.mean(1 / np.array(found)) == pytest.approx(over_sets, rel=0.25)
    assert over_sets < 0.6 * (images - 1)


def test_many_images_do_not_take_memory_for_all_resamples_at_once():
    """A file of two kilobytes may name 16 million images."""
    images = 100_000
    one = np.zeros(1, int)
    true = np.ones((10, 1), bool)
    part = per_image(
        images, "coco", (one, one, np.ones(1), true, ~true), np.eye(1, images, dtype=int)
    )
    tracemalloc.start()
    try:
        replicates(part, resamples=50)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * 8 * images  # 150 resamples and groups would be 150 * 8 * images
