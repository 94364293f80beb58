"""A room imports only rooms below it, and no parts of a room import each other in a circle.

The contracts are in pyproject.toml; ``make lint`` checks the same.
"""

import subprocess
import sys

from support.paths import ROOT


def test_no_import_goes_up_or_in_a_circle():
    """In a process of its own: import-linter turns off the loggers that there are."""
    code = (
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
