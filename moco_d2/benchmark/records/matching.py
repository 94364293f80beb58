"""Rules for which runs of a task are matched, and footnotes for all others."""

import functools
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from moco_d2.benchmark.records.run_records import Record
from moco_d2.config.plain import flatten, without_free_keys
from moco_d2.files import sha256_of_json

#: Differences are taken to the first of these initializations that has runs.
BASELINES = ("supervised", "supervised_vit")
#: Pretexts in the checkpoints of tools/pretrain.py. Initializations are named after them.
PRETEXTS = ("moco", "supervised")
_MOST_KEYS_NAMED = 6

#: Footnote signs, in printed order.
MARKS = {
    "mismatched": "†",
    "altered": "#",
    "weights": "◊",
    "repeated": "≡",
    "provenance": "‡",
    "coverage": "§",
    "forced": "¶",
    "resumed": "↻",
    "imported": "‖",
    "msra_baseline": "△",
    "small_batchnorm": "▽",
    "own_rate": "▷",
    "unconfirmed": "*",
}
FOOTNOTES = {
    "altered": "the config in the record does not have the fingerprint that the run recorded",
    "repeated": "another run has the same numbers to the last bit: one run under two names",
    "provenance": "the pretrained weights have no provenance, so their origin is unknown",
    "coverage": "not every backbone tensor is known to have been loaded from the weights",
    "forced": "the run was forced in spite of findings of the preflight",
    "resumed": "the run was resumed with other settings",
    "imported": "the run was imported: its preflight, weights and environment are not known",
    "msra_baseline": (
        "the paper's supervised run starts from MSRA's weights (BGR input, stride in the 1x1 "
        "convolution) and this one from torchvision's, so the gap has no verdict"
    ),
    "small_batchnorm": (
        "BatchNorm computed its statistics from fewer images than a step of the paper has, which "
        "alone can cause a gap, so it has no verdict"
    ),
    "own_rate": (
        "the published row or the run was fine-tuned with a learning rate of its own, which alone "
        "can cause a gap, so it has no verdict"
    ),
    "unconfirmed": "typed from memory of the paper, unconfirmed",
}


def newest(records: Iterable[Record]) -> tuple[list[Record], list[str]]:
    """Return the newest record of each task, initialization and seed, and notes on older ones.

    A negative seed is taken from the clock in Detectron2, so runs with it are different runs.
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


def first_baseline(initializations: Container[str]) -> str | None:
    """Return the one of BASELINES that is among some initializations."""
    return next((name for name in BASELINES if name in initializations), None)


class Matching:
    """Compares the runs of one task: matched runs have equal configs, except free keys, and data.

    It compares the configs in the records, not the fingerprints beside them, the settings that
    changed at a resume, and the recorded numbers of images. All runs are compared with `reference`,
    which has the most common config of the baseline, or of all runs if there is no baseline.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records
        self._fingerprints = {id(record): _fingerprint(record.config) for record in records}
        baseline = first_baseline({record.initialization for record in records})
        among = [r for r in records if r.initialization == baseline] or records
        commonest = Counter(map(self.fingerprint, among)).most_common(1)[0][0]
        self.reference = next(r for r in among if self.fingerprint(r) == commonest)
        # Matched initializations differ in their weights, so each weights file has one name.
        self._names: dict[tuple[str | None, str], set[str]] = {}
        for record in records:
            self._names.setdefault(self._start(record), set()).add(record.initialization)
        numbers = Counter(map(_numbers, records))
        self._repeated = {id(r) for r in records if _numbers(r) and numbers[_numbers(r)] > 1}

    def fingerprint(self, record: Record) -> str:
        """Return a text that is equal for matched runs: a hash of the config, and its changes."""
        changes = [record.changes] if record.changes else []
        return " ".join(map(str, [self._fingerprints[id(record)], *changes]))

    def marks(self, group: Sequence[Record]) -> Iterable[str]:
        """Yield the names in MARKS that apply to the runs of one initialization."""
        pretrained = [r for r in group if r.initialization != "random"]
        expected = self.fingerprint(self.reference)
        if any(self.fingerprint(r) != expected or self._other_data(r) for r in group):
            yield "mismatched"
        if any(self._fingerprints[id(r)] != r.matched_sha256 for r in group):
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
        if any(r.changes for r in group):
            yield "resumed"
        if any(r.origin["how"] == "imported" for r in group):
            yield "imported"

    def _start(self, record: Record) -> tuple[str | None, str]:
        return record.weights_sha256, self.fingerprint(record)

    def _doubts_about_weights(self, record: Record) -> str:
        """Return why the weights of a run contradict its name; "" if they do not."""
        name = record.initialization
        if name == "random" and (record.weights_sha256 or record.loaded):
            return f"{name} started from weights"
        trained = record.origin["how"] == "trained"
        if name != "random" and trained and not record.weights_sha256 and not record.loaded:
            return f"{name} started from random initialization"
        method = next((m for m in PRETEXTS if name.startswith(m)), None)
        if method and record.pretext in PRETEXTS and record.pretext != method:
            return f"{name} started from weights that were pretrained by {record.pretext}"
        names = self._names[self._start(record)]
        if record.weights_sha256 and len(names) > 1:
            return f"{' and '.join(sorted(names))} started from the same weights file"
        return ""

    def _other_data(self, record: Record) -> bool:
        """Return whether a dataset of the same name had another number of images."""
        counts = (_counts(record), _counts(self.reference))
        return any(counts[0][key] != counts[1][key] for key in counts[0].keys() & counts[1].keys())

    def footnote(self, mark: str) -> str:
        """Return the text of `mark`, with the differing keys or the reason where there are any."""
        if mark == "weights":
            return "; ".join(
                dict.fromkeys(filter(None, map(self._doubts_about_weights, self._records)))
            )
        if mark == "resumed":
            changes = [change for record in self._records for change in record.changes]
            return f"{FOOTNOTES[mark]}: " + _listed(
                f"{c['key']} {c['before']} -> {c['after']} after {c['iteration']} iterations"
                for c in changes
            )
        if mark == "small_batchnorm":
            return f"{FOOTNOTES[mark]}; images: " + _listed(
                f"{r.initialization} {r.batchnorm_images}"
                for r in self._records
                if r.batchnorm_images
            )
        if mark != "mismatched":
            return FOOTNOTES[mark]
        others = {self.fingerprint(r): r for r in self._records}  # one of each config
        expected = flatten(without_free_keys(self.reference.config))
        keys: set[str] = set()
        for record in others.values():
            other = flatten(without_free_keys(record.config))
            keys |= {k for k in expected | other if expected.get(k) != other.get(k)}
        if any(map(self._other_data, self._records)):
            keys.add("the number of images")
        if len({str(record.changes) for record in self._records}) > 1:
            keys.add("settings that changed at a resume")
        where = f" in {_listed(sorted(keys))}" if keys else ""
        return f"not matched: differs from {self.reference.initialization}{where}"


def _listed(texts: Iterable[str]) -> str:
    """Return different texts as a list that names the first ones."""
    different = list(dict.fromkeys(texts))
    more = len(different) - _MOST_KEYS_NAMED
    return ", ".join(different[:_MOST_KEYS_NAMED]) + (f" and {more} more" if more > 0 else "")


def _fingerprint(config: Mapping[str, Any]) -> str:
    """Return the same hash as matched_sha256, but compute it once for runs with equal configs."""
    return _sha256_of(msgspec.json.encode(without_free_keys(config)))


@functools.lru_cache(maxsize=256)
def _sha256_of(config: bytes) -> str:
    return sha256_of_json(msgspec.json.decode(config))


def _counts(record: Record) -> dict[str, int]:
    """Return the recorded numbers of images of the training set and of each test set."""
    data = record.data or {}
    counts = {"train": data.get("train_images"), **data.get("test_images", {})}
    return {key: value for key, value in counts.items() if value is not None}


def _numbers(record: Record) -> tuple[tuple[str, float], ...]:
    """Return all metrics of a run, for the search of repeated runs; () if all are 0."""
    metrics = [(name, value) for name, value in record.metrics.items() if value is not None]
    return tuple(sorted(metrics)) if any(value for _, value in metrics) else ()
