"""A tracker without a library."""

import random
from typing import ClassVar

import numpy as np
import torch

from moco_d2.engine import trackers
from moco_d2.engine.trackers import Tracker


class Recording(Tracker):
    """Keeps what it is told in the class, which a test resets."""

    calls: ClassVar[list] = []
    fails_in: ClassVar[str | None] = None

    def __init__(self, folder, config, identity):
        random.random(), np.random.rand(), torch.rand(1)
        print("a greeting")
        self.identity = identity or "new"
        self.note("start", folder.name, config["SEED"], identity)

    def note(self, *call):
        self.calls.append(call)
        if call[0] == self.fails_in:
            raise ConnectionError("no\nnetwork")

    def log(self, values, iteration):
        self.note("log", values, iteration)

    def finish(self, state):
        self.note("finish", state)

    @classmethod
    def stand_in(cls, monkeypatch, name):
        """Take the place of a tracker for a test."""
        monkeypatch.setitem(trackers.TRACKERS, name, cls)
        monkeypatch.setattr(trackers, "_check", lambda name: None)
        monkeypatch.setattr(cls, "calls", [])
        monkeypatch.setattr(cls, "fails_in", None)
        return cls

    @classmethod
    def values(cls):
        """Return the last value of each metric."""
        logged = [call[1] for call in cls.calls if call[0] == "log"]
        return {name: value for values in logged for name, value in values.items()}
