"""What a process does about SIGINT, SIGTERM and SIGHUP, and that one wish to stop counts once."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import torch.multiprocessing as mp
from support.paths import ROOT
from support.waiting_child import wait_for_a_signal

from moco_d2.engine import hooks, signals
from moco_d2.engine import launch as launch_module
from moco_d2.engine.hooks import EvalHook, StopOnSignal
from moco_d2.engine.signals import STOP_SIGNALS
from moco_d2.errors import Stopped, UserError


@pytest.fixture(autouse=True)
def _handlers():
    """As from a terminal, whatever nohup has done to the tests, and restored afterwards."""
    before = {n: signal.getsignal(n) for n in STOP_SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def train(step, *, iterations: int = 4, more=()) -> tuple[list[int], Any]:
    """A run that calls ``step(iteration)`` in each step; the iterations after which it saved."""
    from support.scripted_trainer import (
        Scripted,  # imports Detectron2, which child processes do not need
    )

    saved: list[int] = []
    trainer = Scripted(lambda iteration: step(iteration) or {})
    trainer.register_hooks([*more, StopOnSignal(lambda: saved.append(trainer.iter))])
    try:
        trainer.train(0, iterations)
    except Stopped as stopped:
        saved.append(-stopped.exit_code)
    return saved, trainer


def send(*numbers: int) -> None:
    for number in numbers:
        signal.raise_signal(number)


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_that_arrives_twice_saves_and_stops_once(number, times):
    saved, trainer = train(lambda i: send(*[number] * times) if i == 1 else None)
    assert saved == [1, -(128 + number)] and trainer.iter == 1


@pytest.mark.parametrize("first", STOP_SIGNALS)
@pytest.mark.parametrize("second", STOP_SIGNALS)
def test_the_first_of_several_signals_decides_on_the_exit_code(first, second):
    saved, _ = train(lambda i: send(first, second) if i == 1 else None)
    assert saved == [1, -(128 + first)]


def test_a_later_ctrl_c_stops_at_once(monkeypatch):
    monkeypatch.setattr(hooks, "SAME_SIGNAL_S", -1.0)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(lambda i: send(signal.SIGINT, signal.SIGINT))
    assert not isinstance(stopped.value, Stopped)


def test_a_hangup_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    saved, trainer = train(lambda i: send(signal.SIGHUP))
    assert saved == [] and trainer.iter == 4


def test_somebody_elses_handler_is_left_alone():
    received = []
    signal.signal(signal.SIGTERM, lambda *_: received.append(1))
    saved, _ = train(lambda i: send(signal.SIGTERM) if i == 1 else None)
    assert saved == [] and received == [1]


def test_signals_in_the_last_step_stop_before_the_evaluation():
    evaluated = []
    hook = EvalHook(0, lambda: evaluated.append(1))
    saved, _ = train(lambda i: send(signal.SIGTERM) if i == 3 else None, more=[hook])
    assert saved == [3, -143] and evaluated == []


def test_signals_in_the_last_evaluation_have_their_usual_effect():
    seen = []
    hook = EvalHook(0, lambda: seen.extend(signal.getsignal(n) for n in STOP_SIGNALS))
    train(lambda i: None, more=[hook])
    assert seen == [signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL]


COMMAND = f"""
import sys
import threading
sys.path.insert(0, {str(ROOT)!r})
from moco_d2.cli import run_command
def main():
    print("begun", flush=True)
    {{work}}
run_command(main)
"""


def command(work: str, **environment: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(work=work)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize("work", ["sys.stdin.read()", "exec('while True: pass')"])
def test_outside_of_training_a_command_ends_in_one_line(number, work):
    process = command(work)
    process.send_signal(number)
    process.wait(600)
    _, said = process.communicate()
    name = signal.Signals(number).name
    assert process.returncode == 128 + number
    assert said == f"stopped by {name}; --resume continues a run that has a checkpoint\n"


@pytest.mark.parametrize(
    ("work", "rest"),
    [
        (
            "begin_work('tools/x.py SEED 1')",
            "nothing new was saved; start again with: tools/x.py SEED 1",
        ),
        (
            "begin_work('tools/x.py'); note_saved('out/a.pth')",
            "saved: out/a.pth; continue with: tools/x.py --resume",
        ),
        (
            "begin_work('tools/x.py --resume A 1'); note_saved('out/a.pth')",
            "saved: out/a.pth; continue with: tools/x.py --resume A 1",
        ),
    ],
)
def test_the_line_says_what_is_saved_and_how_to_go_on(work, rest):
    process = command(
        f"from moco_d2.engine.signals import begin_work, note_saved; {work}; "
        "print('begun', flush=True); sys.stdin.read()"
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    process.wait(600)
    assert process.communicate()[1] == f"stopped by SIGINT; {rest}\n"


def test_when_a_command_has_ended_a_ctrl_c_prints_nothing():
    process = command(
        "import atexit; atexit.register(lambda: (print('ending', flush=True), sys.stdin.read()))"
    )
    assert process.stdout.readline() == "ending\n"
    process.send_signal(signal.SIGINT)
    process.wait(600)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGINT and said == ""


# --num-gpus spawns its processes, which takes long: one case shows that, two fork them.
@pytest.mark.parametrize(
    ("number", "start_method"),
    [(signal.SIGTERM, "spawn"), (signal.SIGINT, "fork"), (signal.SIGHUP, "fork")],
)
def test_the_parent_of_several_processes_passes_signals_on(number, start_method, tmp_path):
    def parent() -> None:
        with launch_module._children_as_one():
            mp.start_processes(
                wait_for_a_signal, args=(tmp_path,), nprocs=2, start_method=start_method
            )

    process = multiprocessing.get_context("fork").Process(target=parent)
    process.start()
    deadline = time.monotonic() + 600
    while len(list(tmp_path.iterdir())) < 2:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.join(600)
    assert process.exitcode == 128 + number


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGTERM, Stopped), (signal.SIGHUP, Stopped), (signal.SIGKILL, UserError)],
)
def test_a_child_that_a_signal_has_ended(number, error):
    with pytest.raises(error) as raised, launch_module._children_as_one():
        mp.start_processes(os_kill, args=(int(number),), start_method="forkserver")
    if error is Stopped:
        assert raised.value.exit_code == 128 + number
    else:
        assert "process 0 of this run was killed by SIGKILL" in str(raised.value)


def os_kill(rank: int, number: int) -> None:
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)  # nohup's would be inherited through the fork server
    os.kill(os.getpid(), number)
    signal.pause()


def test_an_interrupted_child_is_no_success(monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(launch_module.pkgutil, "resolve_name", lambda name: interrupted)
    with pytest.raises(SystemExit) as ended:
        launch_module._run_child("tests:job", None)
    assert ended.value.code == 130


@pytest.mark.parametrize("other_thread", [False, True])
def test_signals_that_are_held_back_arrive_afterwards(other_thread):
    """Also where the process has a thread that does not block them: the kernel chooses it."""
    received = []
    signal.signal(signal.SIGTERM, lambda *_: received.append(1))
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    if other_thread:
        thread.start()
    try:
        with signals.held_back():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)  # the other thread wakes up, and this one runs the handler
            assert received == []
        assert received == [1]
    finally:
        end.set()
        if other_thread:
            thread.join()


def test_a_signal_that_is_held_back_ends_a_process_that_handles_none():
    reading, writing = os.pipe()

    def child() -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        with signals.held_back():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            os.write(writing, b"held")
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    os.close(writing)
    process.join(600)
    assert os.read(reading, 10) == b"held" and process.exitcode == -signal.SIGTERM
    os.close(reading)


def test_signals_that_are_ignored_stay_ignored_while_held_back():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals.held_back():
        os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
