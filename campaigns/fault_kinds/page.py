"""Renders docs/reliability.md from the figures of campaigns, soak and mutations."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fault_kinds.case import Kind

# If a file is absent, its section says so.
CAMPAIGNS, SOAK = "results/campaigns/faults.json", "results/campaigns/soak.json"
MUTATIONS, UNTRUSTED = "results/campaigns/mutations.json", "docs/reliability_untrusted.md"
FUZZING = {"checkpoints": "fuzz_checkpoints", "configs and suites": "fuzz_yaml"}

# ruff: noqa: E501 - Markdown
_INTRODUCTION = """# Reliability

This page lists the promises for a run of days: what happens after a kill, on a full disk, or with a
damaged or hostile file. Each promise has a test that injects faults, and the figures of the last
campaigns. You can repeat the campaigns:

```sh
python campaigns/faults.py --list                                   # print the kinds of faults
python campaigns/faults.py --only 'kill *' --count 5 --minutes 5    # some kinds; exit code 1 after a failure
python campaigns/faults.py --json results/campaigns/faults.json     # all kinds; add the figures to this file
python campaigns/faults.py --soak 60 --json results/campaigns/soak.json    # pretrain for an hour
python campaigns/faults.py --render docs/reliability.md             # write this page
```

Each fault is injected into a real command of `tools/` with tiny settings, in a forked process. It
depends on the seed, its kind and its number. A kill comes after a random time, or at a change of the
run's folder: before a file is opened, flushed, renamed or removed, or when only a part of a
checkpoint is written. "The same result" means that every tensor, optimizer state, generator state,
metric and record is equal to that of an undisturbed run.

"""

_RULES = """
## How a run ends and continues

| exit code | meaning |
|---|---|
| 0 | The run is done. |
| 2 | The last line names the fix of a user's mistake, or of a problem of the machine (no space, no memory, a process that ended). |
| 129, 130, 143 | The run received SIGHUP (a closed terminal, unless `nohup` ignores it), SIGINT (Ctrl-C) or SIGTERM. During training it finishes the current step and saves. Before the first step and after the last one it ends at once. The code is 128 + the signal's number, as shells and schedulers expect. |
| -1, -2, -15 in a scheduler's account | The signal came when the run was complete and Python was ending, or to one of several processes before the first step. Nothing was lost. |

A signal may go to the whole process group: `timeout`, systemd, `scancel` and containers do this. The
processes that load images ignore it, and end with the run, also after `kill -9`. If the same signal
comes again within 2 seconds, it counts once (`timeout` itself then reports 124, unless
`--preserve-status` is set). A second Ctrl-C after these 2 seconds stops the run at once, without
saving.

The same command with `--resume` continues the run in every case. It also starts a run that has no
checkpoint yet, so a job script need not distinguish the two cases. Under SLURM (`--submit`), a
preempted or timed-out job is saved and queued again automatically. Under torchrun, a restart
resumes the run.

Several processes compare their numbers, GPUs, code, config, weights, data and OUTPUT_DIR before the
first step. All machines must share OUTPUT_DIR (`--output`), under the same path. If something does
not fit, all of them end with one sentence. A process that waits for the others at the start says so
after 10 seconds.

A process that waits for another one gives up after `MOCO_D2_TIMEOUT` seconds (default: 1800), in
every kind of operation. On CPUs (gloo) an operation also fails as soon as another process has ended.
On GPUs (NCCL) it waits where no Python code runs, so every process also counts in a common store
while it lives. If one stops to count for that time, the others name its rank. If one ends with an
error, the others repeat the error within about 15 seconds. They end with exit code 2 in both cases.
If all of them count, but one hangs in its own code, torch's watchdog aborts the others after that
time. It ends with SIGABRT (exit code 134 or -6) and names the operation, but not the rank. The faults
above were injected on CPUs.

## Limits

- `log.txt`, `metrics.json` and TensorBoard's files grow line by line. A kill may cut the last line
  short. A restart cuts `metrics.json` back to its checkpoint, and skips such a line.
  Detectron2 writes `config.yaml` again at every start.
- After SIGKILL the steps since the last checkpoint are trained again, because it leaves no time to
  save.
- On three or more processes, a restarted run equals the undisturbed run up to rounding, not to the
  bit, because DistributedDataParallel adds gradients in another order in the first step after a
  start.
- A second run in the same OUTPUT_DIR is refused while the first one runs, on this and on other
  machines. The same holds for `--output`, for a second suite in a suite's folder, and for a second
  conversion to the same file. There are two exceptions: a file system without locks (there is a
  warning), and a folder that was removed meanwhile.
- A signal during an evaluation between two steps takes effect after the evaluation.
- Full disks are tested on tmpfs. A disk that becomes read-only is tested with a bind mount, if the
  user may mount. Power cuts are not tested, but files and folders are flushed before a rename.
"""


def render(folder: Path, kinds: Iterable[Kind]) -> str:
    """Return the text of the page.

    Args:
        folder: The checkout, which has the files with the figures.
        kinds: All kinds of faults, in the order of the page.
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
        f"The table adds up {len(campaigns)} campaigns ({' to '.join(dict.fromkeys((dates[0], dates[-1])))}) "
        f"on {' and '.join(hardware)} with {', '.join(versions)}.",
        "",
        "| kind | promise | faults | failures |",
        "|---|---|---|---|",
    ]
    sums = {"faults": 0, "failures": 0}
    figures: dict[str, float] = {}
    for kind in kinds:
        entries = [c["kinds"][kind.name] for c in campaigns if kind.name in c["kinds"]]
        faults, failures = (sum(e[name] for e in entries) for name in ("faults", "failures"))
        sums["faults"] += faults
        sums["failures"] += failures
        for one in entries:
            for name, number in one["figures"].items():
                figures[name] = figures.get(name, 0) + number
        lines.append(
            f"| {kind.name} | {kind.promise} | {faults or 'not run yet'} | {failures if faults else ''} |"
        )
    lines.append(f"| all | | {sums['faults']} | {sums['failures']} |")
    listed = ", ".join(f"{name} {number:g}" for name, number in sorted(figures.items()) if number)
    lines += ["", f"The campaigns also counted: {listed}.", ""]
    return "\n".join([*lines, *_mended((content or {}).get("before_a_mend", []))])


def _mended(entries: list[dict[str, Any]]) -> list[str]:
    """Return the section about failures that have been fixed, which the table above excludes."""
    if not entries:
        return []
    lines = [
        "### Failures that these campaigns found",
        "",
        "After a failure is fixed, the faults of its kind are counted again from 0. The figures "
        "before the fixes are:",
        "",
        "| kind | faults | failures | failure | fix |",
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
        f"A ResNet-18 was pretrained on images of 32 pixels with one thread and one data worker, niced, "
        "with a checkpoint and a kNN evaluation every 400 iterations. The run took "
        f"{soak['minutes']:g} minutes and {soak['iterations']} iterations on {soak['date']}. The table "
        "has the medians of the first and the last quarter after the warm-up:",
        "",
        "| | first quarter | last quarter |",
        "|---|---|---|",
        f"| memory of the process, MiB | {rss[0]} | {rss[1]} |",
        f"| memory of its worker, MiB | {workers[0]} | {workers[1]} |",
        f"| open files | {files[0]} | {files[1]} |",
        f"| iterations per second of CPU time | {cpu[0]} | {cpu[1]} |",
        "",
        f"The slope of the memory is {soak['slope_mib_per_hour']:+.1f} ± "
        f"{soak['slope_standard_error']:.1f} MiB per hour. "
        + (
            f"Problems: {'; '.join(soak['problems'])}."
            if soak["problems"]
            else "There was no problem."
        )
        + f" The run was ended by SIGTERM, with exit code {soak.get('exit_code')}.",
        "",
    ]
    return "\n".join(lines)


def _mutations(entries: list[dict[str, Any]] | None) -> str:
    lines = ["## Silent wrong numbers", ""]
    if not entries:
        return "\n".join([*lines, "No mutation has been run yet.", ""])
    caught = sum(bool(entry["caught"]) for entry in entries)
    lines += [
        f"`python campaigns/mutations.py` injects {len(entries)} bugs into code, config or settings. "
        "With each bug training goes on, but the result is wrong. The checks in the table catch "
        f"{caught} of them.",
        "",
        "| wrong result | caught by |",
        "|---|---|",
    ]
    for entry in entries:
        by = f"`{_escape(entry['caught_by'])}`" if entry["caught"] else "**no check**"
        lines.append(f"| {_escape(entry['what'])} | {by} |")
    return "\n".join([*lines, ""])


def _escape(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _untrusted(file: Path) -> str:
    text = file.read_text() if file.exists() else "Not written yet.\n"
    return f"## Untrusted input\n\n{text.strip()}\n"


def _fuzzing(folder: Path) -> str:
    """Return the table of the last campaigns with hostile files."""
    lines = [
        "",
        "| hostile files | command | cases | kinds | refused | read unaltered | failures | "
        "slowest, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for files, name in FUZZING.items():
        figures = _read(folder / f"results/campaigns/{name}.json")
        if figures is None:
            lines.append(f"| {files} | `python campaigns/{name}.py` | not run yet | | | | | |")
            continue
        read = figures["cases"] - figures["refused"]
        lines.append(
            f"| {files} | `python campaigns/{name}.py` | {figures['cases']} | "
            f"{len(figures['kinds'])} | {figures['refused']} | {read} | {figures['failures']} | "
            f"{figures['slowest_s']} |"
        )
    return "\n".join([*lines, ""])
