#!/usr/bin/env python3
"""Render the results of a folder of sweeps as a page of the documentation.

The page has figures, tables and conclusions. The study writes README.md, one SVG per sweep, and
results/studies/sweeps.json.

example:
  tools/benchmark.py run pretext_smoke --gpus-per-run 0
  python studies/sweeps.py output/pretext_smoke --output docs/sweeps
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moco_d2.benchmark.records.pretext_records import PretextRecord, read_pretext_records
from moco_d2.benchmark.statistics import summarize
from moco_d2.benchmark.sweeps.agreement import agreement, agreement_table
from moco_d2.benchmark.sweeps.figures import described, draw
from moco_d2.benchmark.sweeps.studies import Study, studies
from moco_d2.benchmark.sweeps.tables import sweep_tables
from moco_d2.benchmark.tables.formats import to_markdown
from moco_d2.cli import run_command
from moco_d2.errors import UserError
from moco_d2.files import write_json, write_text

_COMMON = (
    *("MOCO.ENCODER.ARCH", "MOCO.AUGMENTATION.SIZE", "MOCO.EPOCHS", "SOLVER.IMS_PER_BATCH"),
    *("MOCO.MOMENTUM", "MOCO.TEMPERATURE", "MOCO.LR_SCHEDULE"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of a suite of kind pretext")
    parser.add_argument("--output", type=Path, default=Path("docs/sweeps"))
    parser.add_argument("--json", type=Path, default=Path("results/studies/sweeps.json"))
    args = parser.parse_args()
    records = read_pretext_records([args.folder])
    sweeps = studies(records)
    if not sweeps:
        raise UserError(
            f"there is no sweep in {args.folder}; run one: tools/benchmark.py run pretext_smoke"
        )
    parts = ["# Sweeps of the pretraining\n", _about(args.folder.name, records)]
    for i, (study, table) in enumerate(zip(sweeps, sweep_tables(records), strict=True)):
        again = any(study.sweep is before.sweep for before in sweeps[:i])
        image = f"{study.sweep.name}{f'_{i}' if again else ''}.svg"
        draw(study, args.output / image)
        parts += [f"![{described(study)}]({image})\n", to_markdown([table]), _gains(study)]
    parts.append(_limits(records))
    write_json(args.json, _summary(args.folder, records))
    write_text(args.output / "README.md", "\n".join(parts))
    for study in sweeps:
        print(f"{study.sweep.name}: {agreement(study)}")
        for row in agreement_table(study)[1:]:
            print("  " + ", ".join(row))


def _about(suite: str, records: Sequence[PretextRecord]) -> str:
    trained = [r for r in records if r.config]
    pretrainings = [r.content["pretraining"] for r in trained]
    values = "; ".join(f"{key} {_several({r.config[key] for r in trained})}" for key in _COMMON)
    machines = {
        f"{p['hardware'].get('name')} ({p['hardware'].get('device')})" for p in pretrainings
    }
    versions = {p["environment"].get("torch") for p in pretrainings}
    seconds = [p["seconds_per_iteration"] for p in pretrainings if p["seconds_per_iteration"]]
    data = {f"{r.evaluation['data']['val_images']} others" for r in records}
    steps = {p["iterations"] for p in pretrainings}
    return (
        f"`tools/benchmark.py run {suite}`, then `python studies/sweeps.py`: {len(trained)} "
        f"pretrainings of {_several(steps)} steps on {_several({r.images for r in trained})} images"
        f", seed(s) {_several({r.seed for r in trained})}, evaluated by "
        f"{_several({r.protocol for r in records})} on {_several(data)}. {values}. "
        f"{_several(machines)}, torch {_several(versions)}, "
        f"{statistics.median(seconds):.2f} s per step (other programs were running). "
        "All results with their settings: [results](../../results/studies/sweeps.json).\n"
    )


def _gains(study: Study) -> str:
    """Return a sentence with the gains over the same network without pretraining."""
    if not study.untrained:
        return ""
    base = summarize(study.untrained).mean
    means = [study.summary(s, x).mean - base for s, points in study.values.items() for x in points]
    above = sum(mean > 0 for mean in means)
    return (
        f"Against the network without pretraining: {min(means):+.1f} to {max(means):+.1f} points; "
        f"{above} of {len(means)} points are above it.\n"
    )


def _limits(records: Sequence[PretextRecord]) -> str:
    val = min(r.evaluation["data"]["val_images"] for r in records)
    fewest = min(len(t) for s in studies(records) for of in s.values.values() for t in of.values())
    queues = [r for r in records if r.config.get("MOCO.DICTIONARY.NAME") == "Queue"]
    steps = max(r.content["pretraining"]["iterations"] for r in queues)
    batch = [r for r in records if r.config.get("MOCO.DICTIONARY.NAME") == "EndToEnd"]
    fewer = _several({r.content["pretraining"]["iterations"] for r in batch}) or "-"
    size = max(r.config["MOCO.DICTIONARY.SIZE"] / r.images for r in records if r.config)
    return f"""## What this shows, and what it does not

It shows that a suite runs from images to the paper's figure, that the runs of one figure differ
only in the settings of the sweep, and that the text below the figure follows from the numbers.

It does not show how MoCo behaves. An accuracy on {val} images has a standard error of up to
{50 / val**0.5:.1f} points, and with {fewest} seed(s) per point the tests have almost no power.
The paper trains for 200 epochs of 5004 steps. After {steps} steps a key encoder with momentum 0.999
is still {0.999**steps:.0%} the initial random network, and the largest dictionary here is
{size:.0%} of the data. End-to-end has K images per step. With equal epochs a larger K has fewer
steps ({fewer} here), and the figure cannot separate the two effects. There are longer runs of
the same kind in [learning](../learning/README.md). The suites figure_3, momentum, temperature,
v2_table_1_pretext, pretraining_length and dataset_size have the paper's own settings, for
ImageNet and GPUs.
"""


def _several(values: set) -> str:
    return " / ".join(map(str, sorted(values, key=lambda v: (isinstance(v, str), v))))


def _summary(folder: Path, records: Sequence[PretextRecord]) -> dict[str, Any]:
    configs = [record.config for record in records if record.config]
    same = {k: v for k, v in configs[0].items() if all(c.get(k) == v for c in configs)}
    kept = ("checkpoint", "protocol", "settings", "accuracy", "seed", "started", "seconds")
    made = ("config_sha256", "iterations", "images", "seconds_per_iteration", "hardware")
    return {
        "config": same,
        "results": {
            record.path.parent.relative_to(folder).as_posix(): {
                **{key: record.content[key] for key in kept},
                "config": {k: v for k, v in record.config.items() if k not in same},
                "pretraining": record.config
                and {key: record.content["pretraining"][key] for key in made},
            }
            for record in records
        },
    }


if __name__ == "__main__":
    run_command(main)
