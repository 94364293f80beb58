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

_ONE, _SPLIT = "v2 R50, bf16", "v2 R50, bf16, SplitBN 8"
_DEVICE = f"{_SPLIT}, augmentation on the device"


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
            check(f"{_DEVICE}: waits", counted[_DEVICE]["waits"], unit="waits", at_most=1),
            check(f"{_DEVICE}: memory touched", counted[_DEVICE]["GB"], unit="GB", at_most=110),
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
            'for the device, "copies" go from the host to the device, "pageable copies" are those '
            'whose source is not in pinned memory, and "GB" is the memory that the operators read '
            "and write in eager mode. The collectives are those of torch's fake backend: "
            '"MB received" is what they write into the memory of a process, and "MB computed" is '
            "the size of all results.",
        ],
    )


if __name__ == "__main__":
    main()
