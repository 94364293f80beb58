"""Which runs of a task may be compared, and what has to be said about those that may not."""

from collections import Counter
from collections.abc import Iterable

from moco_d2.benchmark.results import Record
from moco_d2.config import flatten

#: The initialisation that differences are taken to.
BASELINE = "supervised"
# In these the runs of one task may differ.
_FREE_KEYS = {"MODEL.WEIGHTS", "SEED", "OUTPUT_DIR"}
_MOST_KEYS_NAMED = 6

#: Footnote signs, in the order they are printed.
MARKS = {"mismatched": "†", "provenance": "‡", "coverage": "§", "forced": "¶", "unconfirmed": "*"}
FOOTNOTES = {
    "provenance": "pretrained weights without provenance: nothing says where they come from",
    "coverage": "not every backbone tensor was loaded from the weights",
    "forced": "the preflight check objected and the run was forced",
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


def reference(records: list[Record]) -> Record:
    """The run whose config the others are held against.

    It has the commonest config, among the baseline's runs if there are any.
    """
    among = [r for r in records if r.initialisation == BASELINE] or records
    commonest = Counter(r.matched_sha256 for r in among).most_common(1)[0][0]
    return next(r for r in among if r.matched_sha256 == commonest)


def marks(group: list[Record], reference: Record) -> Iterable[str]:
    """Names, in MARKS, of what is to be said about the runs of one initialisation."""
    pretrained = [r for r in group if r.initialisation != "random"]
    if any(r.matched_sha256 != reference.matched_sha256 for r in group):
        yield "mismatched"
    if not all(r.has_provenance for r in pretrained):
        yield "provenance"
    if any(r.loaded < max(r.expected, 1) for r in pretrained):
        yield "coverage"
    if any(r.forced for r in group):
        yield "forced"


def mismatch_text(records: list[Record], reference: Record) -> str:
    """The footnote of "mismatched", with the config keys that differ."""
    expected = flatten(reference.config)
    keys: set[str] = set()
    for record in records:
        if record.matched_sha256 != reference.matched_sha256:
            other = flatten(record.config)
            keys |= {k for k in expected | other if expected.get(k) != other.get(k)} - _FREE_KEYS
    named = sorted(keys)[:_MOST_KEYS_NAMED]
    more = f" and {len(keys) - len(named)} more" if len(keys) > len(named) else ""
    where = f" in {', '.join(named)}{more}" if named else ""
    return f"not matched: the config differs from that of {reference.initialisation}{where}"
