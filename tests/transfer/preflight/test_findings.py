import logging

import pytest

from moco_d2.errors import UserError
from moco_d2.transfer.preflight.findings import Change, Finding, Refusal, enforce, has_refusal

logger = logging.getLogger("test")
SEED = Finding("SEED", "-1", "not repeatable; set SEED 1")
FREEZE = Finding("MODEL.BACKBONE.FREEZE_AT", "2", "it freezes; set it to 0")
CLASSES = Refusal("MODEL.ROI_HEADS.NUM_CLASSES", "1", "the dataset has 2; set it to 2")


def said(*findings, force=False):
    with pytest.raises(UserError) as caught:
        enforce(findings, force=force, logger=logger)
    return str(caught.value)


def test_one_finding_is_a_sentence():
    assert said(SEED) == (
        "SEED is -1: not repeatable; set SEED 1; --force runs it anyway and marks the record"
    )


def test_several_are_all_named():
    assert said(FREEZE, SEED) == (
        "the run has 2 findings; --force runs it anyway and marks the record\n"
        "  MODEL.BACKBONE.FREEZE_AT is 2: it freezes; set it to 0\n"
        "  SEED is -1: not repeatable; set SEED 1"
    )


def test_what_cannot_run_says_so():
    assert said(CLASSES).endswith("set it to 2; --force cannot run it")
    assert said(SEED, CLASSES) == (
        "the run has 2 findings; --force cannot run it\n"
        "  SEED is -1: not repeatable; set SEED 1\n"
        "  MODEL.ROI_HEADS.NUM_CLASSES is 1: the dataset has 2; set it to 2 (beyond --force)"
    )
    assert has_refusal([SEED, CLASSES]) and not has_refusal([SEED])


def test_force_makes_warnings_of_those_that_can_run(caplog):
    with caplog.at_level(logging.WARNING):
        enforce([FREEZE, SEED], force=True, logger=logger)
    assert [record.getMessage() for record in caplog.records] == [
        f"preflight, overruled by --force: {finding}" for finding in (FREEZE, SEED)
    ]
    # The one that is left is named alone.
    assert said(SEED, CLASSES, force=True) == f"{CLASSES}; --force cannot run it"


def test_a_change_stops_nothing_and_is_not_listed(caplog):
    change = Change("INPUT.MASK_FORMAT", "bitmask", "masks are run-length codes")
    enforce([change], force=False, logger=logger)
    assert not caplog.records and not has_refusal([change])
    assert said(change, SEED) == said(SEED)


def test_nothing_found_is_nothing_said(caplog):
    enforce([], force=False, logger=logger)
    assert not caplog.records
