#!/usr/bin/env python3
"""Measure kNN accuracy during pretraining on a generated dataset, with ablations of MoCo's parts.

There is one baseline, and the paper's ablations around it: momentum (section 4.1), dictionary size
and mechanism (Figure 3), ShuffleBN (Figure A.1). Every run is tools/pretrain.py on class folders of
images. A finished run is not repeated. The study writes results/studies/learning.json, curves.png
and table.md.

example:
  python studies/learning.py --output docs/learning --work output/learning
"""

import argparse
import concurrent.futures
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGES, TEST_IMAGES = 4000, 800
BATCH = 64
BASELINE = "MoCo"
# Name -> the keys that differ from the baseline, grouped as in the paper.
GROUPS: dict[str, dict[str, dict[str, object]]] = {
    "momentum": {
        "m = 0": {"MOCO.MOMENTUM": 0.0},
        "m = 0.9": {"MOCO.MOMENTUM": 0.9},
        BASELINE: {},
        "m = 0.999": {"MOCO.MOMENTUM": 0.999},
    },
    "dictionary size": {
        "K = 64": {"MOCO.DICTIONARY.SIZE": 64},
        BASELINE: {},
        "K = 1024": {"MOCO.DICTIONARY.SIZE": 1024},
        "K = 2048": {"MOCO.DICTIONARY.SIZE": 2048},
    },
    "mechanism": {
        "end-to-end": {"MOCO.DICTIONARY.NAME": "EndToEnd"},
        "memory bank": {"MOCO.DICTIONARY.NAME": "MemoryBank"},
        BASELINE: {},
    },
    "BatchNorm": {
        "no SplitBN": {"MOCO.BN_SPLITS": 1},
        BASELINE: {},
    },
}
BASELINE_IS = "m = 0.99, K = 256, queue, SplitBN with 4 groups"
COMMON: dict[str, object] = {
    "MOCO.ENCODER.ARCH": "resnet18",
    "MOCO.AUGMENTATION.SIZE": 32,
    "MOCO.AUGMENTATION.CROP_SCALE": "(0.4, 1.0)",
    "MOCO.AUGMENTATION.BLUR_SIGMA": "(0.1, 0.8)",
    "MOCO.EPOCHS": 0,
    "SOLVER.IMS_PER_BATCH": BATCH,
    "MOCO.REFERENCE_BATCH": 0,
    "MOCO.MONITOR.EXPECTED_LOSS": (),
    "SOLVER.BASE_LR": 0.0075,  # the paper's 0.03 at batch 256, scaled linearly
    "MOCO.MOMENTUM": 0.99,
    "MOCO.DICTIONARY.SIZE": 256,
    "MOCO.BN_SPLITS": 4,
    "SOLVER.CHECKPOINT_PERIOD": 1_000_000,
    "DATALOADER.NUM_WORKERS": 0,
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("docs/learning"))
    parser.add_argument("--json", type=Path, default=Path("results/studies/learning.json"))
    parser.add_argument("--work", type=Path, default=Path("output/learning"), help="runs and data")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--jobs", type=int, default=2, help="maximum parallel runs, with one thread each"
    )
    parser.add_argument("--amp", action="store_true", help="use bfloat16")
    return parser.parse_args()


def settings() -> dict[str, dict[str, object]]:
    """Return all distinct runs, the baseline first."""
    runs = {BASELINE: {}}
    for group in GROUPS.values():
        runs.update(group)
    return runs


def run(args: argparse.Namespace, name: str, seed: int) -> None:
    """Pretrain once, unless the run is finished. Its output goes to output.txt in its folder."""
    folder = args.work / f"{name.replace(' ', '_')}_seed{seed}"
    if (folder / "checkpoint_final.pth.tar").is_file():
        return
    overrides = {
        **COMMON,
        **settings()[name],
        "SOLVER.MAX_ITER": args.steps,
        "SOLVER.AMP.ENABLED": args.amp,
        # The baseline has curves. The other runs are compared at the end only.
        "MOCO.KNN.PERIOD": args.steps // 10 if name == BASELINE else 0,
        "MOCO.KNN.TRAIN": args.work / "data" / "pretrain",
        "MOCO.KNN.TEST": args.work / "data" / "pretrain_test",
        "DATASETS.TRAIN": f"('{args.work / 'data' / 'pretrain'}',)",
        "SEED": seed,
        "OUTPUT_DIR": folder,
    }
    words = [str(word) for pair in overrides.items() for word in pair]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.txt").open("w") as log:
        subprocess.run(
            [
                sys.executable,
                ROOT / "tools" / "pretrain.py",
                "--config-file",
                "moco_v2_R50_200ep.yaml",
                *words,
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
        )


def read(folder: Path) -> dict[str, object]:
    """Return the kNN curve (step, percent) and the final pretext accuracy of a finished run."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    curve = [(x["iteration"], 100 * x["knn_accuracy"]) for x in lines if "knn_accuracy" in x]
    training = [x for x in lines if "pretext_accuracy" in x]
    return {
        "curve": curve,
        # The last 5 lines cover 100 steps: lines are 20 steps apart and smoothed.
        "pretext_accuracy": 100 * statistics.mean(x["pretext_accuracy"] for x in training[-5:]),
        "seconds_per_step": statistics.median(x["time"] for x in training if "time" in x),
    }


def collect(args: argparse.Namespace) -> dict[str, list[dict[str, object]]]:
    """Return name -> one result per seed, for names whose runs of all seeds are finished."""
    results = {}
    for name in settings():
        folders = [args.work / f"{name.replace(' ', '_')}_seed{seed}" for seed in args.seeds]
        if all((folder / "checkpoint_final.pth.tar").is_file() for folder in folders):
            results[name] = [read(folder) for folder in folders]
    return results


def spread(values: Iterable[float]) -> str:
    """Return mean and standard deviation as text."""
    values = list(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {deviation:.1f}"


def table(results: dict[str, list[dict[str, object]]]) -> str:
    """Return the ablations as a Markdown table, one group after the other."""
    random = [run["curve"][0][1] for runs in results.values() for run in runs]
    lines = [
        "| setting | value | kNN accuracy, % | gain over the random network "
        "| pretext accuracy, % |",
        "|---|---|---|---|---|",
        f"| random network | | {spread(random)} | | |",
    ]
    for group, members in GROUPS.items():
        for name in members:
            if name not in results:
                continue
            runs = results[name]
            gain = spread(run["curve"][-1][1] - run["curve"][0][1] for run in runs)
            label = f"{name} ({BASELINE_IS})" if name == BASELINE else name
            lines.append(
                f"| {group} | {label} | {spread(run['curve'][-1][1] for run in runs)} | {gain} | "
                f"{spread(run['pretext_accuracy'] for run in runs)} |"
            )
    return "\n".join(lines) + "\n"


def plot(results: dict[str, list[dict[str, object]]], path: Path) -> None:
    """Plot the baseline's curve for each seed, and the accuracy of the random network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for number, (one, marker) in enumerate(zip(results[BASELINE], "osD^v", strict=False), start=1):
        steps, accuracy = zip(*one["curve"], strict=True)
        axes.plot(steps, accuracy, marker=marker, markersize=4, label=f"seed {number}")
    random = statistics.mean(one["curve"][0][1] for one in results[BASELINE])
    axes.axhline(random, color="0.4", linestyle="--", label="random network")
    axes.axhline(random + 10, color="0.7", linestyle=":", label="+ 10 points")
    axes.set(xlabel="step", ylabel="kNN accuracy, %")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    args = parse_args()
    args.work = args.work.resolve()
    data = args.work / "data"
    if not (data / "done").is_file():
        from moco_d2.demo.scenes import write_dataset

        write_dataset(
            data,
            seed=0,
            pretrain_images=IMAGES,
            knn_test_images=TEST_IMAGES,
            detection_train=0,
            detection_test=0,
        )
        (data / "done").touch()
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        runs = [pool.submit(run, args, name, seed) for name in settings() for seed in args.seeds]
        for done, future in enumerate(concurrent.futures.as_completed(runs), start=1):
            future.result()
            print(f"{done} of {len(runs)} runs", flush=True)
    results = collect(args)
    args.output.mkdir(parents=True, exist_ok=True)
    text = table(results)
    (args.output / "table.md").write_text(text)
    plot(results, args.output / "curves.png")
    record = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "steps": args.steps,
        "batch": BATCH,
        "images": IMAGES,
        "seeds": args.seeds,
        "results": results,
    }
    args.json.write_text(json.dumps(record, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
