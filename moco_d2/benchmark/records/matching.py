"""Which runs of a task may be compared, and what has to be said about those that may not."""

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from moco_d2.benchmark.records.results import Record
from moco_d2.config.plain import FREE_KEYS, flatten, without_free_keys
from moco_d2.files import sha256_of_json

#: The initialization that differences are taken to.
BASELINE = "supervised"
#: What pretraining writes into its checkpoints, and initializations are named after.
PRETEXTS = ("moco", "supervised")
_MOST_KEYS_NAMED = 6

#: Footnote signs, in the order they are printed.
MARKS = {
    "mismatched": "†",
    "altered": "#",
    "weights": "◊",
    "repeated": "≡",
    "provenance": "‡",
    "coverage": "§",
    "forced": "¶",
    "imported": "‖",
    "unconfirmed": "*",
}
FOOTNOTES = {
    "altered": "the config in the record has not the fingerprint that the run recorded of it",
    "repeated": "another run has the same numbers to the last bit: one run under two names",
    "provenance": "pretrained weights without provenance: nothing says where they come from",
    "coverage": "not every backbone tensor is known to have been loaded from the weights",
    "forced": "the preflight check objected and the run was forced",
    "imported": "run elsewhere and imported: its preflight, weights and environment are not known",
    "unconfirmed": "typed from memory of the paper, unconfirmed",
}


def newest(records: Iterable[Record]) -> tuple[list[Record], list[str]]:
    """One record for each task, initialization and seed: the newest; and notes on the others.

    A negative seed is Detectron2's "seed from the clock", so such runs are different runs.
    """
    kept: dict[tuple[object, ...], Record] = {}
    notes = []
    for record in sorted(records, key=lambda r: r.finished):
        key: tuple[object, ...] = (record.task, record.initialization, record.seed)
        if record.seed < 0:
            key += (record.finished, record.origin["source"])
        older = kept.pop(key, None)
        if older is not None:
            notes.append(
                f"{record.initialization}, seed {record.seed}: two records; "
                f"the newest ({record.path}) counts, {older.path} does not."
            )
        kept[key] = record
    return list(kept.values()), notes


class Matching:
    """Which of the runs of one task have the same config, apart from FREE_KEYS, and the same data.

    Judged by the config in the record, not by the fingerprint beside it, and by the numbers of
    images that were found. `reference` is the run that the others are held against: it has the
    commonest config, among the baseline's runs if there are any.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records
        self._fingerprints = {id(record): _fingerprint(record.config) for record in records}
        among = [r for r in records if r.initialization == BASELINE] or records
        commonest = Counter(map(self.fingerprint, among)).most_common(1)[0][0]
        self.reference = next(r for r in among if self.fingerprint(r) == commonest)
        # Matched initializations differ in their weights, so that one file has one name.
        self._names: dict[tuple[str | None, str], set[str]] = {}
        for record in records:
            self._names.setdefault(self._start(record), set()).add(record.initialization)
        numbers = Counter(map(_numbers, records))
        self._repeated = {id(r) for r in records if _numbers(r) and numbers[_numbers(r)] > 1}

    def fingerprint(self, record: Record) -> str:
        """Equal for matched runs."""
        return self._fingerprints[id(record)]

    def marks(self, group: Sequence[Record]) -> Iterable[str]:
        """Names, in MARKS, of what is to be said about the runs of one initialization."""
        pretrained = [r for r in group if r.initialization != "random"]
        expected = self.fingerprint(self.reference)
        if any(self.fingerprint(r) != expected or self._other_data(r) for r in group):
            yield "mismatched"
        if any(self.fingerprint(r) != r.matched_sha256 for r in group):
            yield "altered"
        if any(self._doubts_about_weights(r) for r in group):
            yield "weights"
        if any(id(r) in self._repeated for r in group):
            yield "repeated"
        if not all(r.has_provenance for r in pretrained):
            yield "provenance"
        if any(r.loaded < max(r.expected, 1) for r in pretrained):
            yield "coverage"
        if any(r.forced for r in group):
            yield "forced"
        if any(r.origin["how"] == "imported" for r in group):
            yield "imported"

    def _start(self, record: Record) -> tuple[str | None, str]:
        return record.weights_sha256, self.fingerprint(record)

    def _doubts_about_weights(self, record: Record) -> str:
        """Why a run's initialization is not what its name says; empty if nothing speaks for it."""
        name = record.initialization
        if name == "random" and (record.weights_sha256 or record.loaded):
            return f"{name} started from weights"
        method = next((m for m in PRETEXTS if name.startswith(m)), None)
        if method and record.pretext in PRETEXTS and record.pretext != method:
            return f"{name} started from weights that were pretrained by {record.pretext}"
        names = self._names[self._start(record)]
        if record.weights_sha256 and len(names) > 1:
            return f"{' and '.join(sorted(names))} started from the same weights file"
        return ""

    def _other_data(self, record: Record) -> bool:
        """Whether a dataset of the same name held another number of images."""
        counts = (_counts(record), _counts(self.reference))
        return any(counts[0][key] != counts[1][key] for key in counts[0].keys() & counts[1].keys())

    def footnote(self, mark: str) -> str:
        """What `mark` means; for "mismatched" with the config keys that differ, and for "weights"
        with the reason.
        """
        if mark == "weights":
            return "; ".join(
                dict.fromkeys(filter(None, map(self._doubts_about_weights, self._records)))
            )
        if mark != "mismatched":
            return FOOTNOTES[mark]
        others = {self.fingerprint(r): r for r in self._records}  # one of each config
        expected = flatten(self.reference.config)
        keys: set[str] = set()
        for record in others.values():
            other = flatten(record.config)
            keys |= {k for k in expected | other if expected.get(k) != other.get(k)}
        keys -= set(FREE_KEYS)
        if any(map(self._other_data, self._records)):
            keys.add("the number of images")
        named = sorted(keys)[:_MOST_KEYS_NAMED]
        more = f" and {len(keys) - len(named)} more" if len(keys) > len(named) else ""
        where = f" in {', '.join(named)}{more}" if named else ""
        return f"not matched: differs from {self.reference.initialization}{where}"


def _fingerprint(config: Mapping[str, Any]) -> str:
    """As matched_sha256, whose canonical JSON takes longer than all else; runs share configs."""
    return _sha256_of(msgspec.json.encode(without_free_keys(config)))


@functools.lru_cache(maxsize=256)
def _sha256_of(config: bytes) -> str:
    return sha256_of_json(msgspec.json.decode(config))


def _counts(record: Record) -> dict[str, int]:
    """Images of training and of each test set, where the record says."""
    data = record.data or {}
    counts = {"train": data.get("train_images"), **data.get("test_images", {})}
    return {key: value for key, value in counts.items() if value is not None}


def _numbers(record: Record) -> tuple[tuple[str, float], ...]:
    """The results by which two runs are told apart; none where there are only zeros."""
    found = [(name, value) for name, value in record.metrics.items() if value is not None]
    return tuple(sorted(found)) if any(value for _, value in found) else ()
