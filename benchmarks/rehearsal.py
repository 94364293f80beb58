#!/usr/bin/env python3
"""Count what a step costs a GPU, on CUDA tensors that only say that they are on one.

tests/rehearsal fails if a count differs from the committed result.

python benchmarks/rehearsal.py --json results/benchmarks/rehearsal.json
"""

import sys
import tempfile
from pathlib import Path

from harness import check, finish, parser

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.rehearsal import process

_ONE, _SPLIT = "v2 R50, bf16, compiled", "v2 R50, bf16, SplitBN 8, compiled"
_DEVICE = "v2 R50, bf16, SplitBN 8, augmentation on the device, compiled"
_BANDWIDTH = {"H100": 3.0, "H200": 4.3}  # TB/s that their memory reaches
_IMAGES = 256


def _time(recipe: str, gigabytes: float) -> str:
    """Return the arithmetic of the time in which the memory can do a step."""
    times = {gpu: gigabytes / rate for gpu, rate in _BANDWIDTH.items()}
    predicted = ", ".join(
        f"{gpu}: {gigabytes} GB / {_BANDWIDTH[gpu]} TB/s = {time:.1f} ms, "
        f"{_IMAGES / time * 1000:,.0f} images a second"
        for gpu, time in times.items()
    )
    return f"Predicted from bandwidth alone, not measured, {recipe}: {predicted}."


def main() -> None:
    """Rehearse all scenes."""
    args = parser(__doc__, repeats=1).parse_args()
    if reason := process.missing():
        sys.exit(reason)
    tables, counted = [], {}
    for scene, title in process.SCENES.items():
        with tempfile.TemporaryDirectory() as folder:
            counts = process.run(Path(folder), scene)
        counted |= counts
        columns = [name for name in next(iter(counts.values())) if name != "places"]
        rows = [[recipe, *(one[name] for name in columns)] for recipe, one in counts.items()]
        tables.append({"title": title, "columns": ["recipe", *columns], "rows": rows})
    finish(
        args,
        title="Rehearsal: what a step would cost a GPU",
        checks=[
            check(f"{_DEVICE}: calls", counted[_DEVICE]["calls"], unit="calls", at_most=1700),
            check(f"{_DEVICE}: waits", counted[_DEVICE]["waits"], unit="waits", at_most=0),
            check(f"{_DEVICE}: memory touched", counted[_DEVICE]["GB"], unit="GB", at_most=110),
            check(
                "augmentation on the device, compiled: memory touched more than on workers",
                counted[_DEVICE]["GB"] - counted[_SPLIT]["GB"],
                unit="GB",
                at_most=10,
            ),
            *(
                check(
                    f"SplitBN 8 / 1: {name}",
                    counted[_SPLIT][name] / counted[_ONE][name],
                    at_most=1.1,
                )
                for name in ("calls", "GB")
            ),
        ],
        tables=tables,
        notes=[
            "No GPU was used: the tensors have the shapes and the device of a run on one GPU. "
            '"calls" are ATen operators without views, "waits" are places where the host waits '
            "for the device while nothing else is queued there (one more in each step that writes "
            'metrics), "copies" go from the host to the device, "pageable copies" are those whose '
            'source is not in pinned memory, and "GB" is the memory that the operators read '
            "and write in eager mode. The collectives are those of torch's fake backend: "
            '"MB received" is what they write into the memory of a process, and "MB computed" is '
            "the size of all results.",
            "Compiled graphs are lowered and fused by inductor for an H200; their kernels, with "
            "those of libraries, are no calls of the host one by one, and their bytes include each "
            "pass that a kernel makes. In eager mode an operator counts its memory once.",
            "Why 110 GB are missed: the maps of R50's convolutions have 5.69 GB for 256 images in "
            "bf16. A compiler that fuses all but convolutions and statistics makes 5 passes over "
            "them forward (the convolution writes, the statistics read, the normalization reads "
            "and writes, the next convolution reads) in each of two encoders, and 9 backward (2 "
            "for sums, 3 for the gradient of BatchNorm, 4 for those of convolutions): 19 x 5.69 GB "
            "= 108 GB, to which sums of residual branches, pooling, weights and the augmentation "
            "come. Less needs convolutions that compute the statistics themselves.",
            *(_time(name, counted[name]["GB"]) for name in (_ONE, _SPLIT, _DEVICE)),
        ],
    )


if __name__ == "__main__":
    main()
