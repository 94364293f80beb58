"""The runs of a suite as jobs of a cluster, through submitit."""

import multiprocessing
import re
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moco_d2.benchmark.runs import cell_state, run_log
from moco_d2.benchmark.runs.execution import BUSY_EXIT_CODE, Place, main
from moco_d2.benchmark.runs.suites import Cell
from moco_d2.engine.slurm import parse_words, queue
from moco_d2.errors import UserError

_JOBS = "jobs"  # of submitit's files, in the suite's folder
_JOB = {"slurm": re.compile(r"\d+(_\d+)?"), "local": re.compile(r"\d+")}  # numbers of jobs


class ClusterJob:
    """What submitit runs: all commands of a cell that are left, each in a process of its own."""

    def __init__(self, cell: Cell, folder: Path, place: Place):
        self.arguments = (cell, folder.absolute(), place)
        self._process: Any = None

    def __call__(self) -> None:
        """
        Raises:
            UserError: a command failed; submitit marks the job as failed.
        """
        cell, folder, place = self.arguments
        while True:
            # This process has imported nothing heavy, and has no threads.
            self._process = multiprocessing.get_context("fork").Process(
                target=_main, args=self.arguments
            )
            self._process.start()
            self._process.join()
            if self._process.exitcode == BUSY_EXIT_CODE:
                return  # a runner, or another job, is at it
            if self._process.exitcode:
                log = folder / cell.name / cell_state.OUTPUT_LOG
                raise UserError(f"{cell.name}: {run_log.last_line(log)} (whole log: {log})")
            if cell_state.examine(cell, folder, processes=place.processes).status == "done":
                return

    def checkpoint(self) -> Any:
        """submitit's question what to run when the job is queued again: the same, which continues
        from where the command that is told to stop here has saved.
        """
        import submitit

        if self._process is not None:
            self._process.terminate()
            self._process.join()
        return submitit.helpers.DelayedSubmission(ClusterJob(*self.arguments))


def _main(cell: Cell, folder: Path, place: Place) -> None:
    """The cluster warns every process of a job, but submitit, in the parent, is who acts."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    main(cell, folder, place)


def submit_cells(
    cells: Iterable[Cell], folder: Path, place: Place, words: list[str], *, gpus: int
) -> dict[str, str]:
    """Queue a job for each cell that does not have one.

    Args:
        cells: that can run now.
        folder: the suite's.
        place: of each run.
        words: KEY=VALUE, see slurm.submit.
        gpus: of each run.

    Returns:
        what became of each cell, by name: a few words with the job's number.

    Raises:
        UserError: see slurm.queue.
    """
    given = parse_words(words)
    cluster = given.setdefault("cluster", "slurm")
    # A run is one task, which starts a process a GPU itself.
    given |= {"folder": given.get("folder", str(folder / _JOBS)), "tasks_per_node": 1}
    if gpus:
        given.setdefault("gpus_per_node", gpus)
    last = {line["cell"]: line for line in run_log.read_log(folder)}
    outcome = {}
    for cell in cells:
        line = last.get(cell.name)
        if cell_state.is_running(cell, folder):
            outcome[cell.name] = "is running"
        elif line and line["event"] == "submitted" and not _is_over(line):
            outcome[cell.name] = f"is in the queue, job {line['job']}"
        else:
            job = queue(ClusterJob(cell, folder, place), given, name=cell.name)
            where = {"job": job.job_id, "cluster": cluster, "jobs": given["folder"]}
            run_log.log_event(folder, "submitted", cell.name, **where)
            outcome[cell.name] = f"submitted, job {job.job_id}"
    return outcome


def _is_over(line: dict[str, Any]) -> bool:
    """Whether the job of a log line has left the queue, as far as the cluster knows."""
    import submitit

    jobs = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}
    cluster, job, place = (line.get(key) for key in ("cluster", "job", "jobs"))
    if not (isinstance(cluster, str) and isinstance(job, str) and isinstance(place, str)):
        return True  # the log is anybody's
    if cluster not in jobs or not _JOB[cluster].fullmatch(job):
        return True
    return jobs[cluster](place, job).done()
