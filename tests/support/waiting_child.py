"""A child of --num-gpus: a spawned process imports this file, and not the tests."""

import signal
import sys
from pathlib import Path

from moco_d2.engine.signals import STOP_SIGNALS


def wait_for_a_signal(rank: int, folder: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    (folder / str(rank)).write_text("")
    sys.exit(128 + signal.sigwait(STOP_SIGNALS))
