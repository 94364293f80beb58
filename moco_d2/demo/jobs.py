"""Runs the tools' command lines, a few at a time, with one progress bar over all of them."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import runpy
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from moco_d2.errors import UserError

_POLL_SECONDS = 0.5
TOOLS = Path(__file__).resolve().parents[2] / "tools"


@dataclasses.dataclass
class Job:
    """One command line.

    Attributes:
        tool: file in tools/, ``train_net.py``.
        arguments: its command line.
        log: where its output goes.
        weight: expected share of the work, in any unit that is the same for all jobs.
        output: OUTPUT_DIR whose metrics.json tells how far it is; None: unknown until it ends.
        steps: iterations it runs; 0 with no output.
        threads: of torch.
    """

    tool: str
    arguments: list[str]
    log: Path
    weight: float
    output: Path | None = None
    steps: int = 0
    threads: int = 1

    @property
    def command(self) -> str:
        """The line to type for the same."""
        return f"tools/{self.tool} {shlex.join(self.arguments)}"

    def progress(self) -> float:
        """Share of the iterations done, in [0, 1]."""
        if self.output is None or not self.steps:
            return 0.0
        with contextlib.suppress(OSError, ValueError, IndexError, KeyError):
            last = (self.output / "metrics.json").read_text().splitlines()[-1]
            return min(1.0, json.loads(last)["iteration"] / self.steps)
        return 0.0


class JobRunner:
    """Runs jobs in forked processes: each finds torch and Detectron2 imported already.

    On two cores a demo's dozen of commands would otherwise spend a minute on imports.
    """

    def __init__(self, total_weight: float, *, parallel: int):
        """
        Args:
            total_weight: of all jobs to come.
            parallel: jobs at a time.
        """
        self.parallel = parallel
        self.commands: list[str] = []
        self._bar = tqdm(
            total=round(total_weight),
            unit="unit",
            bar_format="{desc:24.24} |{bar}| {percentage:3.0f}% [{elapsed}, left {remaining}]",
            mininterval=1.0,
            dynamic_ncols=True,
        )
        self._done = 0.0

    def run(self, jobs: list[Job], description: str) -> None:
        """Run `jobs`, at most `parallel` at a time, and wait for all.

        Raises:
            UserError: one failed; shows the end of its log.
        """
        self._bar.set_description_str(description)
        waiting = list(jobs)
        running: dict[multiprocessing.Process, Job] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.parallel:
                    job = waiting.pop(0)
                    self.commands.append(job.command)
                    running[_start(job)] = job
                time.sleep(_POLL_SECONDS)
                for process in [p for p in running if not p.is_alive()]:
                    job = running.pop(process)
                    if process.exitcode:
                        raise UserError(_failure(job, process.exitcode))
                    self._done += job.weight
                self._show(sum(job.progress() * job.weight for job in running.values()))
        finally:
            for process in running:
                process.terminate()
                process.join()

    def _show(self, partial: float) -> None:
        done = self._done + partial
        if done > self._bar.n:  # progress files are written now and then; a bar never goes back
            self._bar.n = min(done, self._bar.total)
            self._bar.refresh()

    def close(self) -> None:
        """Complete the bar."""
        self._bar.close()


def _start(job: Job) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=_execute, args=(job,))
    process.start()
    return process


def _execute(job: Job) -> None:
    """In the child: run the tool as ``python tools/TOOL ARGUMENTS`` would."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    output = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    import torch

    torch.set_num_threads(job.threads)
    script = TOOLS / job.tool
    sys.argv = [str(script), *job.arguments]
    runpy.run_path(str(script), run_name="__main__")


def _failure(job: Job, exit_code: int) -> str:
    lines = job.log.read_text(errors="replace").splitlines() if job.log.exists() else []
    last = lines[-1] if lines else "no output"
    return f"`{job.command}` ended with exit code {exit_code}: {last} (whole log: {job.log})"


@contextlib.contextmanager
def job_runner(total_weight: float, *, parallel: int) -> Iterator[JobRunner]:
    """A JobRunner whose bar is closed at the end, whatever happens."""
    import detectron2.engine
    import detectron2.modeling  # noqa: F401  children inherit the imported modules

    runner = JobRunner(total_weight, parallel=parallel)
    try:
        yield runner
    finally:
        runner.close()
