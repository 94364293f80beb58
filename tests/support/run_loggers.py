"""Loggers given back as they were: a run gives them handlers that write into its folder."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from moco_d2.engine.terminal import LOGGERS


def logger_states() -> dict[logging.Logger, tuple]:
    loggers = map(logging.getLogger, (*LOGGERS, "detectron2.engine.train_loop"))
    return {x: (list(x.handlers), list(x.filters), x.propagate, x.level) for x in loggers}


def set_loggers(states: dict[logging.Logger, tuple]) -> None:
    for logger, (handlers, filters, propagate, level) in states.items():
        logger.handlers[:], logger.filters[:], logger.propagate = handlers, filters, propagate
        if logger.level != level:  # setting it takes a look at all loggers
            logger.setLevel(level)


@contextmanager
def restored_loggers() -> Iterator[None]:
    before = logger_states()
    try:
        yield
    finally:
        set_loggers(before)
