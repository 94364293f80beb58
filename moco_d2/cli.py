"""The flags of the commands, and how a command begins and ends."""

import argparse
import ast
import contextlib
import io
import os
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from moco_d2.errors import (
    INTERRUPTED_EXIT_CODE,
    USER_ERROR_EXIT_CODE,
    UserError,
    as_raised,
    printable,
)
from moco_d2.files import shipped_folder


def start_job(main: str, args: argparse.Namespace) -> None:
    """Run a job in all its processes, or with ``--submit`` send it to SLURM.

    Args:
        main: The main function, see launch.launch.
        args: The parsed flags.

    Raises:
        UserError: If launch.launch or slurm.submit raises it.
    """
    if not hasattr(args, "command"):
        args.command = _typed()
    if getattr(args, "submit", None):
        from moco_d2.engine.slurm import submit

        submit(main, args)
    else:
        from moco_d2.engine.launch import launch

        launch(main, args)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run the main function of a command, and exit.

    A UserError or a failure of the machine becomes one line and exit code 2. A signal becomes one
    line and exit code 128 + its number.
    """
    from moco_d2.engine.failures import explained
    from moco_d2.engine.signals import (
        begin_work,
        end_on_signals,
        end_silently,
        end_workers,
        stop_message,
    )

    _prepare_streams()
    begin_work(None)
    if os.environ.get("WORLD_SIZE", "") in ("", "1"):
        # One of several processes may be waiting outside of Python, where no handler is called.
        # The system ends such processes, and their launcher reports it.
        end_on_signals()
    try:
        with explained():
            code = main() or 0
            sys.stdout.flush()  # output on a full disk is an error, too
        sys.exit(code)
    except UserError as error:
        text = "\n".join(map(printable, as_raised(error).lines))
        print(f"error: {text}", file=sys.stderr)
        sys.exit(USER_ERROR_EXIT_CODE)
    except KeyboardInterrupt as interrupt:
        code = getattr(interrupt, "exit_code", INTERRUPTED_EXIT_CODE)
        print(stop_message(code - 128), file=sys.stderr)
        sys.exit(code)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        end_workers()
        end_silently()


class _Output(io.TextIOWrapper):
    """Text for stdout or stderr that never stops a command, except on a full disk.

    A reader that has ended (``| head``) gets no more text, but the work goes on. A character that
    the terminal's encoding lacks is escaped.
    """

    def __init__(self, stream: io.TextIOWrapper):
        """
        Args:
            stream: The stream to replace. It shares its buffer.
        """
        stream.flush()
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self._stream = stream  # would close the buffer if it were deleted

    def write(self, text: str) -> int:
        with self._without_reader():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._without_reader():
            super().flush()

    @contextlib.contextmanager
    def _without_reader(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            # The buffer keeps the text that could not be written, so it goes to the null device.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)


def _prepare_streams() -> None:
    """Give this process the three standard streams, whatever its parent has closed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The next file that the process opens would be its output otherwise.
            os.open(os.devnull, os.O_RDWR)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # it was closed at the start
            stream = open(descriptor, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
        if type(stream) is io.TextIOWrapper and stream.fileno() == descriptor:
            setattr(sys, name, _Output(stream))


class _JobParser(argparse.ArgumentParser):
    """A parser whose flags may also follow the ``KEY VALUE`` pairs, which argparse would take for
    more of them. In words that a suite wrote, what looks like a flag stays a value.
    """

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        words = list(sys.argv[1:] if args is None else args)
        pairs: list[str] = []  # those before the last flag, in the order in which they are typed
        while True:
            parsed = super().parse_args(words, namespace)
            rest = [] if parsed.overrides_from_file else parsed.opts
            flag = next((i for i, w in enumerate(rest) if w.startswith("--") and w[2:]), None)
            if flag is None:
                parsed.opts = [*pairs, *parsed.opts]
                return parsed
            pairs += rest[:flag]
            words = [*words[: len(words) - len(rest)], *rest[flag:]]


#: The commands of ``moco-d2``, and their files in tools/.
COMMANDS = {
    "shards": "shards.py",
    "pretrain": "pretrain.py",
    "convert": "convert.py",
    "train": "train_net.py",
    "linear-eval": "linear_eval.py",
    "transfer": "transfer.py",
    "benchmark": "benchmark.py",
    "demo": "demo.py",
    "doctor": "doctor.py",
}
_PROGRAM = "moco-d2"


def tools_folder() -> Path:
    """Return the folder of the commands' files: tools/ of a checkout, or inside the package."""
    return shipped_folder("tools", "train_net.py")


def main() -> None:
    """Run ``moco-d2 COMMAND``, which is the same as the file of the command in tools/."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        _overview().parse_args()
        return
    tool = runpy.run_path(str(tools_folder() / COMMANDS[name]))
    sys.argv = [f"{_PROGRAM} {name}", *sys.argv[2:]]
    run_command(tool["main"])


def _overview() -> argparse.ArgumentParser:
    """Return a parser that lists the commands."""
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Pretrain MoCo, convert checkpoints, and measure their transfer to detection "
        f"and segmentation. {_PROGRAM} COMMAND --help describes a command.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, file in COMMANDS.items():
        text = (tools_folder() / file).read_text(encoding="utf-8")
        commands.add_parser(name, help=ast.get_docstring(ast.parse(text)))
    return parser


def as_called(words: str) -> str:
    """Return a command line with the name by which the user calls this command."""
    if not sys.argv[0].startswith(_PROGRAM):
        return words
    for name, file in COMMANDS.items():
        words = words.replace(f"tools/{file}", f"{_PROGRAM} {name}")
    return words


def command_parser(
    description: str | None,
    *examples: str,
    kind: type[argparse.ArgumentParser] = argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    """Return a parser without flags for any command. Its help ends with examples.

    Args:
        description: What the command does, printed without reformatting.
        examples: Command lines.
        kind: The class of the parser.
    """
    heading = "example" if len(examples) == 1 else "examples"
    return kind(
        description=description,
        epilog=as_called("\n  ".join((f"{heading}:", *examples))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def argument_parser(description: str, *examples: str) -> argparse.ArgumentParser:
    """Return a parser with Detectron2's training flags, without the slow import of Detectron2.

    The arguments are those of command_parser.
    """
    parser = command_parser(description, *examples, kind=_JobParser)
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
    parser.add_argument("--machine-rank", type=int, default=0, help="index of this machine")
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
    # A suite sets it: its KEY VALUE pairs come from a file, which may name less than a user.
    parser.add_argument("--overrides-from-file", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides, in pairs"
    )
    # The run record needs it, even if SLURM starts the job with another command line.
    parser.set_defaults(command=_typed())
    return parser


def _typed() -> str:
    """Return the command line as the user can type it again."""
    tool = sys.argv[0]
    if not tool.startswith(_PROGRAM):
        tool = f"tools/{Path(tool).name}"
    typed = f"{tool} {shlex.join(sys.argv[1:])}".rstrip()
    return typed.encode("utf-8", "replace").decode()
