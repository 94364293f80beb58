"""The runs of a suite as jobs of a cluster, through submitit."""

import multiprocessing
import re
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moco_d2.benchmark.runs import cell_lock, cell_state, run_log
from moco_d2.benchmark.runs.execution import BUSY_EXIT_CODE, Place, main
from moco_d2.benchmark.runs.suites import Cell
from moco_d2.engine.slurm import gpus_of_node, parse_words, queue
from moco_d2.errors import UserError

_JOBS = "jobs"  # folder of submitit's files, inside the folder of the suite
_JOB = {"slurm": re.compile(r"\d+(_\d+)?"), "local": re.compile(r"\d+")}  # form of job numbers


class ClusterJob:
    """The callable for submitit. It runs all remaining commands of a cell, each in a process."""

    def __init__(self, cell: Cell, folder: Path, place: Place):
        self.arguments = (cell, folder.absolute(), place)
        self._process: Any = None

    def __call__(self) -> None:
        """Run the commands.

        Raises:
            UserError: If a command failed. submitit then marks the job as failed.
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
                return  # a runner or another job runs the cell
            if self._process.exitcode:
                log = folder / cell.name / cell_state.OUTPUT_LOG
                raise UserError(f"{cell.name}: {run_log.last_line(log)} (whole log: {log})")
            if cell_state.examine(cell, folder, processes=place.processes).status == "done":
                return

    def checkpoint(self) -> Any:
        """Save, and return the same job for submitit, which queues it again.

        The new job continues from the checkpoint that the command saves when it stops here.
        """
        import submitit

        if self._process is not None:
            self._process.terminate()
            self._process.join()
        return submitit.helpers.DelayedSubmission(ClusterJob(*self.arguments))


def _main(cell: Cell, folder: Path, place: Place) -> None:
    """Run a command and ignore the warnings of the cluster, which the parent process handles."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    main(cell, folder, place)


def submit_cells(
    cells: Iterable[Cell], folder: Path, place: Place, words: list[str], *, gpus: int
) -> dict[str, str]:
    """Queue a job for each cell that does not have one.

    Args:
        cells: Cells that can run now.
        folder: Folder of the suite.
        place: Devices of each run.
        words: KEY=VALUE, see slurm.submit.
        gpus: Number of GPUs of each run.

    Returns:
        Name of each cell -> its outcome, in a few words with the number of the job.

    Raises:
        UserError: See slurm.queue.
    """
    options = parse_words(words)
    cluster = options.setdefault("cluster", "slurm")
    # A run is one task of the cluster. Its tool starts one process per GPU.
    options |= {"folder": options.get("folder", str(folder / _JOBS)), "tasks_per_node": 1}
    if gpus and not gpus_of_node(options):  # gres=gpu:8 asks for them, too
        options["gpus_per_node"] = gpus
    last = {line["cell"]: line for line in run_log.read_log(folder)}
    outcome = {}
    for cell in cells:
        line = last.get(cell.name)
        if cell_lock.is_running(cell, folder):
            outcome[cell.name] = "is running"
        elif line and line["event"] == "submitted" and not _is_over(line):
            outcome[cell.name] = f"is in the queue, job {line['job']}"
        else:
            job = queue(ClusterJob(cell, folder, place), options, name=cell.name)
            fields = {"job": job.job_id, "cluster": cluster, "jobs": options["folder"]}
            run_log.log_event(folder, "submitted", cell.name, **fields)
            outcome[cell.name] = f"submitted, job {job.job_id}"
    return outcome


def _is_over(line: dict[str, Any]) -> bool:
    """Return whether the job of a log line has left the queue, as far as the cluster knows."""
    import submitit

    jobs = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}
    cluster, job, place = (line.get(key) for key in ("cluster", "job", "jobs"))
    if not (isinstance(cluster, str) and isinstance(job, str) and isinstance(place, str)):
        return True  # anybody may have written the log
    if cluster not in jobs or not _JOB[cluster].fullmatch(job):
        return True
    return jobs[cluster](place, job).done()
