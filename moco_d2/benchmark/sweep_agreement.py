"""What agrees with the paper in kind: which of the orders in its figure are the same here.

Numbers on another dataset have another scale; orders can be compared on any.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from moco_d2.benchmark.paper import tables_named
from moco_d2.benchmark.statistics import Comparison, corrected, paired, welch
from moco_d2.benchmark.sweep_points import Study, Trial, order_of
from moco_d2.benchmark.sweeps import X

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
        threshold: |paper| up to which the paper's two count as alike.
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
        direction or the other without that; where the paper's two are alike, ``alike`` or
        ``apart``, the latter supported.
        """
        if self.alike_in_paper:
            return "apart" if self.ours.supported else "alike"
        same = self.paper * self.ours.difference > 0
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


def paper_noise() -> float:
    """Points up to which two of the papers' single runs count as alike: two standard deviations of
    their difference, each 0.2 by the authors' five trials.
    """
    table = tables_named("linear_readme_trials")[0]
    std = table.rows[0].values[table.metrics.index("standard deviation")]
    return 2 * math.sqrt(2) * std


def orders(study: Study) -> list[Order]:
    """Those that the paper's figure and the study both have.

    Within a series: neighbours among the places that both have; where there are not two, the
    highest place against the lowest of either. Between series: at each place that both have; where
    there is none, the averages over the places that the two series share on either side.
    """
    paper = study.sweep.points()
    series = [name for name in study.values if name in paper]
    found: list[_Pair] = []
    for name in series:
        found += _within(study, name, paper[name])
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
    by: dict[str, list[Order]] = {}
    for order in found:
        by.setdefault(order.verdict, []).append(order)
    parts = []
    ordered = [o for o in found if not o.alike_in_paper]
    if ordered:
        same, towards = len(by.get("same", ())), len(by.get("towards", ()))
        against, opposite = len(by.get("against", ())), len(by.get("opposite", ()))
        parts.append(
            f"Of {_count(len(ordered), 'order')} in the paper's figure (differences over "
            f"{found[0].threshold:.1f} points), {same + towards} "
            f"{_have(same + towards)} the same direction here ({_supported(same)}), "
            f"{against + opposite} the other ({_supported(opposite)})."
        )
    parts += _list("The same", by.get("same"))
    parts += _list("The same direction, within the spread", by.get("towards"))
    parts += _list("The other direction, within the spread", by.get("against"))
    parts += _list("The opposite", by.get("opposite"))
    parts += _list("Alike in the paper, and no difference is shown here", by.get("alike"))
    parts += _list("Alike in the paper, different here", by.get("apart"))
    parts += _on_tests(found)
    parts += _on_failures(study)
    if not found:
        parts.append("The paper's figure and this one have no order in common to compare.")
    return " ".join(parts)


def _within(study: Study, name: str, published: Mapping[X, float]) -> Iterable[_Pair]:
    ours = study.values[name]

    def sort(places: Iterable[X]) -> list[X]:
        return sorted(places, key=lambda place: order_of(study.sweep, place))

    def order(pair: Sequence[X], where: str, difference: float) -> _Pair:
        low, high = pair
        compared = _compare(ours[high], ours[low])
        return f"{name} at {_place(high)}", f"at {_place(low)}", where, difference, compared

    shared = sort(set(ours) & set(published))
    if len(shared) > 1:
        for low, high in itertools.pairwise(shared):
            yield order((low, high), "", published[high] - published[low])
    elif len(ours) > 1 and len(published) > 1:
        papers = sort(published)
        low, high = papers[0], papers[-1]
        where = f"({_place(high)} and {_place(low)} in the paper)"
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
    for place in shared:
        where = f"at {_place(place)}"
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


def _on_tests(found: Sequence[Order]) -> list[str]:
    tests = sorted({o.ours.test for o in found if o.ours.test}, reverse=True)
    if not found:
        return []
    if not tests:
        return ["One run a point: no order can be supported."]
    names = {"paired": "paired t-test over seeds", "Welch": "Welch's t-test"}
    number = sum(o.ours.p is not None for o in found)
    fewest = min(min(o.ours.n) for o in found)
    return [
        f"Supported: {' or '.join(names[t] for t in tests)}, Holm's correction for "
        f"{_count(number, 'comparison')}, with {_count(fewest, 'seed')} or more a point."
    ]


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


def _supported(number: int) -> str:
    return f"{number} supported by the tests"


def _place(place: X) -> str:
    return place if isinstance(place, str) else f"{place:g}" if place < 1e5 else f"{place:,.0f}"


def _places(places: Sequence[X]) -> str:
    return ", ".join(map(_place, places))


def _signed(value: float) -> str:
    value = round(value, 1)
    return f"{value:+.1f}" if value else "0.0"
