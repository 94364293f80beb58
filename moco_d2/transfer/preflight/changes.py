"""The effect of preflight.findings.Change on the plan of a run."""

import dataclasses
from collections.abc import Sequence

from moco_d2.transfer.plan import RunPlan
from moco_d2.transfer.preflight.findings import Change, Finding


def apply_changes(plan: RunPlan, findings: Sequence[Finding]) -> tuple[RunPlan, list[Finding]]:
    """Return the plan with all changes, which its schedule's notes state, and the other findings.

    Log and record contain the notes.
    """
    changes = [finding for finding in findings if isinstance(finding, Change)]
    if not changes:
        return plan, list(findings)
    cfg = plan.cfg.clone()
    cfg.defrost()
    for change in changes:
        cfg.merge_from_list([change.key, change.value])
    cfg.freeze()
    notes = [f"{c.key} -> {c.value}: {c.message}" for c in changes]
    schedule = {**plan.schedule, "notes": [*plan.schedule["notes"], *notes]}
    others = [finding for finding in findings if not isinstance(finding, Change)]
    return dataclasses.replace(plan, cfg=cfg, schedule=schedule), others
