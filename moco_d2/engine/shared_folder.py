"""Check that all processes of a run write into one folder."""

import contextlib
import secrets
import time
from pathlib import Path

from detectron2.utils import comm

from moco_d2.engine.exchange import decided_by_main
from moco_d2.errors import UserError

_SHOWN_S = 3.0  # seconds in which a network file system shows a new file to other machines


def check_shared(folder: Path, setting: str) -> None:
    """Check that all processes see the folder of rank 0, which writes the checkpoints.

    Raises:
        UserError: If one does not, in all processes.
    """

    def write() -> str:
        file = folder / f".shared-{secrets.token_hex(8)}"
        try:
            file.touch(exist_ok=False)
        except OSError as error:
            raise UserError(
                f"cannot write {setting} {folder} ({error.strerror}): choose another folder"
            ) from error
        return file.name

    name = decided_by_main(write)
    try:
        places = comm.all_gather((_appears(folder / name), str(folder.absolute())))
    finally:
        if comm.is_main_process():
            (folder / name).unlink(missing_ok=True)
    strangers = [rank for rank, (seen, _) in enumerate(places) if not seen]
    if strangers:
        raise UserError(
            f"{setting} {places[0][1]} of rank 0 is another folder than {setting} "
            f"{places[strangers[0]][1]} of rank {', '.join(map(str, strangers))}: give the "
            "absolute path of a folder that all machines share"
        )


def _appears(file: Path) -> bool:
    """Return whether a file exists, at once or when a network file system shows it."""
    deadline = time.monotonic() + _SHOWN_S
    while True:
        with contextlib.suppress(OSError):
            if file.exists():
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
