"""Compressed shards (gzip, bzip2, xz) as a stream of bytes that has a bound."""

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import BinaryIO, Protocol

#: The most bytes that a shard unpacks to, for each of its own bytes; of a small shard, in all.
#: Images hardly compress at all.
MAX_EXPANSION, SMALL = 100, 256 << 20
#: The most bytes of memory that xz may ask for: its strongest preset takes 65 MB.
MAX_XZ_MEMORY = 256 << 20

_CHUNK = 1 << 16
_DAMAGE = (zlib.error, lzma.LZMAError, OSError, ValueError)


class _Decompressor(Protocol):
    """What the objects of bz2 and lzma have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def _xz() -> _Decompressor:
    return lzma.LZMADecompressor(memlimit=MAX_XZ_MEMORY)


class _Gzip:
    """zlib's object with the interface of those of bz2 and lzma."""

    def __init__(self) -> None:
        self._object = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._object.eof

    @property
    def needs_input(self) -> bool:
        return not self._object.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._object.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._object.decompress(self._object.unconsumed_tail + data, max_length)


# What a compressed file begins with.
_FORMATS: dict[bytes, Callable[[], _Decompressor]] = {
    b"\x1f\x8b": _Gzip,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": _xz,
}
_LONGEST = max(map(len, _FORMATS))


class BoundedReader:
    """Reads a file that may be compressed: bytes from front to back, as they are unpacked.

    Attributes:
        compressed: whether it is.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._packed = b""
        while len(self._packed) < _LONGEST and (more := file.read(_LONGEST - len(self._packed))):
            self._packed += more
        self._taken, self._given = len(self._packed), 0
        self._make = next((m for s, m in _FORMATS.items() if self._packed.startswith(s)), None)
        self._decompressor: _Decompressor | None = None
        self._ended = False

    @property
    def compressed(self) -> bool:
        return self._make is not None

    def read(self, size: int) -> bytes:
        """The next `size` bytes, or fewer at the end.

        Raises:
            OSError: it is damaged, or unpacks to more bytes than are read.
            EOFError: it breaks off.
        """
        make = self._make
        if make is None:
            packed, self._packed = self._packed[:size], self._packed[size:]
            return packed + self._file.read(size - len(packed)) if len(packed) < size else packed
        parts: list[bytes] = []
        while size and not self._ended:
            part = self._unpack(make, size)
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _unpack(self, make: Callable[[], _Decompressor], size: int) -> bytes:
        decompressor = self._decompressor = self._decompressor or make()
        if decompressor.eof:  # files may be laid end to end; zeros are padding
            self._packed = decompressor.unused_data + self._packed
            self._packed = self._packed.lstrip(b"\0") or self._fill().lstrip(b"\0")
            self._ended = not self._packed
            self._decompressor = make()
            return b""
        if decompressor.needs_input and not self._packed and not self._fill():
            raise EOFError("it breaks off within its compressed data")
        packed, self._packed = self._packed, b""
        try:
            part = decompressor.decompress(packed, size)
        except _DAMAGE as error:
            raise OSError(f"its compressed data is damaged: {error}") from error
        self._given += len(part)
        if self._given > max(SMALL, MAX_EXPANSION * self._taken):
            raise OSError(
                f"it unpacks to {self._given:,} bytes from {self._taken:,}, and at most "
                f"{MAX_EXPANSION} times its bytes are read"
            )
        return part

    def _fill(self) -> bytes:
        self._packed = self._file.read(_CHUNK)
        self._taken += len(self._packed)
        return self._packed
