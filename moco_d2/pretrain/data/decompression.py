"""Read compressed shards (gzip, bzip2, xz) as a bounded stream of bytes."""

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import BinaryIO, Protocol

#: A shard may unpack to MAX_EXPANSION times its bytes, or to SMALL bytes if that is more. Images
#: hardly compress, so no real shard reaches this.
MAX_EXPANSION, SMALL = 100, 256 << 20
#: Maximum memory of xz, in bytes. Its strongest preset needs 65 MB.
MAX_XZ_MEMORY = 256 << 20

_CHUNK = 1 << 16
_DAMAGE = (zlib.error, lzma.LZMAError, OSError, ValueError)


class _Decompressor(Protocol):
    """The common interface of the decompressors of bz2 and lzma."""

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
    """zlib's decompressor with the interface of bz2 and lzma."""

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


# First bytes of a compressed file -> its decompressor.
_FORMATS: dict[bytes, Callable[[], _Decompressor]] = {
    b"\x1f\x8b": _Gzip,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": _xz,
}
_LONGEST = max(map(len, _FORMATS))


class BoundedReader:
    """Reads a file from front to back, and decompresses it if it is compressed.

    Attributes:
        compressed: Whether the file is compressed.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._packed = b""
        while len(self._packed) < _LONGEST and (more := file.read(_LONGEST - len(self._packed))):
            self._packed += more
        self._bytes_in, self._bytes_out = len(self._packed), 0
        self._make = next((m for s, m in _FORMATS.items() if self._packed.startswith(s)), None)
        self._decompressor: _Decompressor | None = None
        self._ended = False

    @property
    def compressed(self) -> bool:
        return self._make is not None

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, or fewer at the end.

        Raises:
            OSError: If the file is damaged, or unpacks to more bytes than allowed.
            EOFError: If the file is truncated.
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
        if decompressor.eof:  # another compressed file, or padding of zeros, may follow
            self._packed = decompressor.unused_data + self._packed
            self._packed = self._packed.lstrip(b"\0") or self._fill().lstrip(b"\0")
            self._ended = not self._packed
            self._decompressor = make()
            return b""
        if decompressor.needs_input and not self._packed and not self._fill():
            raise EOFError("it is truncated within its compressed data")
        packed, self._packed = self._packed, b""
        try:
            part = decompressor.decompress(packed, size)
        except _DAMAGE as error:
            raise OSError(f"its compressed data is damaged: {error}") from error
        self._bytes_out += len(part)
        if self._bytes_out > max(SMALL, MAX_EXPANSION * self._bytes_in):
            raise OSError(
                f"it unpacks from {self._bytes_in:,} to {self._bytes_out:,} bytes, more than "
                f"{MAX_EXPANSION} times its size"
            )
        return part

    def _fill(self) -> bytes:
        self._packed = self._file.read(_CHUNK)
        self._bytes_in += len(self._packed)
        return self._packed
