"""One run at a time in a folder, one suite at a time, one conversion at a time to a file."""

import errno
import fcntl
import logging
import multiprocessing
import os
import re
import shutil
import signal
import socket
from pathlib import Path

import pytest

from moco_d2 import locks
from moco_d2.errors import UserError

FORK = multiprocessing.get_context("fork")


class Other:
    """Another process that holds a lock until it is told to end, or killed."""

    def __init__(self, hold):
        """
        Args:
            hold: makes the context in which it waits.
        """
        self._mine, theirs = FORK.Pipe()

        def work() -> None:
            try:
                with hold():
                    theirs.send("holds it")
                    theirs.recv()
            except UserError as error:
                theirs.send(str(error))

        self.process = FORK.Process(target=work, daemon=True)
        self.process.start()
        assert self._mine.poll(120)
        self.said = self._mine.recv()

    def end(self) -> None:
        self._mine.send("end")
        self.process.join(120)

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(120)


@pytest.fixture(params=["run", "file", "suite"])
def kind(request, tmp_path):
    """(context of the lock, the words of who is refused, its file)."""
    out = tmp_path / "made" / "out"
    return {
        "run": (
            lambda: locks.run_in(out),
            f"another run is at work in OUTPUT_DIR {out}",
            out / locks.RUN_LOCK,
        ),
        "file": (
            lambda: locks.write_to(out / "w.pth"),
            f"another process is writing {out / 'w.pth'}",
            out / ".w.pth.lock",
        ),
        "suite": (
            lambda: locks.suite_in(out, "mine", "1" if os.getpid() == _THIS else "2"),
            f"a runner of another suite is at work in {out}",
            out / locks.SUITE_LOCK,
        ),
    }[request.param]


_THIS = os.getpid()


@pytest.fixture(autouse=True)
def _this(monkeypatch):
    monkeypatch.setitem(globals(), "_THIS", os.getpid())


def test_the_second_is_refused_in_one_sentence_and_the_first_goes_on(kind):
    hold, words, _ = kind
    first = Other(hold)
    assert first.said == "holds it"
    with pytest.raises(UserError, match=re.escape(words)) as refused, hold():
        pass
    sentence = str(refused.value)
    assert f"process {first.process.pid} on {socket.gethostname()}" in sentence
    assert "wait for its end, or" in sentence and "\n" not in sentence
    first.end()
    assert first.process.exitcode == 0
    with hold():
        pass


def test_a_killed_process_locks_nobody_out(kind):
    hold, _, file = kind
    first = Other(hold)
    first.kill()
    assert file.exists()
    with hold():
        pass
    assert not file.exists()


def test_nothing_is_left_of_who_writes_nothing(kind, tmp_path):
    hold, _, file = kind
    with pytest.raises(UserError, match="planted"), hold():
        assert file.exists()
        raise UserError("planted")
    assert list(tmp_path.iterdir()) == []
    with hold():
        (file.parent / "result").write_text("")
    assert [path.name for path in file.parent.iterdir()] == ["result"]


def test_a_folder_that_is_removed_meanwhile_is_no_problem(kind):
    hold, _, file = kind
    with hold():
        shutil.rmtree(file.parent)
    with hold():
        shutil.rmtree(file.parent)
        file.parent.mkdir()
        (file.parent / "anew").write_text("")
        second = Other(hold)  # nobody can tell it
        assert second.said == "holds it"
    assert file.exists()  # which is the other's
    second.end()


def test_processes_that_a_holder_starts_do_not_inherit_it(kind):
    hold, _, _ = kind

    def start_another() -> None:
        with hold():
            started.put(os.fork() or os.getpid())
            signal.pause()

    started = FORK.SimpleQueue()
    holder = FORK.Process(target=start_another)
    holder.start()
    pids = {started.get(), started.get()}
    os.kill(holder.pid, signal.SIGKILL)
    os.waitpid(holder.pid, 0)
    orphan = pids.pop()
    try:
        with hold():
            pass
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_a_lock_within_the_same_is_the_same(kind):
    hold, words, _ = kind
    with hold():
        if "suite" not in words:
            with hold():
                pass
        other = Other(hold)
        assert other.said.startswith(words)


def test_runners_of_one_suite_share_its_folder(tmp_path):
    first = Other(lambda: locks.suite_in(tmp_path, "mine", "1"))
    second = Other(lambda: locks.suite_in(tmp_path, "mine", "1"))
    assert first.said == second.said == "holds it"
    first.end()
    third = Other(lambda: locks.suite_in(tmp_path, "other", "2"))
    assert "suite mine" in third.said
    second.end()
    assert list(tmp_path.iterdir()) == []
    last = Other(lambda: locks.suite_in(tmp_path, "other", "2"))
    assert last.said == "holds it"
    last.end()


def test_where_a_file_system_has_no_locks_it_says_so_once_and_goes_on(kind, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    monkeypatch.setattr(locks, "_WARNED", set())
    hold, _, _ = kind
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with hold():
                pass
    assert sum("has no locks" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("what", ["run", "file", "suite"])
def test_a_place_that_cannot_be_written_is_one_sentence(what, tmp_path):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "out"
    hold = {
        "run": lambda: locks.run_in(place),
        "file": lambda: locks.write_to(place / "w.pth"),
        "suite": lambda: locks.suite_in(place, "mine", "1"),
    }[what]
    with pytest.raises(UserError, match=r"cannot write .*; choose"), hold():
        pass
    assert [path.name for path in Path(tmp_path).iterdir()] == ["file"]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for hold in (locks.run_in(tmp_path / "file"), locks.write_to(tmp_path / "file" / "w.pth")):
        with pytest.raises(UserError, match=r"cannot write .*/file is not a folder; choose"), hold:
            pass


def put_in_the_way(what: str, file: Path, victim: Path) -> None:
    """Put a link to `victim`, or what is no plain file, in the place of `file`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    victim.write_text("precious\n")
    {
        "symbolic link": lambda: file.symlink_to(victim),
        "hard link": lambda: os.link(victim, file),
        "link to itself": lambda: file.symlink_to(file),
        "link to nothing": lambda: file.symlink_to(victim.with_name("new")),
        "pipe": lambda: os.mkfifo(file),
        "folder": file.mkdir,
    }[what]()


@pytest.mark.parametrize(
    "what",
    ["symbolic link", "hard link", "link to itself", "link to nothing", "pipe", "folder"],
)
def test_a_link_in_the_place_of_a_lock_is_refused_and_leads_nowhere(kind, what, tmp_path):
    hold, _, file = kind
    victim = tmp_path / "victim"
    put_in_the_way(what, file, victim)
    with pytest.raises(UserError, match=rf"^{re.escape(str(file))} must be .*; remove it$"), hold():
        pass
    assert victim.read_text() == "precious\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "victim"]
    assert os.path.lexists(file)


def test_a_lock_that_was_replaced_by_a_link_to_it_is_not_held(tmp_path):
    file = tmp_path / "lock"
    handle = locks._open(file)
    try:
        assert locks._is_current(handle, file)
        file.rename(tmp_path / "moved")
        file.symlink_to(tmp_path / "moved")
        assert not locks._is_current(handle, file)
    finally:
        os.close(handle)
