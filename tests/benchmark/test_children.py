"""The child processes of benchmark/runs/children.py."""

import signal
import subprocess

import pytest
from support.commands import SECONDS, Python

PARENT = """
import signal, sys
from moco_d2.benchmark.runs.children import in_child
from moco_d2.engine.signals import end_on_signals

def wait():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("waits", flush=True)
    signal.pause()

end_on_signals()
in_child(set(), wait)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_parent(number):
    """Otherwise it would wait for its next task forever, and hold the output of the command."""
    process = Python(["-c", PARENT], stdout=subprocess.PIPE)
    assert process.stdout.readline() == "waits\n"
    process.send_signal(number)
    assert process.communicate(timeout=SECONDS)[0] == ""  # all who had it open have ended


RACE = """
import os, signal
from multiprocessing import popen_fork
from moco_d2.benchmark.runs.children import in_child
from moco_d2.engine.signals import end_on_signals

start = popen_fork.Popen.__init__

def interrupted(self, process):
    start(self, process)  # the parent has not yet noted it as its child
    os.kill(os.getpid(), signal.SIGTERM)

popen_fork.Popen.__init__ = interrupted
end_on_signals()
in_child(set(), signal.pause)
"""


def test_a_signal_right_after_the_fork_leaves_no_child():
    process = Python(["-c", RACE], stdout=subprocess.PIPE)
    assert process.communicate(timeout=SECONDS)[0] == ""
    assert process.returncode == 128 + signal.SIGTERM
