"""A suite of runs that take no time, for the runner; run as a script, a runner of it.

    python fake_suite.py FOLDER NAME:BEHAVIOR ...

See BEHAVIORS of fake_tools/fake.py.
"""

import sys
from pathlib import Path

from moco_d2.benchmark.runs.runner import run
from moco_d2.benchmark.runs.suites import Cell, Suite

TOOLS = Path(__file__).parent / "fake_tools"


def cell(name, *behaviors, needs=(), settings=None):
    """A cell whose commands do what `behaviors` say."""
    return Cell(
        name=name,
        task="task",
        initialization="init",
        seed=1,
        commands=tuple(("fake.py", ("{cell}", behavior)) for behavior in behaviors),
        kind=None,
        needs=tuple(needs),
        settings=settings or {},
    )


def run_cells(folder, *cells, **more):
    """The exit code of a runner on the CPU."""
    suite = Suite("fake", "Fake", tuple(cells))
    return run(suite, folder=folder, **{"gpus_per_run": 0, "jobs": 2, "tools": TOOLS, **more})


if __name__ == "__main__":
    cells = [cell(*word.split(":")) for word in sys.argv[2:]]
    sys.exit(run_cells(Path(sys.argv[1]), *cells))
