"""The members of a tar shard, one by one and bounded: images, and the labels beside them."""

import contextlib
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moco_d2.pretrain.data.decompression import BoundedReader
from moco_d2.pretrain.data.images import IMAGE_SUFFIXES
from moco_d2.untrusted_images import MAX_FILE_BYTES

LABEL = "cls"  # WebDataset's name of the member that holds the class index as text
MEMBERS = {suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES} | {LABEL}
#: The most bytes of a label, and of what tar says about a member beside its header (a long name).
#: An image may have untrusted_images.MAX_FILE_BYTES.
MAX_LABEL_BYTES, MAX_EXTRA_BYTES = 1024, 1 << 20
_EXTRA = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
_SPARSE_GOES_ON = 504  # the byte that says whether another block of a sparse member's parts follows


@contextlib.contextmanager
def open_shard(path: str) -> Iterator[tarfile.TarFile]:
    """A local shard, compressed or not."""
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
    source: Any = reader  # tarfile reads from it, and nothing else, whatever its types ask for
    return tarfile.open(fileobj=source, mode="r|", tarinfo=_Member)


class _Member(tarfile.TarInfo):
    """A member whose long name is not read into memory if it takes gigabytes, and of which, if it
    is sparse, the list of its parts is passed over: it is not read.
    """

    # Attributes of tarfile that its types leave out, or call otherwise.
    sparse: Any
    _sparse_structs: tuple[Any, bool, int]
    _block: Callable[[int], int]

    def _proc_member(self, shard: Any) -> tarfile.TarInfo:
        # The entry point that tarfile has for subclasses.
        if self.type in _EXTRA and not 0 <= self.size <= MAX_EXTRA_BYTES:
            raise tarfile.HeaderError(
                f"a name in it takes {self.size:,} bytes, and at most {MAX_EXTRA_BYTES:,} are read"
            )
        if self.type == tarfile.XGLTYPE:  # tarfile keeps what is said of all further members
            shard.global_bytes = getattr(shard, "global_bytes", 0) + self.size
            if shard.global_bytes > MAX_EXTRA_BYTES:
                raise tarfile.HeaderError(
                    f"its global headers take more than {MAX_EXTRA_BYTES:,} bytes"
                )
        return super()._proc_member(shard)  # type: ignore[misc] # which its types leave out

    def _proc_sparse(self, shard: Any) -> tarfile.TarInfo:
        more: bool | int
        _, more, size = self._sparse_structs
        while more:
            block = shard.fileobj.read(tarfile.BLOCKSIZE)
            if len(block) < tarfile.BLOCKSIZE:
                raise tarfile.HeaderError("it breaks off within the header of a sparse member")
            more = block[_SPARSE_GOES_ON]
        self.sparse = []
        self.offset_data = shard.fileobj.tell()
        shard.offset = self.offset_data + self._block(self.size)
        self.size = size
        return self

    def _proc_gnusparse_10(self, member: "_Member", headers: Any, shard: Any) -> None:
        member.sparse = []


def walk(shard: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Members one by one; an iteration over the shard itself keeps all it has met.

    Raises:
        tarfile.TarError: damage, or an image or label of more bytes than are read.
    """
    while (member := shard.next()) is not None:
        shard.members.clear()  # type: ignore[attr-defined] # which its types leave out
        limit = MAX_LABEL_BYTES if is_label(member.name) else MAX_FILE_BYTES
        if member.size < 0:
            raise tarfile.HeaderError(f"member {member.name[:80]} has {member.size:,} bytes")
        if member.size > limit and is_read(member):
            raise tarfile.HeaderError(
                f"member {member.name[:80]} has {member.size:,} bytes, and at most {limit:,} are "
                "read"
            )
        yield member


def is_read(member: tarfile.TarInfo) -> bool:
    """Whether it is an image or a label. Sparse members are none: a header of 512 bytes may stand
    for hundreds of megabytes of zeros.
    """
    return member.isreg() and not member.issparse() and _is_wanted(member.name)


def is_label(name: str) -> bool:
    return name.lower().endswith(f".{LABEL}")


def _is_wanted(name: str) -> bool:
    from webdataset.tariterators import base_plus_ext

    _, extension = base_plus_ext(name)
    return extension is not None and extension.lower() in MEMBERS
