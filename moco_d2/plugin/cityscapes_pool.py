"""Read Cityscapes' annotations in processes that cannot hang.

Detectron2's loader forks a `multiprocessing.Pool` and drops it. The pool's workers are copies of
the training process: they have its locks, which a thread of TensorBoard or torch may hold at this
moment, and its handlers of signals, of which ours for SIGTERM does not end the process. When the
dropped pool is collected as garbage it sends its workers a SIGTERM and waits for them, for ever.

Here a pool lives as long as one `map`, and its processes inherit nothing: a fresh interpreter,
which has one thread and no handlers, reads the annotations in copies of itself and ends with them.
A process that dies makes an error. Few images are read in this process, sooner than an interpreter
starts.
"""

import logging
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# A fresh interpreter imports Detectron2 in some 5 s, in which one process reads 100 images.
_FEW = 100

_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; "
    "from moco_d2.plugin.cityscapes_pool import read_in_processes; read_in_processes()"
)


class ShortLivedPool:
    """The part of `multiprocessing.Pool` that Detectron2's Cityscapes loader uses: `map`.

    Args:
        processes: how many processes read at the same time.
    """

    def __init__(self, processes: int):
        self.processes = processes

    def map(
        self, function: Callable[[tuple[str, ...]], Any], files: list[tuple[str, ...]]
    ) -> list[Any]:
        """Return `function` of each image's files, in their order.

        Raises:
            RuntimeError: one of the reading processes was killed.
            Exception: what `function` raises.
        """
        if len(files) <= _FEW or not _are_local(files[0]):
            return [function(file) for file in files]
        result = subprocess.run(  # noqa: S603  this interpreter
            [sys.executable, "-c", _PROGRAM.format(path=sys.path)],
            input=pickle.dumps((function, files, self.processes)),
            stdout=subprocess.PIPE,
            check=False,
        )
        if result.returncode:
            raise RuntimeError(
                f"reading the annotations of {len(files)} Cityscapes images failed: the process "
                f"that reads them ended with exit code {result.returncode}; its error is above, or "
                "the machine's memory was exhausted"
            )
        answers = pickle.loads(result.stdout)  # noqa: S301  from our own process
        if isinstance(answers, Exception):
            raise answers
        return answers


def _are_local(files: tuple[str, ...]) -> bool:
    """Whether a fresh interpreter finds these files: handlers of paths such as s3:// are registered
    in this process only.
    """
    return all(Path(file).is_file() for file in files)


class _MultiprocessingWithoutPools:
    """`multiprocessing` for Detectron2's Cityscapes module."""

    Pool = ShortLivedPool

    def __getattr__(self, name: str) -> Any:
        return getattr(multiprocessing, name)


def leave_no_pool_behind() -> None:
    """Let Detectron2's Cityscapes loader use `ShortLivedPool`."""
    from detectron2.data.datasets import cityscapes

    if getattr(cityscapes, "mp", None) is multiprocessing:
        cityscapes.mp = _MultiprocessingWithoutPools()


def read_in_processes() -> None:
    """Apply a function to files in several processes: the program of the fresh interpreter.

    It reads a pickle of (function, files, number of processes) from stdin, and writes one of the
    results, or of the exception that the function raised, to stdout.
    """
    answer_to, sys.stdout = sys.stdout.buffer, sys.stderr  # what a library prints is no answer
    function, files, processes = pickle.load(sys.stdin.buffer)  # noqa: S301  from our own process
    # This interpreter has one thread and no handlers, so that a fork is safe, and cheap.
    linux = sys.platform == "linux"
    context = multiprocessing.get_context("fork") if linux else multiprocessing.get_context("spawn")
    parts = [files[i::processes] for i in range(min(processes, len(files)))]
    workers, pipes = [], []
    for part in parts:
        pipe, end_of_worker = context.Pipe(duplex=False)
        worker = context.Process(target=_read, args=(function, part, end_of_worker), daemon=True)
        worker.start()
        end_of_worker.close()  # so that the end of the worker ends the pipe
        workers.append(worker)
        pipes.append(pipe)
    results: list[Any] = [None] * len(files)
    answers: list[Any] | Exception = results
    for i, (worker, pipe) in enumerate(zip(workers, pipes, strict=True)):
        try:
            part = pipe.recv()
        except EOFError:
            worker.join()
            sys.exit(f"one of the processes ended with exit code {worker.exitcode}")
        if isinstance(part, Exception):
            answers = part
            break
        results[i :: len(workers)] = part
    answer_to.write(pickle.dumps(answers))
    answer_to.flush()


def _read(function: Callable[[tuple[str, ...]], Any], files: list[Any], pipe: Any) -> None:
    try:
        answer: Any = [function(file) for file in files]
    except Exception as error:  # the caller raises it
        answer = error
    pipe.send(answer)
