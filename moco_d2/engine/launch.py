"""Start the processes of a job, and set up its device, folder and logging.

Pretraining and fine-tuning share this. Several processes are started by torchrun, by ``--num-gpus``
or by SLURM (``--submit``, slurm.py), and meet in process_group.py.
"""

import argparse
import contextlib
import logging
import logging.handlers
import os
import pkgutil
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moco_d2.config.load import find_config_of, load_config_of
from moco_d2.engine.failures import describe, explained
from moco_d2.engine.launcher_environment import Place, place_of_process, port_of, restarts
from moco_d2.engine.process_group import joined
from moco_d2.engine.signals import (
    STOP_SIGNALS,
    begin_work,
    end_workers,
    is_default,
    stop_message,
)
from moco_d2.errors import INTERRUPTED_EXIT_CODE, Stopped, UserError
from moco_d2.files import remove_leftovers
from moco_d2.locks import run_in

if TYPE_CHECKING:
    from detectron2.config import CfgNode

_HELD_LINES = 100_000  # log lines before the folder exists
_ADDRESS = re.compile(r"tcp://\[?(?P<host>.+?)\]?:(?P<port>\d+)")  # of --dist-url
# Flags that may differ between the processes: the config is compared with what it contains.
_OF_PROCESS = ("command", "opts", "config_file", "machine_rank", "dist_url", "submit")


def launch(main: str, args: argparse.Namespace) -> None:
    """Run a function on the parsed flags in every process of the job.

    Args:
        main: The function as ``package.module:function``. As a name, it needs no slow import before
            the flags are parsed.
        args: The argument of the function.

    Raises:
        UserError: If flags or environment variables cannot start the processes, or one raises it.
    """
    from torch.multiprocessing.spawn import spawn

    job = pkgutil.resolve_name(main)
    if restarts() > 0:
        args.resume = True  # torchrun restarts all processes after one has failed
    place = place_of_process()  # torchrun and SLURM set it
    check_counts(args)
    if args.num_gpus * args.num_machines > 1:
        if place is not None or os.environ.get("TORCHELASTIC_RUN_ID"):
            raise UserError(
                f"--num-gpus {args.num_gpus} and --num-machines {args.num_machines} start "
                "processes, but torchrun or SLURM has already started them, as the environment "
                "says (WORLD_SIZE, TORCHELASTIC_RUN_ID): leave these flags out"
            )
        _check_flags(args)
        with _children_as_one():
            spawn(_start_child, args=(main, args), nprocs=args.num_gpus)
        return
    _run(job, args, place)


def check_counts(args: argparse.Namespace) -> None:
    """Check --num-gpus, --num-machines and --machine-rank, whatever starts the processes.

    Raises:
        UserError: If there can be no such number, or they contradict each other.
    """
    # On one machine, --num-gpus 0 is a single process, as in Detectron2.
    fewest = {"num_gpus": int(args.num_machines != 1), "num_machines": 1}
    for flag, least in fewest.items():
        if getattr(args, flag) < least:
            name = f"--{flag.replace('_', '-')}"
            raise UserError(f"{name} is {getattr(args, flag)}: give {least} or more")
    rank = getattr(args, "machine_rank", 0)
    if not 0 <= rank < args.num_machines:
        raise UserError(
            f"--machine-rank {rank} must be at least 0 and less than --num-machines "
            f"{args.num_machines}: give both flags, or neither"
        )


def _run(job: Callable[[Any], Any], args: argparse.Namespace, place: Place | None) -> None:
    begin_work(getattr(args, "command", None))
    with explained(), _quiet_log_errors(), contextlib.ExitStack() as stack:
        if place is not None:
            stack.enter_context(joined(place, on_gpu=_is_on_gpu(args), flags=_shared_flags(args)))
        job(args)


def _shared_flags(args: argparse.Namespace) -> dict[str, str]:
    """Return the flags that are the same in all processes of a run."""
    return {
        f"--{name.replace('_', '-')}": str(value)
        for name, value in vars(args).items()
        if name not in _OF_PROCESS
    }


def _check_flags(args: argparse.Namespace) -> None:
    """Check the flags that start several processes on GPUs.

    Raises:
        UserError: If they contradict each other or this machine.
    """
    import torch

    if not _is_on_gpu(args):
        raise UserError(
            f"--num-gpus {args.num_gpus} and --num-machines {args.num_machines} start processes "
            "on GPUs, but the device is the CPU: leave these flags out and use torchrun --nnodes "
            f"{args.num_machines} --nproc-per-node {args.num_gpus}"
        )
    if torch.cuda.device_count() < args.num_gpus:
        raise UserError(
            f"--num-gpus is {args.num_gpus}, but this machine has {torch.cuda.device_count()}: "
            "lower it"
        )
    address = _ADDRESS.fullmatch(args.dist_url)
    if address is not None:
        port_of(address["port"], "the port of --dist-url")
    elif args.num_machines > 1:
        raise UserError(
            f"--dist-url is {args.dist_url}, but --num-machines {args.num_machines} needs the "
            "address of machine 0: give tcp://HOST:PORT"
        )
    if args.dist_url == "auto":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            args.dist_url = f"tcp://127.0.0.1:{free.getsockname()[1]}"


def _is_on_gpu(args: argparse.Namespace) -> bool:
    """Return whether the job of these flags uses GPUs: --device or the config's MODEL.DEVICE."""
    import torch

    if not torch.cuda.is_available():
        return False
    device = getattr(args, "device", None)
    if device is None and getattr(args, "config_file", None):
        device = load_config_of(args).MODEL.DEVICE
    return device is None or not str(device).startswith("cpu")


def _start_child(local_rank: int, main: str, args: argparse.Namespace) -> None:
    """Run a process of --num-gpus, which joins the others as a process of torchrun does."""
    match = _ADDRESS.fullmatch(args.dist_url)
    if match is None:
        raise UserError(f"--dist-url is {args.dist_url}: give tcp://HOST:PORT")
    place = Place(
        rank=args.machine_rank * args.num_gpus + local_rank,
        world_size=args.num_machines * args.num_gpus,
        local_rank=local_rank,
        local_world_size=args.num_gpus,
        address=match["host"],
        port=int(match["port"]),
    )
    _run_child(main, args, place)


def _run_child(main: str, args: argparse.Namespace, place: Place | None = None) -> None:
    """Run the function in a process of --num-gpus.

    After an interrupt, the process ends with the interrupt's exit code, which torch.multiprocessing
    would replace.
    """
    try:
        _run(pkgutil.resolve_name(main), args, place)
    except UserError as error:
        # The parent reads the text of the traceback, where a subclass has another name.
        raise UserError(*error.lines) from error
    except KeyboardInterrupt as interrupt:
        code = getattr(interrupt, "exit_code", INTERRUPTED_EXIT_CODE)
        if place is None or place.rank == 0:  # the parent has not seen what was saved
            print(stop_message(code - 128), file=sys.stderr)
        sys.exit(code)
    finally:
        end_workers()


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


def seed(cfg: "CfgNode") -> None:
    """Seed all generators from SEED.

    default_setup does this again, but the random weights of the model are drawn before it.
    """
    from detectron2.utils import comm
    from detectron2.utils.env import seed_all_rng

    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())


def hold_log(what: str) -> logging.handlers.MemoryHandler:
    """Keep log lines in memory until setup_run writes them.

    A run is checked before its folder exists, and the log of the checks belongs into that folder.

    Args:
        what: The name of the run on a terminal.
    """
    from moco_d2.engine.terminal import LOGGERS, begin_setup

    begin_setup(what)
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
        UserError: If another run uses the folder, it cannot be written, or the processes do not
            share it, in all processes.
    """
    from detectron2.utils import comm

    from moco_d2.engine.exchange import decided_by_main
    from moco_d2.engine.shared_folder import check_shared

    with contextlib.ExitStack() as stack:
        decided_by_main(lambda: stack.enter_context(run_in(folder, setting=setting)))
        if comm.get_world_size() > 1:
            check_shared(Path(folder), setting)
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

    from moco_d2.engine.config_file import whole_config_file
    from moco_d2.engine.terminal import LOGGERS, quiet, quiet_setup

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
    # default_setup logs the file, which is temporary if it was composed.
    logged = argparse.Namespace(**{**vars(args), "config_file": str(find_config_of(args))})
    with whole_config_file(), quiet_setup():
        default_setup(cfg, logged)
    own = setup_logger(
        cfg.OUTPUT_DIR,
        distributed_rank=comm.get_rank(),
        name="moco_d2",
        abbrev_name="moco_d2",
    )
    quiet(own)
    logging.getLogger("detectron2.engine.train_loop").addFilter(without_user_errors)
    for record in held.buffer:
        logging.getLogger(record.name).handle(record)


def without_user_errors(record: logging.LogRecord) -> bool:
    """Filter the training loop's traceback of an error that is reported in one sentence."""
    error = record.exc_info[1] if record.exc_info else sys.exc_info()[1]
    return not (isinstance(error, UserError) or (error is not None and describe(error)))
