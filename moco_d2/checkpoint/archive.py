"""Whether a zip archive, torch's or NumPy's, is sound before anything in it is used.

torch checks neither the checksums that it writes nor what an archive declares about itself.
"""

import zipfile
from pathlib import Path

from moco_d2.errors import UserError

# Of what a file declares against what it weighs: beyond it, reading is an attack. Weights compress
# by less than 2, and an empty queue beside them to almost nothing.
MOST_EXPANSION = 10
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
MOST_MEMBERS = 20_000  # a tensor each; a ResNet-152 with its optimizer has under 2,000
SMALL = 1 << 24  # bytes that any file may stand for


def most_bytes(path: Path) -> int:
    """Bytes that the content of a file may take in memory."""
    return max(SMALL, MOST_EXPANSION * path.stat().st_size)


def check_archive(path: Path) -> list[zipfile.ZipInfo]:
    """Read every member once and compare it with its checksum.

    Returns:
        The members.

    Raises:
        UserError: it has too many members; a name is there twice; a member is encrypted, damaged,
            or packed by a method that no writer of checkpoints uses; or the archive would unpack to
            far more than it weighs.
        zipfile.BadZipFile: it is no archive.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MOST_MEMBERS:
            raise UserError(
                f"{path} has {len(members)} entries, and no checkpoint more than {MOST_MEMBERS}; "
                "give the original checkpoint"
            )
        names = [member.filename for member in members]
        if len(set(names)) < len(names):
            raise UserError(f"{path} has two entries of one name; give the original checkpoint")
        declared = sum(member.file_size for member in members)
        if declared > most_bytes(path):
            raise UserError(
                f"{path} of {size} bytes would unpack to {declared}; give the original checkpoint"
            )
        # zipfile lets other methods unpack as much as they like before it looks at the size.
        if other := next((m for m in members if m.compress_type not in _METHODS), None):
            raise UserError(
                f"{path} has an entry packed by method {other.compress_type}, which neither torch "
                "nor NumPy writes; give the original checkpoint"
            )
        damaged = archive.testzip()
    if damaged is not None:
        raise UserError(
            f"{path} is damaged: {damaged} does not match its checksum; copy or download the "
            "checkpoint again"
        )
    return members
