"""What would stop the runs of a suite, found before the first starts."""

from collections.abc import Iterable
from pathlib import Path

from moco_d2.benchmark.runs import cell_state
from moco_d2.benchmark.runs.suites import Cell
from moco_d2.errors import UserError

_CONFIGURED = ("train_net.py", "pretrain.py")  # tools that take a config file and KEY VALUE words
_OWN = ("SEED", "OUTPUT_DIR")  # keys in which every cell differs


def check_conflicts(cells: Iterable[Cell], folder: Path, processes: int) -> None:
    """
    Raises:
        UserError: in the place of a cell is a run of another config.
    """
    for cell in cells:
        state = cell_state.examine(cell, folder, processes=processes)
        if state.status == "conflict":
            raise UserError(state.problem)


def check_configs(cells: Iterable[Cell], folder: Path) -> None:
    """Resolve the configs of `cells`, so that a mistake in a suite stops it, not each of its runs.

    Raises:
        UserError: an unknown key, with the closest, or a value of the wrong type.
    """
    from moco_d2.config import load_config
    from moco_d2.launch import argument_parser

    parser = argument_parser("", "")
    seen = set()
    for cell in cells:
        for tool, words in cell.commands:
            if tool not in _CONFIGURED:
                continue
            args = parser.parse_args([cell_state.placed(word, cell, folder) for word in words])
            pairs = dict(zip(args.opts[::2], args.opts[1::2], strict=True))
            config = (args.config_file, *((k, v) for k, v in pairs.items() if k not in _OWN))
            if config not in seen:
                load_config(args.config_file, args.opts)
                seen.add(config)
