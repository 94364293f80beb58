"""Findings of the preflight checks, and the effect of --force on them."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from moco_d2.errors import UserError

logger = logging.getLogger(__name__)

# Share of objects up to which an error is only logged: COCO's own files have a few of them.
_FEW = 0.01


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something in the config, the data or the weights that makes the comparison wrong.

    Attributes:
        key: The config key.
        value: The value of the key.
        message: The problem and its fix.
    """

    key: str
    value: str
    message: str

    def __str__(self) -> str:
        return f"{self.key} is {self.value}: {self.message}"


class Refusal(Finding):
    """A finding that makes training and evaluation impossible: --force does not overrule it."""


class Change(Finding):
    """A setting that the run changes by itself, because its data need it (changes.apply_changes).

    Attributes:
        value: The value that the key gets.
        message: The reason.
    """


def unless_few(key: str, value: str, message: str, share: float) -> Iterator[Finding]:
    """Yield a Finding about objects of a dataset; only log it if the share of them is up to 1%."""
    if share > _FEW:
        yield Finding(key, value, message)
    else:
        logger.warning("%s", message)


def has_refusal(findings: Sequence[Finding]) -> bool:
    """Return whether there is a finding that --force does not overrule."""
    return any(isinstance(finding, Refusal) for finding in findings)


def enforce(findings: Sequence[Finding], *, force: bool, logger: Any) -> None:
    """Raise an error that names all findings except changes; with `force`, only warn about them.

    Raises:
        UserError: If there are such findings and `force` is not set, or if there is a Refusal.
    """
    findings = [finding for finding in findings if not isinstance(finding, Change)]
    stopping = [f for f in findings if not force or isinstance(f, Refusal)]
    if stopping:
        raise UserError(*_listed(stopping))
    for finding in findings:
        logger.warning("preflight, overruled by --force: %s", finding)


def _listed(findings: Sequence[Finding]) -> list[str]:
    """Return one finding as a sentence, or several with one line each."""
    if len(findings) == 1:
        return [f"{findings[0]}; {_force(findings)}"]
    lines = [f"the run has {len(findings)} findings; {_force(findings)}"]
    some = has_refusal(findings) and not all(isinstance(f, Refusal) for f in findings)
    for finding in findings:
        beyond = " (beyond --force)" if some and isinstance(finding, Refusal) else ""
        lines.append(f"  {finding}{beyond}")
    return lines


def _force(findings: Sequence[Finding]) -> str:
    if has_refusal(findings):
        return "--force cannot run it"
    return "--force runs it anyway and marks the record"
