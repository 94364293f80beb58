"""Checks of all runs of a suite before the first one starts."""

import argparse
import tempfile
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path

from moco_d2.benchmark.runs import cell_state
from moco_d2.benchmark.runs.suites import CONFIGURED, Cell, untrusted_words
from moco_d2.config.densepose import MissingProjectError
from moco_d2.errors import UserError
from moco_d2.files import write_text

_OWN = ("SEED", "OUTPUT_DIR")  # keys that may differ between cells of one config


def check_conflicts(cells: Iterable[Cell], folder: Path, processes: int) -> None:
    """Check that no folder of a cell holds another run.

    Raises:
        UserError: If the run in the folder of a cell has another config.
    """
    for cell in cells:
        state = cell_state.examine(cell, folder, processes=processes)
        if state.status == "conflict":
            raise UserError(state.problem)


def check_configs(
    cells: Iterable[Cell],
    folder: Path,
    files: Mapping[str, str] | None = None,
    *,
    processes: int = 1,
    planned: bool = False,
) -> None:
    """Load the configs of `cells` and scale their schedules.

    A mistake in a suite is then reported once, and not by each of its runs.

    Args:
        cells: Cells of the suite.
        folder: Folder of the suite. Nothing is written there.
        files: Config files of the suite, which are not in `folder` yet.
        processes: Number of processes of each run.
        planned: Whether the runs are only planned, maybe for a machine that has DensePose.

    Raises:
        UserError: If a config has an unknown key, an invalid value or data that a suite may not
            name, or if a batch cannot be divided among the processes.
    """
    with tempfile.TemporaryDirectory(prefix="moco_d2_") as name:
        for path, content in (files or {}).items():
            write_text(Path(name) / path, content)
        try:
            _check_configs(cells, folder, Path(name) if files else folder, processes, planned)
        except UserError as error:
            raise UserError(str(error).replace(name, str(folder))) from error


def _check_configs(
    cells: Iterable[Cell], folder: Path, configs: Path, processes: int, planned: bool
) -> None:
    """Do the work of check_configs; `configs` is the folder with the config files of the suite."""
    from moco_d2.engine.job import load_job
    from moco_d2.transfer.hardware_scaling import scale_to_hardware

    for _, args in distinct_runs(cells, folder):
        own = Path(args.config_file)
        if own.is_relative_to(folder):
            args.config_file = str(configs / own.relative_to(folder))
        try:
            cfg = load_job(args)
        except MissingProjectError:
            if planned:
                continue
            raise
        if cfg.MOCO.TASK:
            scale_to_hardware(cfg, processes)


def distinct_runs(
    cells: Iterable[Cell], folder: Path, tools: Container[str] = CONFIGURED
) -> Iterator[tuple[Cell, argparse.Namespace]]:
    """Yield the parsed command of each run whose config differs from those before in more than seed
    and folder, with its cell.

    Args:
        cells: Cells of the suite.
        folder: Folder of the suite.
        tools: The tools whose commands are yielded; all of them take a config.
    """
    from moco_d2.cli import argument_parser

    parser = argument_parser("", "")
    seen = set()
    for cell in cells:
        for tool, words in cell.commands:
            if tool not in tools:
                continue
            placed = [cell_state.placed(w, cell, folder, planned=True) for w in words]
            args = parser.parse_args(untrusted_words(tool, placed))
            pairs = dict(zip(args.opts[::2], args.opts[1::2], strict=True))
            config = (args.config_file, *((k, v) for k, v in pairs.items() if k not in _OWN))
            if config not in seen:
                seen.add(config)
                yield cell, args
