"""Loggers given back as they were: a run gives them handlers that write into its folder."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from moco_d2.engine.launch import LOGGERS


@contextmanager
def restored_loggers() -> Iterator[None]:
    names = [logging.getLogger(name) for name in (*LOGGERS, "detectron2.engine.train_loop")]
    before = [(list(x.handlers), list(x.filters), x.propagate, x.level) for x in names]
    try:
        yield
    finally:
        for logger, state in zip(names, before, strict=True):
            logger.handlers[:], logger.filters[:], logger.propagate = state[:3]
            logger.setLevel(state[3])
