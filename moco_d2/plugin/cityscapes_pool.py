"""Read Cityscapes' annotations in processes that cannot hang.

Detectron2's loader forks a `multiprocessing.Pool` and never closes it. The pool's workers are
copies of the training process. They have copies of its locks, which a thread of TensorBoard or
torch may hold at the fork. They also have its signal handlers, and the handler for SIGTERM does not
end the process. The garbage collector sends the workers a SIGTERM and then waits for them forever.

Here, a pool exists only during one `map`, and its processes inherit nothing. A fresh interpreter
with one thread and no handlers reads the annotations in forks of itself, and ends with them. A
killed process raises an error. A small number of images is read in this process, because this takes
less time than the start of an interpreter.
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

# A fresh interpreter needs about 5 s to import Detectron2. One process reads 100 images meanwhile.
_FEW = 100

_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; "
    "from moco_d2.plugin.cityscapes_pool import read_in_processes; read_in_processes()"
)


class ShortLivedPool:
    """The part of `multiprocessing.Pool` that Detectron2's Cityscapes loader uses: `map`.

    Args:
        processes: Number of processes that read at the same time.
    """

    def __init__(self, processes: int):
        self.processes = processes

    def map(
        self, function: Callable[[tuple[str, ...]], Any], files: list[tuple[str, ...]]
    ) -> list[Any]:
        """Return the results of `function` for the files of each image, in their order.

        Raises:
            RuntimeError: If one of the reading processes was killed.
            Exception: If `function` raises it.
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
                f"that reads them ended with exit code {result.returncode}; see its error above, "
                "or check whether the machine ran out of memory"
            )
        answers = pickle.loads(result.stdout)  # noqa: S301  from our own process
        if isinstance(answers, Exception):
            raise answers
        return answers


def _are_local(files: tuple[str, ...]) -> bool:
    """Return whether these are local files. A fresh interpreter finds only these, because handlers
    of paths such as s3:// are registered only in this process.
    """
    return all(Path(file).is_file() for file in files)


class _MultiprocessingWithoutPools:
    """A replacement of `multiprocessing` for Detectron2's Cityscapes module."""

    Pool = ShortLivedPool

    def __getattr__(self, name: str) -> Any:
        return getattr(multiprocessing, name)


def leave_no_pool_behind() -> None:
    """Make Detectron2's Cityscapes loader use `ShortLivedPool`."""
    from detectron2.data.datasets import cityscapes

    if getattr(cityscapes, "mp", None) is multiprocessing:
        cityscapes.mp = _MultiprocessingWithoutPools()


def read_in_processes() -> None:
    """Apply a function to files in several processes. This is the program of the fresh interpreter.

    It reads a pickle of (function, files, number of processes) from stdin. It writes a pickle of
    the results, or of the exception that the function raised, to stdout.
    """
    # Only the pickle may go to stdout, so the output of libraries is redirected.
    output, sys.stdout = sys.stdout.buffer, sys.stderr
    function, files, processes = pickle.load(sys.stdin.buffer)  # noqa: S301  from our own process
    # A fork is safe here, because this interpreter has one thread and no handlers.
    linux = sys.platform == "linux"
    context = multiprocessing.get_context("fork") if linux else multiprocessing.get_context("spawn")
    parts = [files[i::processes] for i in range(min(processes, len(files)))]
    workers, pipes = [], []
    for part in parts:
        pipe, end_of_worker = context.Pipe(duplex=False)
        worker = context.Process(target=_read, args=(function, part, end_of_worker), daemon=True)
        worker.start()
        end_of_worker.close()  # the pipe then closes when the worker ends
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
    output.write(pickle.dumps(answers))
    output.flush()


def _read(function: Callable[[tuple[str, ...]], Any], files: list[Any], pipe: Any) -> None:
    try:
        answer: Any = [function(file) for file in files]
    except Exception as error:  # ShortLivedPool.map raises it
        answer = error
    pipe.send(answer)
