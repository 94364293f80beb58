"""Read the members of a tar shard one by one, with bounds: images, and their labels."""

import contextlib
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moco_d2.pretrain.data.decompression import BoundedReader
from moco_d2.pretrain.data.images import IMAGE_SUFFIXES
from moco_d2.untrusted_images import MAX_FILE_BYTES

LABEL = "cls"  # WebDataset's suffix of a member with the class index as text
MEMBERS = {suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES} | {LABEL}
#: Maximum bytes of a label, and of the extra headers of a member (a long name). The maximum of an
#: image is untrusted_images.MAX_FILE_BYTES.
MAX_LABEL_BYTES, MAX_EXTRA_BYTES = 1024, 1 << 20
_EXTRA = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
# tarfile's types lack these classes of its errors.
_Empty, _Truncated, _Invalid, _Subsequent = (
    getattr(tarfile, f"{name}HeaderError")
    for name in ("Empty", "Truncated", "Invalid", "Subsequent")
)
_MACOS = "__MACOSX"  # macOS's copies of all members
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
_SPARSE_CONTINUES = 504  # index of the byte: does another block of a sparse header follow?


@contextlib.contextmanager
def open_shard(path: str) -> Iterator[tarfile.TarFile]:
    """Open a local shard, compressed or not."""
    with Path(path).open("rb") as file:
        reader = BoundedReader(file)
        if reader.compressed:
            with open_stream(reader) as shard:
                yield shard
        else:
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:", tarinfo=_Member) as shard:
                yield shard


def open_stream(reader: BoundedReader) -> tarfile.TarFile:
    source: Any = reader  # tarfile's types require more methods than tarfile calls
    return tarfile.open(fileobj=source, mode="r|", tarinfo=_Member)


class _Member(tarfile.TarInfo):
    """A member with bounded extra headers.

    Sparse members are not read, so the list of their parts is skipped.
    """

    # Attributes of tarfile that are missing or different in its types.
    sparse: Any
    _sparse_structs: tuple[Any, bool, int]
    _block: Callable[[int], int]

    @classmethod
    def fromtarfile(cls, shard: tarfile.TarFile) -> "_Member":
        """Read the next member.

        After the first one, tarfile takes a cut or damaged header for the end of the archive.
        """
        try:
            return super().fromtarfile(shard)
        except (_Empty, _Truncated) as error:
            if not shard.offset:
                raise
            raise _Subsequent("it is truncated: it has no end of archive") from error
        except _Invalid as error:
            if not shard.offset:
                raise
            raise _Subsequent(f"a header in it is damaged: {error}") from error

    def _proc_member(self, shard: Any) -> tarfile.TarInfo:
        # tarfile documents this method for subclasses.
        if self.type in _EXTRA and not 0 <= self.size <= MAX_EXTRA_BYTES:
            raise tarfile.HeaderError(
                f"an extra header has {self.size:,} bytes, more than {MAX_EXTRA_BYTES:,}"
            )
        if self.type == tarfile.XGLTYPE:  # tarfile stores global headers for all later members
            shard.global_bytes = getattr(shard, "global_bytes", 0) + self.size
            if shard.global_bytes > MAX_EXTRA_BYTES:
                raise tarfile.HeaderError(
                    f"its global headers have more than {MAX_EXTRA_BYTES:,} bytes"
                )
        return super()._proc_member(shard)  # type: ignore[misc] # missing in tarfile's types

    def _proc_sparse(self, shard: Any) -> tarfile.TarInfo:
        more: bool | int
        _, more, size = self._sparse_structs
        while more:
            block = shard.fileobj.read(tarfile.BLOCKSIZE)
            if len(block) < tarfile.BLOCKSIZE:
                raise tarfile.HeaderError("it is truncated within the header of a sparse member")
            more = block[_SPARSE_CONTINUES]
        self.sparse = []
        self.offset_data = shard.fileobj.tell()
        shard.offset = self.offset_data + self._block(self.size)
        self.size = size
        return self

    def _proc_gnusparse_10(self, member: "_Member", headers: Any, shard: Any) -> None:
        member.sparse = []


def walk(shard: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members. Iterating over the shard itself would keep all of them in memory.

    Raises:
        tarfile.TarError: If the shard is damaged, or an image or a label is too large.
    """
    while (member := shard.next()) is not None:
        shard.members.clear()  # type: ignore[attr-defined] # missing in tarfile's types
        limit = MAX_LABEL_BYTES if is_label(member.name) else MAX_FILE_BYTES
        if member.size < 0:
            raise tarfile.HeaderError(f"member {member.name[:80]} has {member.size:,} bytes")
        if member.size > limit and is_read(member):
            raise tarfile.HeaderError(
                f"member {member.name[:80]} has {member.size:,} bytes, more than {limit:,}"
            )
        yield member


def is_read(member: tarfile.TarInfo) -> bool:
    """Return whether a member is an image or a label.

    Sparse members are not: 512 bytes of a header may mean hundreds of megabytes of zeros.
    """
    return member.isreg() and not member.issparse() and _is_wanted(member.name)


def is_label(name: str) -> bool:
    return name.lower().endswith(f".{LABEL}")


def sample_and_field(name: str) -> tuple[str | None, str | None]:
    """Return the sample to which a member belongs, and its name within the sample.

    As in WebDataset, the first dot ends the name of the sample: ``x.jpg`` and ``x.seg.png`` are
    fields of ``x``. A part with a digit between two dots is part of the name, however:
    ``photo.2020.0.jpg`` is the image of ``photo.2020.0``. Hidden members have neither.
    """
    folder, _, file = name.rpartition("/")
    if any(part.startswith(".") and part.strip(".") for part in name.split("/")):
        return None, None
    if _MACOS in folder.split("/"):
        return None, None
    stem, dot, field = file.partition(".")
    between, _, suffix = field.rpartition(".")
    if any(character.isdecimal() for character in between):
        stem, field = f"{stem}.{between}", suffix
    return (f"{folder}/{stem}" if folder else stem, field) if stem and dot else (None, None)


def is_archive(name: str) -> bool:
    """Return whether a member is itself a tar, as in the download of ImageNet."""
    return name.lower().endswith(_ARCHIVES)


def _is_wanted(name: str) -> bool:
    _, field = sample_and_field(name)
    return field is not None and field.rpartition(".")[2].lower() in MEMBERS
