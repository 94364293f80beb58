#!/usr/bin/env python3
"""Measure how often intervals over seeds and images hold the true difference of two
initializations.

Objects, detections and their matches are drawn from a distribution whose AP is known: it is
computed from very many images and the distribution of the seeds. Each draw is a benchmark: a test
set, two initializations, some seeds. The study writes results/studies/intervals.json, from which
docs/statistics.md is rendered.

example:
  python studies/intervals.py
  python studies/intervals.py --render docs/statistics.md
"""

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from moco_d2.benchmark.image_bootstrap import (
    AVERAGED,
    RESAMPLES,
    Replicates,
    WeightedAP,
    replicates,
    uncertainty,
)
from moco_d2.files import write_json, write_text
from moco_d2.records.image_matches import THRESHOLDS, PerImage, per_image

DRAWS = 400
RESULT = Path("results/studies/intervals.json")
_BEGIN, _END = "<!-- intervals: begin -->", "<!-- intervals: end -->"
_POPULATION, _SEEDS_OF_POPULATION = 40_000, 9
_CLASSES = 2
_OBJECTS, _FALSE = 2.5, 3.0  # per image
_BETTER = 0.15  # the skill of the better initialization
# Standard deviations of the skill: what an image adds for one initialization, and noise of a run.
_OWN, _NOISE = 0.4, 0.3
_KINDS = ("seeds", "plain", "seeds and images")


@dataclasses.dataclass(frozen=True)
class Case:
    """A distribution of benchmarks.

    Attributes:
        form: One of per_image.METRICS.
        metric: AP, or AP50, which takes a tenth of the time.
        images, seeds: Size of the benchmark.
        spread: Standard deviation of the skill between seeds.
    """

    form: str
    metric: str
    images: int
    seeds: int
    spread: float


CASES = [
    *(
        Case("voc_2007", "AP50", 150, seeds, spread)
        for seeds in (3, 5)
        for spread in (0.01, 0.05, 0.2)
    ),
    Case("voc_2012", "AP50", 300, 3, 0.05),
    Case("coco", "AP50", 300, 5, 0.05),
    Case("coco", "AP", 150, 3, 0.05),
]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=DRAWS, help="benchmarks per case")
    parser.add_argument(
        "--resamples", type=int, default=RESAMPLES, help="of each benchmark (default: as in tables)"
    )
    parser.add_argument("--json", type=Path, default=RESULT, help="also the cases that are done")
    parser.add_argument("--render", type=Path, metavar="PAGE", help="only render the page")
    args = parser.parse_args()
    if args.render:
        page = args.render.read_text()
        write_text(args.render, with_coverage(page, json.loads(args.json.read_text())))
        return 0
    done = json.loads(args.json.read_text())["cases"] if args.json.is_file() else []
    for index, case in enumerate(CASES):
        named = dataclasses.asdict(case)
        sizes = {"draws": args.draws, "resamples": args.resamples}
        if any({**named, **sizes}.items() <= line.items() for line in done):
            continue
        done.append(measure(case, **sizes, rng=np.random.default_rng((0, index, *sizes.values()))))
        print(done[-1], flush=True)
        write_json(args.json, {"cases": sorted(done, key=_place)})
    return 0


def measure(case: Case, draws: int, resamples: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return the share of draws whose intervals hold the true difference, and their mean width."""
    at = list(AVERAGED).index(case.metric)
    truth = _true_ap(case, _BETTER, rng) - _true_ap(case, 0.0, rng)
    held, width = dict.fromkeys(_KINDS, 0), dict.fromkeys(_KINDS, 0.0)
    share = 0.0
    for _ in range(draws):
        scene = _Scene(case.images, rng)
        rows = [
            [
                replicates(scene.run(case, skill + e, row), resamples)
                for e in case.spread * rng.standard_normal(case.seeds)
            ]
            for row, skill in enumerate((_BETTER, 0.0))
        ]
        point, drawn, left_out = (
            np.stack(
                [one[i][..., at] - other[i][..., at] for one, other in zip(*rows, strict=True)], -1
            )
            for i in range(3)
        )
        variance, freedom = point.var(ddof=1) / case.seeds, case.seeds - 1
        found = uncertainty(Replicates(point, drawn, left_out, case.images), variance, freedom)
        half = special.stdtrit(freedom, 0.975) * math.sqrt(variance)
        chosen = rng.integers(0, case.seeds, drawn.shape)
        limits = {
            "seeds": (found.value - half, found.value + half),
            "plain": np.quantile(np.take_along_axis(drawn, chosen, 1).mean(axis=1), (0.025, 0.975)),
            "seeds and images": (found.low, found.high),
        }
        for kind, (low, high) in limits.items():
            held[kind] += bool(low <= truth <= high)
            width[kind] += float(high - low)
        share += found.images
    return {
        **dataclasses.asdict(case),
        "draws": draws,
        "resamples": resamples,
        "difference": truth,
        "held": {kind: count / draws for kind, count in held.items()},
        "width": {kind: total / draws for kind, total in width.items()},
        "share_of_images": float(share) / draws,
    }


class _Scene:
    """The objects of a test set, and what is common to all detectors on it.

    A detector finds an object with an overlap and a score that rise with its skill, and fall with
    the difficulty of the image and of the object.
    """

    def __init__(self, images: int, rng: np.random.Generator):
        self._rng = rng
        image_effect = rng.normal(0, 0.5, images)
        self._images = images
        self._image = np.repeat(np.arange(images), rng.poisson(_OBJECTS, images))
        self._label = rng.integers(0, _CLASSES, len(self._image))
        self._ease = image_effect[self._image] + rng.normal(0, 0.7, len(self._image))
        self._false_image = np.repeat(np.arange(images), rng.poisson(_FALSE, images))
        self._false_label = rng.integers(0, _CLASSES, len(self._false_image))
        self._own = rng.normal(0, _OWN, (2, images))
        self._false_ease = rng.normal(0, 0.7, len(self._false_image))

    def run(self, case: Case, skill: float, row: int) -> PerImage:
        """Return the matches of a detector with this skill, of the first or second row."""
        rng = self._rng
        skills = skill + self._ease + self._own[row, self._image]
        overlap = 4.5 + 3 * (skills + rng.normal(0, _NOISE, len(skills)))
        score = skills + rng.normal(0, _NOISE, len(skills))
        false_score = -0.7 + self._false_ease + rng.normal(0, _NOISE, len(self._false_ease))
        true = np.arange(THRESHOLDS)[:, None] < overlap
        label = np.concatenate((self._label, self._false_label))
        image = np.concatenate((self._image, self._false_image))
        score = np.concatenate((score, false_score))
        true = np.concatenate((true, np.zeros((THRESHOLDS, len(false_score)), bool)), axis=1)
        order = np.lexsort((-score, label))
        counts = np.zeros((_CLASSES, self._images), dtype=np.int64)
        np.add.at(counts, (self._label, self._image), 1)
        detections = (label[order], image[order], score[order], true[:, order])
        ignored = np.zeros_like(true)
        part = per_image(self._images, case.form, (*detections, ignored), counts)
        return part if case.metric == "AP" else part._replace(true=part.true & 1)


def _true_ap(case: Case, skill: float, rng: np.random.Generator) -> float:
    """Return the mean of the metric over all images and seeds."""
    nodes, weights = special.roots_hermitenorm(_SEEDS_OF_POPULATION)
    scene = _Scene(_POPULATION, rng)
    every = np.ones(_POPULATION)
    aps = [WeightedAP(scene.run(case, skill + case.spread * node, 0))(every) for node in nodes]
    at = list(AVERAGED).index(case.metric)
    return float(np.average(aps, axis=0, weights=weights)[at])


# ---- page ----------------------------------------------------------------------------------------


def with_coverage(page: str, result: dict[str, Any]) -> str:
    """Return a page with the coverage of a result between its marks."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{coverage(result)}\n{_END}{after}"


def coverage(result: dict[str, Any]) -> str:
    """Return the coverage as Markdown."""
    lines = [
        "Share of simulated benchmarks whose 95 % interval holds the true difference:",
        "",
        "| metric | images | seeds | benchmarks | resamples | variance due to images "
        "| seeds alone | plain bootstrap | seeds and images |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in result["cases"]:
        held = " | ".join(f"{line['held'][kind]:.1%}" for kind in _KINDS)
        lines.append(
            f"| {line['metric']}, {line['form'].replace('_', ' ').upper()} | {line['images']} "
            f"| {line['seeds']} | {line['draws']:,} | {line['resamples']:,} "
            f"| {line['share_of_images']:.0%} | {held} |".replace("%", " %")
        )
    return "\n".join(lines)


def _place(line: dict[str, Any]) -> int:
    """Return the place of a case in CASES."""
    fields = {field.name: line[field.name] for field in dataclasses.fields(Case)}
    return CASES.index(Case(**fields))


if __name__ == "__main__":
    sys.exit(main())
