"""What agrees with the paper in kind: which of the orders in its figure are the same here.

Numbers on another dataset have another scale; orders can be compared on any.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from moco_d2.benchmark.paper import tables_named
from moco_d2.benchmark.statistics import LEVEL, Comparison, corrected, paired, welch
from moco_d2.benchmark.sweeps.definitions import Published, X, place_name
from moco_d2.benchmark.sweeps.points import Study, Trial, order_of

_MEANING = {
    "same": "same, supported",
    "towards": "same, not supported",
    "opposite": "opposite, supported",
    "against": "opposite, not supported",
    "equal": "equal here",
    "alike": "alike in the paper, not apart here",
    "apart": "alike in the paper, apart here, supported",
}

Trials = Mapping[Trial, float]
# First, second, where, the paper's difference, and ours.
_Pair = tuple[str, str, str, float, Comparison]


@dataclass(frozen=True)
class Order:
    """Two points, or averages of points, of the paper's figure, and the same two here.

    Attributes:
        first, second, where: what is compared, "MoCo", "memory bank", "at 256".
        paper: the paper's difference, first minus second, points.
        ours: the same here, corrected for all that are compared together.
        threshold: difference, in points, up to which the paper's two count as alike; and here, for
            saying that they are not.
    """

    first: str
    second: str
    where: str
    paper: float
    ours: Comparison
    threshold: float

    @property
    def alike_in_paper(self) -> bool:
        return abs(self.paper) <= self.threshold

    @property
    def verdict(self) -> str:
        """``same`` or ``opposite``, supported by the tests; ``towards`` or ``against``, the same
        direction or the other without that; ``equal`` as printed; where the paper's two are alike,
        ``alike`` or ``apart``, the latter supported and beyond the threshold.
        """
        if self.alike_in_paper:
            apart = self.ours.supported and abs(self.ours.difference) > self.threshold
            return "apart" if apart else "alike"
        same = self.paper * self.ours.difference > 0
        if not self.ours.supported and _signed(self.ours.difference) == _signed(0):
            return "equal"
        if self.ours.supported:
            return "same" if same else "opposite"
        return "towards" if same else "against"

    def text(self) -> str:
        """``MoCo and memory bank at 256: +1.2 here, +4.7 in the paper``"""
        where = f" {self.where}" if self.where else ""
        return (
            f"{self.first} minus {self.second}{where}: {_signed(self.ours.difference)} here, "
            f"{_signed(self.paper)} in the paper"
        )


def paper_std() -> float:
    """Standard deviation of the papers' single runs, points: the authors' of five runs of v1."""
    table = tables_named("linear_readme_trials")[0]
    std = table.rows[0].values[table.metrics.index("standard deviation")]
    if std is None:
        raise ValueError(f"{table.name} has no standard deviation")
    return std


def paper_noise() -> float:
    """Points up to which two of the papers' single runs count as alike: two standard deviations of
    their difference.
    """
    return 2 * math.sqrt(2) * paper_std()


def orders(study: Study) -> list[Order]:
    """Those that the paper's figure and the study both have.

    Within a series: neighbors among the places that both have; where there are not two, the
    highest place against the lowest of either. Between series: at each place that both have; where
    there are not two, the averages over the places that the series share, on either side.
    """
    paper = study.sweep.points()
    series = [name for name in study.values if name in paper]
    found: list[_Pair] = []
    for name in series:
        found += _within(study, name, paper)
    for i, name in enumerate(series):
        for other in series[:i]:
            found += _between(study, name, other, paper[name], paper[other])
    tested = corrected(ours for *_, ours in found)
    threshold = paper_noise()
    return [
        Order(first, second, where, value, ours, threshold)
        for (first, second, where, value, _), ours in zip(found, tested, strict=True)
    ]


def agreement(study: Study) -> str:
    """Sentences on what agrees in kind and what does not, from the numbers alone."""
    found = orders(study)
    if not found:
        return "This figure and the paper's have no order in common to compare."
    by: dict[str, list[Order]] = {}
    for order in found:
        by.setdefault(order.verdict, []).append(order)
    number = {verdict: len(members) for verdict, members in by.items()}
    same, other = (
        (number.get(supported, 0), number.get(within, 0))
        for supported, within in (("same", "towards"), ("opposite", "against"))
    )
    parts = []
    equal = number.get("equal", 0)
    if total := sum(same) + sum(other) + equal:
        opposite = f"{sum(other)} the opposite ({other[0]} supported)" if sum(other) else ""
        parts.append(
            f"Of {_count(total, 'order')} in the paper's figure (differences over "
            f"{found[0].threshold:.1f} points), {sum(same)} {_have(sum(same))} the same direction "
            f"here ({same[0]} supported by the tests), {opposite or 'none the opposite'}"
            f"{f', {equal} no difference' if equal else ''}."
        )
    parts += _list("Opposite, supported", by.get("opposite"))
    parts += _list("Opposite, not supported", by.get("against"))
    if alike := number.get("alike", 0) + number.get("apart", 0):
        apart = number.get("apart", 0)
        parts.append(
            f"Of {_count(alike, 'pair')} that the paper has alike, {apart or 'none'} "
            f"{'are' if apart > 1 else 'is'} apart here by more than that, supported by the tests."
        )
    parts += _list("Apart", by.get("apart"))
    return " ".join([*parts, _on_tests(found), *_on_failures(study)])


def listed(study: Study) -> str:
    """Every order that is compared, with both differences."""
    return "; ".join(f"{order.text()} ({_MEANING[order.verdict]})" for order in orders(study))


def _within(study: Study, name: str, paper: Published) -> Iterable[_Pair]:
    ours, published = study.values[name], paper[name]

    def sort(places: Iterable[X]) -> list[X]:
        return sorted(places, key=lambda place: order_of(study.sweep, place))

    def order(pair: Sequence[X], where: str, difference: float) -> _Pair:
        low, high = pair
        compared = _compare(ours[high], ours[low])
        of = f" ({name})" if len(paper) > 1 else ""
        return f"{place_name(high)}{of}", place_name(low), where, difference, compared

    shared = sort(set(ours) & set(published))
    if len(shared) > 1:
        for low, high in itertools.pairwise(shared):
            yield order((low, high), "", published[high] - published[low])
    elif len(ours) > 1 and len(published) > 1:
        papers = sort(published)
        low, high = papers[0], papers[-1]
        where = f"({place_name(high)} and {place_name(low)} in the paper)"
        ends = sort(ours)
        yield order((ends[0], ends[-1]), where, published[high] - published[low])


def _between(
    study: Study, name: str, other: str, one: Mapping[X, float], two: Mapping[X, float]
) -> Iterable[_Pair]:
    ours, theirs = study.values[name], study.values[other]
    here, papers = [x for x in ours if x in theirs], [x for x in one if x in two]
    if not here or not papers:
        return
    shared = [x for x in here if x in papers]
    if len(shared) < 2 and not study.on_the_papers_scale:  # averages say more than one place
        shared = []
    for place in shared:
        where = f"at {place_name(place)}"
        yield name, other, where, one[place] - two[place], _compare(ours[place], theirs[place])
    if not shared:
        difference = sum(one[x] - two[x] for x in papers) / len(papers)
        where = f"on average over {_places(here)} here and {_places(papers)} in the paper"
        compared = _compare(_average([ours[x] for x in here]), _average([theirs[x] for x in here]))
        yield name, other, where, difference, compared


def _average(points: Sequence[Trials]) -> Trials:
    """Over places, of the trials that have all of them."""
    common = set(points[0]).intersection(*points[1:])
    if not common:  # as many values as the point with the fewest runs
        columns = zip(*(p.values() for p in points), strict=False)
        return {(-1 - i, 0): sum(c) / len(c) for i, c in enumerate(columns)}
    return {trial: sum(p[trial] for p in points) / len(points) for trial in sorted(common)}


def _compare(one: Trials, two: Trials) -> Comparison:
    """Paired where both have the same seeds, from which they have the same images in the same
    order.
    """
    same = set(one) == set(two) and all(seed >= 0 for seed, _ in one)
    if same:
        return paired([one[t] for t in one], [two[t] for t in one])
    return welch(list(one.values()), list(two.values()))


def _on_tests(found: Sequence[Order]) -> str:
    tests = sorted({o.ours.test for o in found if o.ours.test}, reverse=True)
    if not tests:
        return "Single runs, or runs without any spread: there is nothing to test against."
    names = {"paired": "paired t-test over seeds", "Welch": "Welch's t-test"}
    number = sum(o.ours.p is not None for o in found)
    fewest = min(min(o.ours.n) for o in found)
    return (
        f"Supported: corrected p < {1 - LEVEL:.2f} in the "
        f"{' or '.join(names[t] for t in tests)}, Holm's correction for "
        f"{_count(number, 'comparison')}; {_count(fewest, 'seed')} or more a point."
    )


def _on_failures(study: Study) -> list[str]:
    parts = []
    for name, places in study.sweep.missing.items():
        for place, how in places.items():
            if place in study.values.get(name, {}):
                summary = study.summary(name, place)
                spread = "" if summary.std is None else f" ± {summary.std:.1f}"
                parts.append(
                    f"The paper's run at {place} {how}; here it gives {summary.mean:.1f}{spread}."
                )
    return parts


def _list(title: str, found: Sequence[Order] | None) -> list[str]:
    return [f"{title}: {'; '.join(o.text() for o in found)}."] if found else []


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


def _places(places: Sequence[X]) -> str:
    return ", ".join(map(place_name, places))


def _signed(value: float) -> str:
    value = round(value, 1)
    return f"{value:+.1f}" if value else "0.0"
