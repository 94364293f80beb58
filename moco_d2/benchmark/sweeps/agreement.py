"""Agreement of a sweep with the paper: which orders in the paper's figure are measured here, too.

Accuracies on another dataset have another scale, but orders can be compared on any dataset.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from moco_d2.benchmark.paper_tables import tables_named
from moco_d2.benchmark.statistics import LEVEL, Comparison, corrected, paired, welch
from moco_d2.benchmark.sweeps.definitions import Published, X, place_name
from moco_d2.benchmark.sweeps.studies import Study, Trial, order_of
from moco_d2.benchmark.tables.cell_text import p_value, signed

# Verdict of an order -> whether it agrees with the paper.
_AGREES = {
    "same": "yes",
    "towards": "undecided (same direction)",
    "opposite": "no (opposite direction)",
    "against": "undecided (opposite direction)",
    "equal": "undecided (equal here)",
    "alike": "undecided (alike in the paper, not apart here)",
    "apart": "no (alike in the paper, apart here)",
}
_TITLES = ("first minus second", "in the paper", "here", "corrected p", "agrees")

Trials = Mapping[Trial, float]
# First and second point, location, the paper's difference, and the measured one.
_Pair = tuple[str, str, str, float, Comparison]


@dataclass(frozen=True)
class Order:
    """The order of two points, or averages of points, in the paper's figure and here.

    Attributes:
        first, second, where: Names of the points and their location: "MoCo", "memory bank",
            "at 256".
        paper: First minus second in the paper, points.
        measured: First minus second here, corrected for all orders of a study.
        threshold: Difference, in points, up to which the paper's points count as alike. The points
            here are apart only if they differ by more.
    """

    first: str
    second: str
    where: str
    paper: float
    measured: Comparison
    threshold: float

    @property
    def alike_in_paper(self) -> bool:
        return abs(self.paper) <= self.threshold

    @property
    def verdict(self) -> str:
        """The agreement with the paper.

        ``same`` and ``opposite`` are directions that the tests support, ``towards`` and ``against``
        are the same directions without support. ``equal`` is a printed difference of 0.0. If the
        paper's points are alike, the verdict is ``apart`` if the tests support a difference beyond
        the threshold, otherwise ``alike``.
        """
        if self.alike_in_paper:
            apart = self.measured.supported and abs(self.measured.difference) > self.threshold
            return "apart" if apart else "alike"
        same = self.paper * self.measured.difference > 0
        if not self.measured.supported and signed(self.measured.difference) == signed(0):
            return "equal"
        if self.measured.supported:
            return "same" if same else "opposite"
        return "towards" if same else "against"

    @property
    def row(self) -> tuple[str, ...]:
        """The row of the table: ``MoCo minus memory bank at 256``, +4.7, +1.2, 0.03, yes."""
        return (
            f"{self.first} minus {self.second} {self.where}".strip(),
            signed(self.paper),
            signed(self.measured.difference),
            "–" if self.measured.p_holm is None else p_value(self.measured.p_holm),
            _AGREES[self.verdict],
        )


def paper_std() -> float:
    """Return the standard deviation of single runs in points, from the authors' five runs of v1."""
    table = tables_named("linear_readme_trials")[0]
    std = table.rows[0].values[table.metrics.index("standard deviation")]
    if std is None:
        raise ValueError(f"{table.name} has no standard deviation")
    return std


def paper_noise() -> float:
    """Return the difference, in points, up to which two single runs of the papers count as alike.

    It is two standard deviations of the difference of two runs.
    """
    return 2 * math.sqrt(2) * paper_std()


def orders(study: Study) -> list[Order]:
    """Return the orders that exist both in the paper's figure and in the study.

    Within a series, neighbors among the common places are compared; with fewer than two common
    places, the highest place with the lowest one on each side. Two series are compared at each
    common place; with fewer than two common places, by their averages over the places that both
    series have, on each side.
    """
    paper = study.sweep.points()
    series = [name for name in study.values if name in paper]
    pairs: list[_Pair] = []
    for name in series:
        pairs += _within(study, name, paper)
    for i, name in enumerate(series):
        for other in series[:i]:
            pairs += _between(study, name, other, paper[name], paper[other])
    tested = corrected(measured for *_, measured in pairs)
    threshold = paper_noise()
    return [
        Order(first, second, where, value, measured, threshold)
        for (first, second, where, value, _), measured in zip(pairs, tested, strict=True)
    ]


def agreement_table(study: Study) -> tuple[tuple[str, ...], ...]:
    """Return titles and rows of a table with all orders; () if there are none."""
    rows = tuple(order.row for order in orders(study))
    return (_TITLES, *rows) if rows else ()


def agreement(study: Study) -> str:
    """Return sentences that count the rows of the table and name the tests."""
    compared = orders(study)
    if not compared:
        return "This figure and the paper's have no order in common to compare."
    n = Counter(order.verdict for order in compared)
    alike = n["alike"] + n["apart"]
    counts = (
        f"Orders in the paper's figure (differences over {compared[0].threshold:.1f} points): "
        f"{len(compared) - alike}. Same direction here: {n['same'] + n['towards']}, supported by "
        f"the tests: {n['same']}. Opposite direction: {n['opposite'] + n['against']}, supported: "
        f"{n['opposite']}. Equal here: {n['equal']}. Alike in the paper: {alike}, apart here by "
        f"more than that, supported: {n['apart']}."
    )
    return " ".join([counts, _on_tests(compared), *_on_failures(study)])


def _within(study: Study, name: str, paper: Published) -> Iterable[_Pair]:
    measured, published = study.values[name], paper[name]

    def sort(places: Iterable[X]) -> list[X]:
        return sorted(places, key=lambda place: order_of(study.sweep, place))

    def order(pair: Sequence[X], where: str, difference: float) -> _Pair:
        low, high = pair
        compared = _compare(measured[high], measured[low])
        series = f" ({name})" if len(paper) > 1 else ""
        return f"{place_name(high)}{series}", place_name(low), where, difference, compared

    shared = sort(set(measured) & set(published))
    if len(shared) > 1:
        for low, high in itertools.pairwise(shared):
            yield order((low, high), "", published[high] - published[low])
    elif len(measured) > 1 and len(published) > 1:
        papers = sort(published)
        low, high = papers[0], papers[-1]
        where = f"({place_name(high)} and {place_name(low)} in the paper)"
        ends = sort(measured)
        yield order((ends[0], ends[-1]), where, published[high] - published[low])


def _between(
    study: Study, name: str, other: str, one: Mapping[X, float], two: Mapping[X, float]
) -> Iterable[_Pair]:
    first, second = study.values[name], study.values[other]
    measured, published = [x for x in first if x in second], [x for x in one if x in two]
    if not measured or not published:
        return
    shared = [x for x in measured if x in published]
    if len(shared) < 2 and not study.on_the_papers_scale:  # averages say more than one place
        shared = []
    for place in shared:
        where = f"at {place_name(place)}"
        yield name, other, where, one[place] - two[place], _compare(first[place], second[place])
    if not shared:
        difference = sum(one[x] - two[x] for x in published) / len(published)
        where = f"on average over {_places(measured)} here and {_places(published)} in the paper"
        averages = [_average([points[x] for x in measured]) for points in (first, second)]
        yield name, other, where, difference, _compare(*averages)


def _average(points: Sequence[Trials]) -> Trials:
    """Return averages over places, one for each trial that has all places."""
    common = set(points[0]).intersection(*points[1:])
    if not common:  # then there are as many averages as the point with the fewest runs has runs
        columns = zip(*(p.values() for p in points), strict=False)
        return {(-1 - i, 0): sum(c) / len(c) for i, c in enumerate(columns)}
    return {trial: sum(p[trial] for p in points) / len(points) for trial in sorted(common)}


def _compare(one: Trials, two: Trials) -> Comparison:
    """Test a difference; the test is paired if both have the same seeds and so the same images."""
    same = set(one) == set(two) and all(seed >= 0 for seed, _ in one)
    if same:
        return paired([one[t] for t in one], [two[t] for t in one])
    return welch(list(one.values()), list(two.values()))


def _on_tests(compared: Sequence[Order]) -> str:
    tests = sorted({o.measured.test for o in compared if o.measured.test}, reverse=True)
    if not tests:
        return "There are single runs, or runs without spread, so nothing can be tested."
    names = {"paired": "paired t-test over seeds", "Welch": "Welch's t-test"}
    number = sum(o.measured.p is not None for o in compared)
    fewest = min(min(o.measured.n) for o in compared)
    return (
        f"Supported: corrected p < {1 - LEVEL:.2f} in the {' or '.join(names[t] for t in tests)}. "
        f"Number of comparisons in Holm's correction: {number}. Least number of seeds: {fewest}."
    )


def _on_failures(study: Study) -> list[str]:
    parts = []
    for name, places in study.sweep.missing.items():
        for place, how in places.items():
            if place in study.values.get(name, {}):
                parts.append(
                    f"The paper's run at {place} {how}; here it gives {study.summary(name, place)}."
                )
    return parts


def _places(places: Sequence[X]) -> str:
    return ", ".join(map(place_name, places))
