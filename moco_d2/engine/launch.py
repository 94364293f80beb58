"""Start the processes of a job, and set up its device, folder and logging.

Pretraining and fine-tuning share this. Several processes are started by torchrun, by Detectron2's
launch() (``--num-gpus``) or by SLURM (``--submit``, slurm.py).
"""

import argparse
import contextlib
import datetime
import logging
import logging.handlers
import os
import pkgutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from moco_d2.config.load import find_config
from moco_d2.engine.failures import describe, explained
from moco_d2.engine.signals import STOP_SIGNALS, is_default
from moco_d2.errors import INTERRUPTED_EXIT_CODE, Stopped, UserError
from moco_d2.files import remove_leftovers
from moco_d2.locks import run_in

if TYPE_CHECKING:
    from detectron2.config import CfgNode

LOGGERS = ("detectron2", "fvcore", "moco_d2")  # loggers of a run
_HELD_LINES = 100_000  # log lines before the folder exists
_TIMEOUT_S = 1800  # seconds, Detectron2's default


def launch(main: str, args: argparse.Namespace) -> None:
    """Run a function on the parsed flags in every process of the job.

    Args:
        main: The function as ``package.module:function``. As a name, it needs no slow import before
            the flags are parsed.
        args: The argument of the function.

    Raises:
        UserError: If --num-gpus is too large, or a process raises it.
    """
    import torch

    job = pkgutil.resolve_name(main)

    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:
        args.resume = True  # torchrun restarts all processes after one has failed
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # started by torchrun or SLURM
        with explained(), _quiet_log_errors():
            _join_torchrun_group()
            job(args)
        return
    if args.num_gpus * args.num_machines > 1 and torch.cuda.device_count() < args.num_gpus:
        raise UserError(
            f"--num-gpus is {args.num_gpus}, but this machine has {torch.cuda.device_count()}: "
            "lower it, or for several CPU processes use torchrun --nproc-per-node N"
        )
    if args.num_gpus * args.num_machines == 1:
        with explained(), _quiet_log_errors():
            job(args)
        return
    from detectron2.engine import launch as detectron2_launch

    with _children_as_one():
        detectron2_launch(
            _run_child,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args),
            timeout=timeout(),
        )


def _run_child(main: str, args: argparse.Namespace) -> None:
    """Run the function in a process of --num-gpus.

    After an interrupt, the process ends with the interrupt's exit code, which torch.multiprocessing
    would replace.
    """
    try:
        with explained(), _quiet_log_errors():
            pkgutil.resolve_name(main)(args)
    except UserError as error:
        # The parent reads the text of the traceback, where a subclass has another name.
        raise UserError(*error.lines) from error
    except KeyboardInterrupt as interrupt:
        sys.exit(getattr(interrupt, "exit_code", INTERRUPTED_EXIT_CODE))


@contextlib.contextmanager
def _quiet_log_errors() -> Iterator[None]:
    """Print no traceback for every log line that cannot be written, on a full disk.

    logging.raiseExceptions is a setting of the whole process, so it is restored at the end.
    """
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.raiseExceptions = before


@contextlib.contextmanager
def _children_as_one() -> Iterator[None]:
    """Pass signals on to the processes that the block starts, and end as they end.

    A signal to the whole process group reaches them twice, which hooks.StopOnSignal counts once.

    Raises:
        UserError: If a child has raised it, or was killed.
        Stopped: If a signal has ended a child before it had handlers.
        SystemExit: If a child has ended with an exit code.
    """
    import torch.multiprocessing as mp
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    def pass_on(number: int, frame: object) -> None:
        for child in mp.active_children():
            if child.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, number)

    before = {n: signal.signal(n, pass_on) for n in STOP_SIGNALS if is_default(n)}
    try:
        yield
    except ProcessRaisedException as error:
        # The text is the child's traceback, which ends with the error's class and message. The
        # message may have several lines.
        _, separator, message = str(error).rpartition("\nmoco_d2.errors.UserError: ")
        if separator:
            raise UserError(*message.strip().splitlines()) from error
        raise
    except ProcessExitedException as error:
        if error.exit_code >= 0:
            sys.exit(error.exit_code)
        if -error.exit_code in STOP_SIGNALS:
            raise Stopped(-error.exit_code) from error
        raise UserError(
            f"process {error.error_index} of this run was killed by {error.signal_name}, perhaps "
            "for lack of memory; continue with --resume"
        ) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def timeout() -> datetime.timedelta:
    """Return the time that a process waits for another one before the run fails.

    It is MOCO_D2_TIMEOUT seconds, by default Detectron2's half an hour. The main process may
    evaluate for so long while the others wait.

    Raises:
        UserError: If MOCO_D2_TIMEOUT is not a number.
    """
    seconds = os.environ.get("MOCO_D2_TIMEOUT", str(_TIMEOUT_S))
    try:
        return datetime.timedelta(seconds=float(seconds))
    except (ValueError, OverflowError) as error:
        raise UserError(f"MOCO_D2_TIMEOUT is {seconds!r}: give a number of seconds") from error


def _join_torchrun_group() -> None:
    import torch
    import torch.distributed as dist

    from moco_d2.plugin import compat

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timeout())
    compat.set_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))


def choose_device(cfg: "CfgNode") -> None:
    """Change a MODEL.DEVICE of cuda to cpu, in place, if no GPU is usable."""
    import torch

    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"


def seed(cfg: "CfgNode") -> None:
    """Seed all generators from SEED.

    default_setup does this again, but the random weights of the model are drawn before it.
    """
    from detectron2.utils import comm
    from detectron2.utils.env import seed_all_rng

    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())


def hold_log() -> logging.handlers.MemoryHandler:
    """Keep log lines in memory until setup_run writes them.

    A run is checked before its folder exists, and the log of the checks belongs into that folder.
    """
    held = logging.handlers.MemoryHandler(_HELD_LINES, flushLevel=logging.CRITICAL + 1)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(held)
    return held


@contextlib.contextmanager
def claimed(folder: str | Path, *, setting: str = "OUTPUT_DIR") -> Iterator[None]:
    """Hold the lock of a run's folder, for all its processes; see locks.run_in.

    Raises:
        UserError: If another run uses the folder, or it cannot be written, in all processes.
    """
    from detectron2.utils import comm

    with contextlib.ExitStack() as stack:
        problem = None
        if comm.is_main_process():
            try:
                stack.enter_context(run_in(folder, setting=setting))
            except UserError as error:
                problem = str(error)
        problem = comm.all_gather(problem)[0]
        if problem:
            raise UserError(problem)
        yield


def setup_run(
    cfg: "CfgNode", args: argparse.Namespace, held: logging.handlers.MemoryHandler
) -> None:
    """Call Detectron2's default_setup (folder, loggers, config.yaml, seed), and log the held lines.

    Raises:
        UserError: If OUTPUT_DIR cannot be created.
    """
    from detectron2.engine import default_setup
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    try:
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write OUTPUT_DIR {cfg.OUTPUT_DIR} ({error.strerror}): choose another folder"
        ) from error
    if comm.is_main_process():
        remove_leftovers(cfg.OUTPUT_DIR)
    for name in LOGGERS:
        logging.getLogger(name).removeHandler(held)
    args.config_file = str(find_config(args.config_file))  # default_setup logs the file
    default_setup(cfg, args)
    setup_logger(
        cfg.OUTPUT_DIR,
        distributed_rank=comm.get_rank(),
        name="moco_d2",
        abbrev_name="moco_d2",
    )
    logging.getLogger("detectron2.engine.train_loop").addFilter(without_user_errors)
    for record in held.buffer:
        logging.getLogger(record.name).handle(record)


def without_user_errors(record: logging.LogRecord) -> bool:
    """Filter the training loop's traceback of an error that is reported in one sentence."""
    error = record.exc_info[1] if record.exc_info else sys.exc_info()[1]
    return not (isinstance(error, UserError) or (error is not None and describe(error)))
