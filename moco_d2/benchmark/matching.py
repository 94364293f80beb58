"""Which runs of a task may be compared, and what has to be said about those that may not."""

from collections import Counter
from collections.abc import Iterable, Sequence

from moco_d2.benchmark.results import Record
from moco_d2.config import FREE_KEYS, flatten, matched_sha256

#: The initialisation that differences are taken to.
BASELINE = "supervised"
_MOST_KEYS_NAMED = 6

#: Footnote signs, in the order they are printed.
MARKS = {
    "mismatched": "†",
    "altered": "#",
    "provenance": "‡",
    "coverage": "§",
    "forced": "¶",
    "imported": "‖",
    "unconfirmed": "*",
}
FOOTNOTES = {
    "altered": "the config in the record has not the fingerprint that the run recorded of it",
    "provenance": "pretrained weights without provenance: nothing says where they come from",
    "coverage": "not every backbone tensor is known to have been loaded from the weights",
    "forced": "the preflight check objected and the run was forced",
    "imported": "run elsewhere and imported: its preflight, weights and environment are not known",
    "unconfirmed": "typed from memory of the paper, unconfirmed",
}


def newest(records: Iterable[Record]) -> tuple[list[Record], list[str]]:
    """One record for each task, initialisation and seed: the newest; and notes on the others.

    A negative seed is Detectron2's "seed from the clock", so such runs are different runs.
    """
    kept: dict[tuple, Record] = {}
    notes = []
    for record in sorted(records, key=lambda r: r.finished):
        key = (record.task, record.initialisation, record.seed)
        if record.seed < 0:
            key += (record.finished,)
        older = kept.pop(key, None)
        if older is not None:
            notes.append(
                f"{record.initialisation}, seed {record.seed}: two records; "
                f"the newest ({record.path}) counts, {older.path} does not."
            )
        kept[key] = record
    return list(kept.values()), notes


class Matching:
    """Which of the runs of one task have the same config, apart from FREE_KEYS.

    Judged by the config in the record, not by the fingerprint beside it. `reference` is the run
    that the others are held against: it has the commonest config, among the baseline's runs if
    there are any.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records
        self._fingerprints = {id(record): matched_sha256(record.config) for record in records}
        among = [r for r in records if r.initialisation == BASELINE] or records
        commonest = Counter(map(self.fingerprint, among)).most_common(1)[0][0]
        self.reference = next(r for r in among if self.fingerprint(r) == commonest)

    def fingerprint(self, record: Record) -> str:
        """Equal for matched runs."""
        return self._fingerprints[id(record)]

    def marks(self, group: Sequence[Record]) -> Iterable[str]:
        """Names, in MARKS, of what is to be said about the runs of one initialisation."""
        pretrained = [r for r in group if r.initialisation != "random"]
        expected = self.fingerprint(self.reference)
        if any(self.fingerprint(r) != expected for r in group):
            yield "mismatched"
        if any(self.fingerprint(r) != r.matched_sha256 for r in group):
            yield "altered"
        if not all(r.has_provenance for r in pretrained):
            yield "provenance"
        if any(r.loaded < max(r.expected, 1) for r in pretrained):
            yield "coverage"
        if any(r.forced for r in group):
            yield "forced"
        if any(r.origin["how"] == "imported" for r in group):
            yield "imported"

    def footnote(self, mark: str) -> str:
        """What `mark` means; for "mismatched" with the config keys that differ."""
        if mark != "mismatched":
            return FOOTNOTES[mark]
        others = {self.fingerprint(r): r for r in self._records}  # one of each config
        expected = flatten(self.reference.config)
        keys: set[str] = set()
        for record in others.values():
            other = flatten(record.config)
            keys |= {k for k in expected | other if expected.get(k) != other.get(k)}
        keys -= set(FREE_KEYS)
        named = sorted(keys)[:_MOST_KEYS_NAMED]
        more = f" and {len(keys) - len(named)} more" if len(keys) > len(named) else ""
        where = f" in {', '.join(named)}{more}" if named else ""
        return (
            f"not matched: the config differs from that of {self.reference.initialisation}{where}"
        )
