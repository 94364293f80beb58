"""Writers whose folder is removed under them."""

import logging
import shutil
import threading

import pytest
from detectron2.utils.events import EventStorage, EventWriter, JSONWriter

from moco_d2.hooks import DeferredWriters


class InTheBackground(EventWriter):
    """As TensorBoard's: a thread writes, and fails; the next write raises what it met."""

    def __init__(self, file, error):
        file.parent.mkdir(exist_ok=True)
        file.touch()
        self._file, self._error, self._met = file, error, None

    def write(self):
        if self._met is not None:
            raise self._met
        thread = threading.Thread(target=self._append)
        thread.start()
        thread.join()

    def _append(self):
        if not self._file.exists():
            self._met = self._error
            raise self._error


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("moco_d2"), "propagate", True)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # restored at the end
    return caplog


def removed_under(folder, error, *, iterations=4):
    """Write, remove the folder after the first write but for metrics.json, and all of it next."""

    def build():
        folder.mkdir(exist_ok=True)
        return [InTheBackground(folder / "events", error), JSONWriter(str(folder / "metrics.json"))]

    writers = DeferredWriters(build, folder)
    with EventStorage() as storage:
        for storage.iter in range(iterations):
            storage.put_scalar("loss", 1.0)
            if storage.iter == 1:
                (folder / "events").unlink()
            if storage.iter == 2:
                shutil.rmtree(folder)
            writers.write()
        writers.close()


def test_a_thread_that_cannot_write_is_one_line(tmp_path, log, capfd):
    removed_under(tmp_path / "out", FileNotFoundError(2, "No such file", "events"))
    assert "cannot go on: [Errno 2] No such file: 'events'" in log.text
    assert "metrics.json is gone, and with it what it had; it begins anew" in log.text
    assert "Traceback" not in capfd.readouterr().err
    assert (tmp_path / "out" / "metrics.json").read_text().count("\n") == 2


def test_any_other_error_of_a_thread_has_its_traceback(tmp_path, log, capfd):
    removed_under(tmp_path / "out", ValueError("a mistake of ours"))
    assert "ValueError: a mistake of ours" in capfd.readouterr().err
    assert "cannot go on" not in log.text
