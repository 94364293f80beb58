"""What a machine does to a run becomes one sentence; the program's own mistakes do not."""

import errno
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from moco_d2.engine import failures
from moco_d2.engine.failures import describe, explained
from moco_d2.errors import UserError


def raised(act) -> BaseException:
    try:
        act()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: torch.empty(2**50, dtype=torch.uint8), "out of memory"),
        (lambda: np.empty(2**50, np.uint8), "out of memory"),
        (lambda: Path("/proc/self/mem/x").write_text(""), None),
        (lambda: {}["x"], None),
        (lambda: torch.zeros(2) @ torch.zeros(3), None),
    ],
)
def test_real_errors(act, words):
    sentence = describe(raised(act))
    assert sentence is None if words is None else words in sentence and "\n" not in sentence


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.pth"), "cannot write x.pth (No space"),
        (OSError(errno.EROFS, "Read-only file system"), "cannot write (Read-only"),
        (
            RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "),
            "a process that loads images is gone (DataLoader worker (pid 12) is killed by signal:",
        ),
        (
            RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:1"),
            "another process of this run has ended",
        ),
        (
            RuntimeError("[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 6000ms"),
            "another process of this run does not answer",
        ),
        (
            RuntimeError("Application timeout caused pair closure"),
            "another process of this run does not answer (Application timeout",
        ),
        (OSError(errno.EMFILE, "Too many open files", "x.jpg"), "too many open files ([Errno 24]"),
        (OSError(errno.ENFILE, "Too many open files in system"), "raise the limit (ulimit -n)"),
        (
            RuntimeError("Too many open files. Communication with the workers is no longer ..."),
            "or lower DATALOADER.NUM_WORKERS",
        ),
        (
            RuntimeError(
                "unable to open shared memory object </torch_1> (24): Too many open files"
            ),
            "too many open files (unable to open shared",
        ),
        (RuntimeError("received 0 items of ancdata"), "too many open files (received 0 items"),
        (RuntimeError("Connection closed by peer"), None),  # of whom?
        (ConnectionResetError(errno.ECONNRESET, "reset"), None),  # not in a DataLoader
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), None),
    ],
)
def test_errors_as_they_were_seen(error, words):
    sentence = describe(error)
    assert sentence is None if words is None else words in sentence


def test_explained_raises_a_sentence_and_leaves_the_rest():
    with pytest.raises(UserError, match="--resume"), explained():
        raise MemoryError("all of it")
    with pytest.raises(KeyError), explained():
        raise KeyError("x")
    with pytest.raises(UserError, match="^mine$"), explained():
        raise UserError("mine")


def test_a_thread_is_quiet_about_what_the_main_one_will_say(monkeypatch):
    told = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_type))

    def work(error):
        raise error

    with explained():
        full = OSError(errno.ENOSPC, "No space left on device")
        removed = FileNotFoundError(errno.ENOENT, "No such file or directory", "events.out")
        for error in (full, removed, KeyError("a mistake")):
            thread = threading.Thread(target=work, args=(error,))
            thread.start()
            thread.join()
    assert told == [KeyError]


def test_a_torch_without_its_private_store_names_no_rank(monkeypatch, tmp_path):
    dist = torch.distributed
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    try:
        monkeypatch.setattr(failures, "_ROLL_CALL_S", 0.1)
        error = RuntimeError(
            "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:1"
        )
        assert failures._silent_ranks(error) == ""  # this process answers
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        assert failures._silent_ranks(error) == "; no word from rank 1"
        monkeypatch.delattr(dist.distributed_c10d, "_get_default_store")
        assert failures._silent_ranks(error) == ""
    finally:
        monkeypatch.undo()
        dist.destroy_process_group()
