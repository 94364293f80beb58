#!/usr/bin/env python3
"""Time the import of moco_d2 and every tool's --help, in new processes.

python benchmarks/start_up.py
"""

import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from harness import COMPILED, check, finish, parser, ratio, take_turns

ROOT = Path(__file__).parents[1]


def process(*words: str) -> Callable[[], None]:
    """Return an action that runs python with these arguments."""
    return lambda: subprocess.run(
        [sys.executable, *words], check=True, capture_output=True, cwd=ROOT, env=COMPILED
    )


def main() -> None:
    """Measure and print."""
    args = parser(__doc__, repeats=9).parse_args()
    tools = sorted(path.name for path in (ROOT / "tools").glob("*.py"))
    imports = take_turns(
        {
            "detectron2": process("-c", "import detectron2"),
            "both": process("-c", "import moco_d2, detectron2"),
            "alone": process("-c", "import moco_d2"),
            "python": process("-c", ""),
        },
        1 if args.small else args.repeats,
    )
    helps = take_turns(
        {name: process(f"tools/{name}", "--help") for name in tools},
        1 if args.small else args.repeats,
    )
    median = {name: statistics.median(values) for name, values in {**imports, **helps}.items()}
    finish(
        args,
        title="Start-up: imports and --help, in new processes",
        checks=[
            check(
                "import moco_d2, detectron2 / import detectron2",
                ratio(imports["both"], imports["detectron2"]),
                at_most=1.05,
            ),
            check("import detectron2", median["detectron2"], unit="s"),
            check(
                "import moco_d2 alone, without Python's start",
                median["alone"] - median["python"],
                unit="s",
            ),
            *(check(f"tools/{name} --help", median[name], unit="s", at_most=1.0) for name in tools),
        ],
    )


if __name__ == "__main__":
    main()
