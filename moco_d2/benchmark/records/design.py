"""What a suite declares before its numbers are seen: which comparisons may claim an order.

The runner writes the declaration into the folder of the suite, and the tables of the runs in this
folder read it there. The note beside each record says which design held when the run first
started, so a table knows when the declaration is younger, gone, or that of other runs. It has a
time for runs without such a note.
"""

import datetime
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from moco_d2.errors import UserError
from moco_d2.files import check_own, read_plain_json, sha256_of_json, write_json
from moco_d2.records.fields import Name
from moco_d2.records.parsing import parse

DESIGN_FILE = "design.json"
#: The note of the runner beside a record, and its entry for the design at the first start.
NOTE_FILE, NOTED = "cell.json", "declared"
#: Beside the folders of seeds, the folder of the trials of the learning rates of a row.
TRIALS = "tuning"
#: The keys of a suite.
DESIGN_KEYS = ("primary", "comparisons", "margin")
_MOST_BYTES = 1 << 20
_MOST_BYTES_OF_NOTE = 8 << 20
_LEVELS = 4  # SUITE/TASK/INITIALIZATION/seedN/record.json


class Design(msgspec.Struct, frozen=True):
    """The comparisons that are corrected together; an empty field stands for the default.

    Attributes:
        primary: The metrics that may claim an order.
        comparisons: The pairs of rows that may claim one.
        margin: Points. Rows whose difference is surely smaller are called equivalent.
    """

    primary: tuple[Name, ...] = ()
    comparisons: tuple[tuple[Name, Name], ...] = ()
    margin: Annotated[float, Meta(gt=0, le=100)] | None = None


#: The design of a suite that declares nothing.
DEFAULT = Design()


class Declaration(msgspec.Struct, frozen=True, kw_only=True):
    """A design with the time from which it holds; `sha256` shows that nobody edited the file."""

    design: Design
    declared: Annotated[datetime.datetime, Meta(tz=True)]
    sha256: str

    @property
    def edited(self) -> bool:
        """Whether the content has changed since a runner wrote it."""
        return self.sha256 != _fingerprint(self.design, self.declared)


def read_design(
    content: Mapping[str, Any], rows: Iterable[str], metrics: Iterable[str], source: Path
) -> Design:
    """Return the design in the keys DESIGN_KEYS of a suite.

    Args:
        content: These keys and their values; a key may be missing.
        rows: The initializations of the suite.
        metrics: The metrics of tables.
        source: The suite, for errors.

    Raises:
        UserError: If a value has another form, or names a metric or a row that does not exist.
    """
    forms = {
        "primary": "a list of metrics, as in [bbox/AP]",
        "comparisons": "a list of pairs of rows, as in [[moco, supervised]]",
        "margin": "a number of points above 0 and at most 100, as in 0.5",
    }
    for key, value in content.items():
        try:
            design = msgspec.convert({key: value}, Design)
        except msgspec.ValidationError as error:
            raise UserError(f"{source}: {key} must be {forms[key]}, got {value!r:.80}") from error
        if key != "margin" and not getattr(design, key):
            raise UserError(f"{source}: {key} is empty; write {forms[key]}, or remove the key")
    design = msgspec.convert(dict(content), Design)
    for key, names, known in (
        ("primary", design.primary, list(metrics)),
        ("comparisons", [name for pair in design.comparisons for name in pair], list(rows)),
    ):
        if wrong := next((name for name in names if name not in known), None):
            what = "metric" if key == "primary" else "initialization of this suite"
            hint = f"write one of {', '.join(known)}"
            raise UserError(f"{source}: {key} names {wrong!r:.80}, which is no {what}; {hint}")
    if len(set(design.primary)) < len(design.primary):
        raise UserError(f"{source}: primary names a metric twice; remove one of the two")
    pairs = [frozenset(pair) for pair in design.comparisons]
    twice = next((p for p in pairs if len(p) < 2 or pairs.count(p) > 1), None)
    if twice:
        raise UserError(
            f"{source}: comparisons must be different pairs of different rows; remove the "
            f"second {' and '.join(sorted(twice))}"
        )
    return design


def declare(folder: Path, design: Design) -> None:
    """Write the design of a suite into its folder, unless it is the one that holds there.

    Raises:
        UserError: If the file there is damaged or a link, or cannot be written.
    """
    before = read_declaration(folder / DESIGN_FILE)
    if design == (before.design if before else DEFAULT) and not (before and before.edited):
        return
    now = datetime.datetime.now(datetime.timezone.utc)
    check_own(folder / DESIGN_FILE)
    declaration = Declaration(design=design, declared=now, sha256=_fingerprint(design, now))
    write_json(folder / DESIGN_FILE, msgspec.to_builtins(declaration))


def read_declaration(path: Path, *, other: bool = False) -> Declaration | None:
    """Return the declaration in a file; None if there is no file.

    Args:
        path: The file.
        other: Whether the file may be that of another program, which is None, too.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        content = read_plain_json(path, _MOST_BYTES)
        if other and not (isinstance(content, dict) and "declared" in content):
            return None
        return parse(content, Declaration, "declaration of a suite")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {path}: {error}; remove it, and the next `benchmark.py run` of the suite "
            "writes it again"
        ) from error


class Declarations:
    """The declarations and the notes beside many records. What many share is read once."""

    def __init__(self) -> None:
        self._declarations: dict[Path, Declaration | None] = {}
        self._without_links: dict[Path, Path] = {}
        self._trials: dict[Path, set[str | None]] = {}

    def of(self, record: Path) -> Declaration | None:
        """Return what the suite of a record declares; None without a declaration.

        Raises:
            UserError: If a declaration is damaged.
        """
        home = self._real(record.parent)
        for folder in (home, *home.parents[: _LEVELS - 1]):
            if folder not in self._declarations:
                self._declarations[folder] = read_declaration(folder / DESIGN_FILE, other=True)
            if found := self._declarations[folder]:
                return found
        return None

    def noted(self, record: Path) -> str | None:
        """Return noted_design of the run of a record, or that of a trial of its row that differs:
        who declares after the trials of the learning rates has seen their numbers.
        """
        noted, row = noted_design(record.parent), record.parent.parent
        if row not in self._trials:
            self._trials[row] = {noted_design(trial) for trial in (row / TRIALS).glob("*")}
        others = self._trials[row] - {None, noted}
        return min(filter(None, others)) if others else noted

    def _real(self, folder: Path) -> Path:
        if folder.is_symlink() or folder.name in ("", ".."):
            return Path(os.path.realpath(folder))
        above = folder.parent
        if above not in self._without_links:
            self._without_links[above] = Path(os.path.realpath(above))
        return self._without_links[above] / folder.name


def noted_design(folder: Path) -> str | None:
    """Return the fingerprint of the design in the note of a run; another text if the note cannot be
    read, and None if there is no note, or none of a runner that writes the design.

    Args:
        folder: The folder of the run.
    """
    try:
        note = read_plain_json(folder / NOTE_FILE, _MOST_BYTES_OF_NOTE)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return "unreadable"
    is_own = isinstance(note, dict) and "commands" in note  # another program may write such a file
    return str(note[NOTED]) if is_own and NOTED in note else None


def fingerprint_of(design: Design) -> str:
    """Return the SHA-256 of a design, which a note has."""
    return sha256_of_json(msgspec.to_builtins(design))


def _fingerprint(design: Design, declared: datetime.datetime) -> str:
    return sha256_of_json([msgspec.to_builtins(design), declared.isoformat()])
