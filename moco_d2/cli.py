"""Command lines: their flags, and how a command begins and ends."""

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from moco_d2.errors import (
    INTERRUPTED_EXIT_CODE,
    USER_ERROR_EXIT_CODE,
    UserError,
    as_raised,
    printable,
)


def start_job(main: str, args: argparse.Namespace) -> None:
    """Run a job in every one of its processes; with ``--submit``, send it to SLURM instead.

    Args:
        main: see launch.launch.
        args: the parsed flags.

    Raises:
        UserError: as launch.launch and slurm.submit.
    """
    if getattr(args, "submit", None):
        from moco_d2.engine.slurm import submit

        submit(main, args)
    else:
        from moco_d2.engine.launch import launch

        launch(main, args)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command line's main function; a UserError, and what a machine does to a command, become
    one line and exit code 2; a signal that ends it, one line and 128 + its number.
    """
    from moco_d2.engine.failures import explained
    from moco_d2.engine.signals import end_on_signals, end_silently

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        # One of several may be waiting for another outside of Python, where a handler is not
        # called: those the system ends, and their launcher says so.
        end_on_signals()
    try:
        with explained():
            code = main() or 0
        sys.exit(code)
    except UserError as error:
        text = "\n".join(map(printable, as_raised(error).lines))
        print(f"error: {text}", file=sys.stderr)
        sys.exit(USER_ERROR_EXIT_CODE)
    except KeyboardInterrupt as interrupt:
        print("interrupted; run the same command with --resume to continue", file=sys.stderr)
        sys.exit(getattr(interrupt, "exit_code", INTERRUPTED_EXIT_CODE))
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        end_silently()


def command_parser(description: str | None, *examples: str) -> argparse.ArgumentParser:
    """Return a parser without flags, whose help ends with examples. All commands have this form.

    Args:
        description: what the command does, printed as it is.
        examples: command lines.
    """
    heading = "example" if len(examples) == 1 else "examples"
    return argparse.ArgumentParser(
        description=description,
        epilog="\n  ".join((f"{heading}:", *examples)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def argument_parser(description: str, *examples: str) -> argparse.ArgumentParser:
    """Return a parser with Detectron2's training flags, without the seconds that importing
    Detectron2 for them would cost; see command_parser.
    """
    parser = command_parser(description, *examples)
    parser.add_argument(
        "--config-file",
        "--config",
        metavar="FILE",
        required=True,
        help="a yaml file, or the bare name of a packaged one",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR"
    )
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs on this machine")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0, help="this machine's index")
    parser.add_argument(
        "--dist-url",
        default="auto",
        help="address of machine 0, tcp://HOST:PORT, for several machines",
    )
    parser.add_argument(
        "--submit",
        metavar="KEY=VALUE,...",
        type=lambda words: words.split(","),
        help="send the job to SLURM: partition=...,nodes=2,gpus-per-node=8,time=24:00:00",
    )
    # For what a suite runs: what KEY VALUE says is of a file, and may name less than a user may.
    parser.add_argument("--overrides-from-file", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides, in pairs"
    )
    # For the record, also of a job that SLURM starts with another command line.
    tool = f"tools/{Path(sys.argv[0]).name}"
    typed = shlex.join([tool, *sys.argv[1:]])
    parser.set_defaults(command=typed.encode("utf-8", "replace").decode())
    return parser
