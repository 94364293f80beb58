"""docs/reliability.md from the figures of campaigns, soak and mutations."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fault_kinds.case import Kind

# An absent one is a section that says so.
CAMPAIGNS, SOAK = "results/campaigns/faults.json", "results/campaigns/soak.json"
MUTATIONS, UNTRUSTED = "results/campaigns/mutations.json", "docs/reliability_untrusted.md"
FUZZING = {"checkpoints": "fuzz_checkpoints", "configs and suites": "fuzz_yaml"}

# ruff: noqa: E501 - Markdown
_INTRODUCTION = """# Reliability

What a run of days can count on, how that is tried, and the figures of the last time. This page is
written by `python campaigns/faults.py --render docs/reliability.md`.

A fault is dealt to a real command of `tools/` at tiny settings, in a forked process; it follows
from the seed, its kind and its number. Kills come after a random time, or at one of the run's own
changes of its folder: before a file is opened, flushed, renamed or removed, or with a part of a
checkpoint written. "The same result" compares every tensor, optimizer and generator state, metric
and record with those of a run that nothing disturbed.

```sh
python campaigns/faults.py --list                                   # the kinds
python campaigns/faults.py --only 'kill *' --count 5 --minutes 5    # some; exit code 1 if one fails
python campaigns/faults.py --json results/campaigns/faults.json             # all; figures are added there
python campaigns/faults.py --soak 60 --json results/campaigns/soak.json
```

"""

_RULES = """
## How a run ends, and goes on

| exit code | |
|---|---|
| 0 | done |
| 2 | one sentence says what to mend: a mistake, or what the machine did (no space, no memory, a process that is gone) |
| 129, 130, 143 | SIGHUP (a closed terminal, unless `nohup` ignores it), SIGINT (Ctrl-C), SIGTERM: while the run trains, the step at hand is finished and saved; before the first step and after the last, it ends at once. 128 + the signal's number, as shells and schedulers expect |
| -1, -2, -15 in a scheduler's account | The signal came when all was done and Python was ending, or to one of several processes before the first step: nothing was lost |

A signal may go to the whole process group, as `timeout`, systemd, `scancel` and containers send it:
processes that load images leave it to the run, and end with it, also after `kill -9`. The same
signal within 2 seconds counts once (`timeout` itself then reports 124, unless `--preserve-status` is
given); a second Ctrl-C after that stops at once, without saving.

The same command with `--resume` continues in every case; it also starts a run that has no
checkpoint yet, so that a job script need not tell the two apart. Under SLURM (`--submit`), a
preempted or timed-out job is saved and queued again by itself; under torchrun, a restart resumes.

Several processes: one that waits for another gives up after `MOCO_D2_TIMEOUT` seconds (1800 unless
set). Each then says which rank gave no word.

## What is not promised

- `log.txt`, `metrics.json` and TensorBoard's files grow line by line; a kill may cut the last line
  short. A restart cuts `metrics.json` back to its checkpoint, and reads past such a line.
  `config.yaml`, which Detectron2 writes, is written anew at every start.
- What was trained since the last checkpoint is trained again: SIGKILL leaves no time to save.
- On three processes and more, a restarted run equals the undisturbed one to rounding, not to the
  bit: DistributedDataParallel adds gradients in another order in the first step after a start.
- A second run in the same OUTPUT_DIR (or `--output`, or a second suite in a suite's folder, or a
  second conversion to the same file) is refused for as long as the first is at work, on this and on
  other machines; but not on a file system without locks, which a warning says, nor once the folder
  has been removed meanwhile.
- A signal during an evaluation between two steps waits for the end of the evaluation.
- Full disks are tried on tmpfs, a disk that turns read-only with a bind mount, where the user may
  mount; power cuts are not tried (files are flushed before they are renamed, and so are folders).
"""


def render(folder: Path, kinds: Iterable[Kind]) -> str:
    """The page.

    Args:
        folder: the checkout, which has the files of figures.
        kinds: in the order of the page.
    """
    return "\n".join(
        [
            _INTRODUCTION.rstrip() + "\n",
            _faults(_read(folder / CAMPAIGNS), list(kinds)),
            _RULES.strip() + "\n",
            _soak(_read(folder / SOAK)),
            _mutations(_read(folder / MUTATIONS)),
            _untrusted(folder / UNTRUSTED),
            _fuzzing(folder),
        ]
    )


def _read(file: Path) -> Any:
    return json.loads(file.read_text()) if file.exists() else None


def _faults(content: dict[str, Any] | None, kinds: list[Kind]) -> str:
    lines = ["## Faults", ""]
    campaigns = (content or {}).get("campaigns", [])
    if not campaigns:
        return "\n".join([*lines, "No campaign has been run yet.", ""])
    dates = sorted({c["date"] for c in campaigns})
    hardware = sorted({c["hardware"] for c in campaigns})
    versions = sorted({f"torch {c['versions']['torch']}" for c in campaigns})
    lines += [
        f"{len(campaigns)} campaigns, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}, on "
        f"{' and '.join(hardware)}, {', '.join(versions)}.",
        "",
        "| kind | promise | faults | failures |",
        "|---|---|---|---|",
    ]
    sums = {"faults": 0, "failures": 0}
    figures: dict[str, float] = {}
    for kind in kinds:
        of = [c["kinds"][kind.name] for c in campaigns if kind.name in c["kinds"]]
        faults, failures = (sum(o[name] for o in of) for name in ("faults", "failures"))
        sums["faults"] += faults
        sums["failures"] += failures
        for one in of:
            for name, number in one["figures"].items():
                figures[name] = figures.get(name, 0) + number
        lines.append(
            f"| {kind.name} | {kind.promise} | {faults or 'not run yet'} | {failures if faults else ''} |"
        )
    lines.append(f"| all | | {sums['faults']} | {sums['failures']} |")
    told = ", ".join(f"{name} {number:g}" for name, number in sorted(figures.items()) if number)
    lines += ["", f"Among them: {told}.", ""]
    return "\n".join([*lines, *_mended((content or {}).get("before_a_mend", []))])


def _mended(entries: list[dict[str, Any]]) -> list[str]:
    """What failed, of the campaigns before it was mended; those above are of afterwards."""
    if not entries:
        return []
    lines = [
        "### What these campaigns have found",
        "",
        "A kind of which a fault has failed is counted anew once what it showed is mended. Until "
        "then there were:",
        "",
        "| kind | faults | failures | what failed | mended by |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {e['kind']} | {e['faults']} | {e['failures']} | {_escape(e['found'])} | "
        f"{_escape(e['mended'])} |"
        for e in entries
    ]
    return [*lines, ""]


def _soak(soak: dict[str, Any] | None) -> str:
    lines = ["## An hour of pretraining", ""]
    if soak is None or "slope_mib_per_hour" not in soak:
        return "\n".join([*lines, "Not run yet.", ""])
    rss, workers, files = (
        [f"{value:.0f}" for value in soak[name]]
        for name in ("rss_mib", "workers_rss_mib", "open_files")
    )
    cpu = [f"{value:.2f}" for value in soak["iterations_per_cpu_second"]]
    lines += [
        f"ResNet-18 on images of 32 pixels, one thread and one data worker, niced, a checkpoint and "
        f"a kNN evaluation every 400 iterations: {soak['minutes']:g} minutes, "
        f"{soak['iterations']} iterations, {soak['date']}. Medians of the first and the last quarter "
        "after the warm-up:",
        "",
        "| | first quarter | last quarter |",
        "|---|---|---|",
        f"| memory of the process, MiB | {rss[0]} | {rss[1]} |",
        f"| memory of its worker, MiB | {workers[0]} | {workers[1]} |",
        f"| open files | {files[0]} | {files[1]} |",
        f"| iterations a second of CPU time | {cpu[0]} | {cpu[1]} |",
        "",
        f"Slope of the memory: {soak['slope_mib_per_hour']:+.1f} ± "
        f"{soak['slope_standard_error']:.1f} MiB an hour. "
        + (f"Problems: {'; '.join(soak['problems'])}." if soak["problems"] else "No problem.")
        + f" Ended by SIGTERM with exit code {soak.get('exit_code')}.",
        "",
    ]
    return "\n".join(lines)


def _mutations(entries: list[dict[str, Any]] | None) -> str:
    lines = ["## Silent wrong numbers", ""]
    if not entries:
        return "\n".join([*lines, "No mutation has been run yet.", ""])
    caught = sum(bool(entry["caught"]) for entry in entries)
    lines += [
        f"Each of {len(entries)} changes of code, config or settings keeps training going and "
        f"measures the wrong thing; {caught} are caught, by the check named "
        "(`python campaigns/mutations.py`).",
        "",
        "| change | caught by |",
        "|---|---|",
    ]
    for entry in entries:
        by = f"`{_escape(entry['caught_by'])}`" if entry["caught"] else "**nothing**"
        lines.append(f"| {_escape(entry['what'])} | {by} |")
    return "\n".join([*lines, ""])


def _escape(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _untrusted(file: Path) -> str:
    text = file.read_text() if file.exists() else "Not written yet.\n"
    return f"## Untrusted input\n\n{text.strip()}\n"


def _fuzzing(folder: Path) -> str:
    """The last runs of the campaigns that make hostile files."""
    lines = [
        "",
        "| hostile files | command | cases | kinds | refused | read as they are | failures | "
        "slowest, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for what, name in FUZZING.items():
        found = _read(folder / f"results/campaigns/{name}.json")
        if found is None:
            lines.append(f"| {what} | `python campaigns/{name}.py` | not run yet | | | | | |")
            continue
        read = found["cases"] - found["refused"]
        lines.append(
            f"| {what} | `python campaigns/{name}.py` | {found['cases']} | {len(found['kinds'])} | "
            f"{found['refused']} | {read} | {found['failures']} | {found['slowest_s']} |"
        )
    return "\n".join([*lines, ""])
