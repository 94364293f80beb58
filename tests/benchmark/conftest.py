"""Run records as fine-tuning writes them, with chosen numbers."""

from pathlib import Path

import pytest
from matplotlib.axes import Axes
from support.run_records import content, write_record, write_table_2b


@pytest.fixture
def make_content():
    return content


@pytest.fixture
def write(tmp_path):
    """Write a record into a folder of its own under tmp_path / "runs"; returns the file."""
    folder = tmp_path / "runs"

    def write(record: dict) -> Path:
        return write_record(folder, record)

    write.folder = folder
    return write


@pytest.fixture
def table_2b(write):
    """Fifteen records: three initializations, five seeds, the paper's means."""
    write_table_2b(write.folder)
    return write.folder


@pytest.fixture
def drawn(monkeypatch):
    """Every line matplotlib is asked for, as {label: (x, y)}."""
    lines = {}
    original = Axes.plot

    def plot(self, x, y, **style):
        lines[style.get("label")] = (list(x), list(y))
        return original(self, x, y, **style)

    monkeypatch.setattr(Axes, "plot", plot)
    return lines
