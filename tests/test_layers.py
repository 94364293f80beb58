"""A room imports only rooms below it, and no parts of a room import each other in a circle.

The contracts are in pyproject.toml; ``make lint`` checks the same.
"""

from importlinter.cli import lint_imports
from support.paths import ROOT


def test_no_import_goes_up_or_in_a_circle(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == 0
