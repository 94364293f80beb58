"""Converted weights that are kept, so that a checkpoint is converted once."""

import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moco_d2.checkpoint.convert import convert
from moco_d2.checkpoint.io import read_provenance
from moco_d2.errors import UserError
from moco_d2.files import sha256

logger = logging.getLogger(__name__)

_CONTENT_DIGITS = 16  # of a converted file's sha256, in its name


def keep_converted(
    source: Path, folder: Path, stem: str, published: Mapping[str, str] | None
) -> Path:
    """Convert a checkpoint into the cache. The file's name ends with a hash of its content.

    Args:
        source: The checkpoint.
        folder: The folder of the converted file.
        stem: The beginning of its name. Other files that begin so are damaged, and are removed.
        published: The published file that `source` is; see convert.convert.

    Raises:
        UserError: If the conversion fails.
    """
    whole = folder / f"{stem}.pth"
    convert(source, whole, published=published)
    file = folder / f"{stem}-{sha256(whole)[:_CONTENT_DIGITS]}.pth"
    for damaged in folder.glob(f"{stem}-*.pth"):
        damaged.unlink()
    whole.replace(file)
    logger.info("%s: converted and proven, kept at %s", source.name, file)
    return file


def kept_converted(
    folder: Path, stem: str, made_from: Callable[[dict[str, Any]], bool]
) -> Path | None:
    """Return the file that keep_converted has written, or None.

    A file counts only if its content fits the hash in its name and its provenance fits.

    Args:
        folder: The folder of the converted file.
        stem: The beginning of its name.
        made_from: Whether weights with this provenance were made from the right file. Any file
            may have the name.
    """
    for file in sorted(folder.glob(f"{stem}-*.pth")):
        with contextlib.suppress(OSError, UserError):  # another process may be replacing it
            intact = sha256(file).startswith(file.stem.rpartition("-")[2])
            if intact and made_from(read_provenance(file) or {}):
                return file
    return None
