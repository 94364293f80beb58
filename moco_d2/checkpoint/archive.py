"""Checks a zip archive of torch or NumPy before its content is used.

torch checks neither the checksums that it writes nor the sizes that an archive declares.
"""

import zipfile
from pathlib import Path

from moco_d2.errors import UserError, printable

# The most unpacked bytes per byte of the file; more is an attack. Weights compress by a factor
# below 2, and an empty queue beside them to almost nothing.
MOST_EXPANSION = 10
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
MOST_MEMBERS = 20_000  # one per tensor; a ResNet-152 with its optimizer has under 2,000
_CONTENT = ("/data.pkl", ".npy")  # members of every archive of torch or NumPy
_CHECKPOINTS = (".pth", ".pt", ".tar", ".ckpt", ".pkl", ".npz", ".safetensors")
_QUOTED = 200  # most characters of names in a message
SMALL = 1 << 24  # bytes that any file may unpack to


def most_bytes(path: Path) -> int:
    """Return the most bytes that the content of a file may take in memory."""
    return max(SMALL, MOST_EXPANSION * path.stat().st_size)


def check_archive(path: Path) -> list[zipfile.ZipInfo]:
    """Read every member once and compare it with its checksum.

    Returns:
        The members.

    Raises:
        UserError: If the archive is no checkpoint, or has too many members or one name twice; if a
            member is encrypted, damaged, or packed by a method that no writer of checkpoints uses;
            or if the archive would unpack to far more bytes than it has.
        zipfile.BadZipFile: If the file is no archive.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MOST_MEMBERS:
            raise UserError(
                f"{path} has {len(members)} entries, more than the limit of {MOST_MEMBERS}; use "
                "the original checkpoint"
            )
        names = [member.filename for member in members]
        if len(set(names)) < len(names):
            raise UserError(f"{path} has two entries of one name; use the original checkpoint")
        declared = sum(member.file_size for member in members)
        if declared > most_bytes(path):
            raise UserError(
                f"{path} of {size} bytes would unpack to {declared}; use the original checkpoint"
            )
        if not any(name.endswith(_CONTENT) for name in names):
            inside = [name for name in names if name.endswith(_CHECKPOINTS)] or names
            raise UserError(
                f"{path} is a zip archive of {len(names)} files, not a checkpoint; unpack it and "
                f"name the checkpoint in it ({printable(', '.join(inside[:3]))[:_QUOTED]})"
            )
        # With other methods, zipfile unpacks any amount before it checks the size.
        if other := next((m for m in members if m.compress_type not in _METHODS), None):
            raise UserError(
                f"{path} has an entry packed by method {other.compress_type}, which neither torch "
                "nor NumPy writes; use the original checkpoint"
            )
        damaged = archive.testzip()
    if damaged is not None:
        raise UserError(
            f"{path} is damaged: {damaged} does not match its checksum; copy or download the "
            "checkpoint again"
        )
    return members
