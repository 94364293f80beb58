"""Both formats of torch.save, read without torch's own reader.

That one checks neither the checksums of an archive nor what it declares about itself, and finds an
archive's members in another way than whoever checked them. Here one reader does both.
"""

import io
import mmap
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from moco_d2.checkpoint.pickle_names import Budget, Storage, storage_of
from moco_d2.checkpoint.unpickling import check_pickle, load_pickle
from moco_d2.errors import UserError

# torch.save before 1.6, the format of the official MoCo files: a magic number, a version, a
# description of the machine, the content and the order of the storages, which follow.
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_BEFORE_CONTENT = 3  # pickles
_LOCAL_HEADER = 30  # bytes of a zip member's, and where the lengths are that follow it
_LENGTHS = slice(26, 30)
_COUNT = 8  # bytes of a number of elements


def read_archive(path: Path, members: list[zipfile.ZipInfo], budget: Budget) -> Any:
    """The content of an archive of torch. Its tensors are mapped: they stay in the file until they
    are used.

    Args:
        members: as check_archive found them.

    Raises:
        UserError: it is a program, or of another byte order.
        Exception: whatever a damaged or hostile file leads to; see load_pickle.
    """
    names = {member.filename: member for member in members}
    (content,) = (name for name in names if name.endswith("/data.pkl"))
    root = content.removesuffix("data.pkl")
    if f"{root}constants.pkl" in names:
        raise UserError(
            f"{path} is a TorchScript program; save the state_dict() of the network instead"
        )
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise UserError(
                f"{path} was saved on a big-endian machine; load and save it with torch once more"
            )

        def read(name: str) -> Callable[[int], torch.Tensor]:
            member = names[name]

            def of_length(count: int) -> torch.Tensor:
                if member.file_size != count:
                    raise ValueError(f"{name} has {member.file_size} bytes, not {count}")
                if member.compress_type != zipfile.ZIP_STORED:
                    return _view(bytearray(archive.read(member)), 0, count)
                if member.compress_size != count:
                    raise ValueError(f"{name} has {member.compress_size} bytes, not {count}")
                return _view(mapped, _start(mapped, member), count)

            return of_length

        storages: dict[str, Storage] = {}

        def persistent(pid: object) -> Storage:
            kind, key, count, _ = storage_of(pid)
            found = storages.setdefault(key, Storage(kind.dtype, count, read(f"{root}data/{key}")))
            return _of_kind(found, kind.dtype, count)

        data = archive.read(content)
        check_pickle(io.BytesIO(data))
        return load_pickle(data, budget, persistent)


def _start(mapped: mmap.mmap, member: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored member begin."""
    header = mapped[member.header_offset : member.header_offset + _LOCAL_HEADER]
    return member.header_offset + _LOCAL_HEADER + sum(struct.unpack("<HH", header[_LENGTHS]))


def read_legacy(path: Path, budget: Budget) -> Any:
    """The content of a file from torch before 1.6.

    Raises:
        UserError: it is of another byte order.
        Exception: whatever a damaged or hostile file leads to; see load_pickle.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        _, _, machine = (load_pickle(_next_pickle(file), budget) for _ in range(_BEFORE_CONTENT))
        if isinstance(machine, dict) and machine.get("little_endian") is False:
            raise UserError(
                f"{path} was saved on a big-endian machine; load and save it with torch once more"
            )
        content, order = _next_pickle(file), load_pickle(_next_pickle(file), budget)
        behind = file.tell()
    # Sizes are declared in the content, so the places are known only once it has been read.
    storages: dict[str, Storage] = {}
    places: dict[str, int] = {}

    def persistent(pid: object) -> Storage:
        kind, key, count, view = storage_of(pid)
        if kind.dtype is None:
            raise ValueError("an untyped storage in this format")
        found = storages.setdefault(key, Storage(kind.dtype, count, lambda n: _at(key, n)))
        _of_kind(found, kind.dtype, count)
        return found if view is None else _part(found, view)

    def _at(key: str, count: int) -> torch.Tensor:
        if not places:
            places.update(_places(mapped, behind, order, storages))
        return _view(mapped, places[key], count)

    return load_pickle(content, budget, persistent)


def _places(
    mapped: mmap.mmap, start: int, order: Any, storages: dict[str, Storage]
) -> dict[str, int]:
    """Where the numbers of each storage begin."""
    places = {}
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(storages):
        raise ValueError("other storages than the tensors have")
    for key in order:
        (count,) = struct.unpack("<q", mapped[start : start + _COUNT])
        if count != storages[key].count:
            raise ValueError(f"storage {key} has {count} elements, not {storages[key].count}")
        places[key] = start + _COUNT
        start = places[key] + count * storages[key].itemsize
    if start > len(mapped):
        raise EOFError("the file ends before its numbers")
    return places


def _part(root: Storage, view: Any) -> Storage:
    """A storage that is a part of another, as torch before 0.4 wrote them."""
    key, offset, count = view
    if not isinstance(key, str) or type(offset) is not int or type(count) is not int:
        raise ValueError("such a part of a storage")
    if not 0 <= offset <= offset + count <= root.count:
        raise ValueError("a part beyond its storage")
    first = offset * root.itemsize
    return Storage(root.dtype, count, lambda n: root.flat()[first : first + n])


def _of_kind(storage: Storage, dtype: torch.dtype | None, count: int) -> Storage:
    if (storage.dtype, storage.count) != (dtype, count):
        raise ValueError("one storage of two types or sizes")
    return storage


def _next_pickle(file: io.BufferedReader) -> bytes:
    """The bytes of one pickle, checked."""
    start = file.tell()
    check_pickle(file)
    end = file.tell()
    file.seek(start)
    return file.read(end - start)


def _view(buffer: mmap.mmap | bytearray, start: int, count: int) -> torch.Tensor:
    """Bytes of a buffer as a tensor."""
    if not 0 <= start <= start + count <= len(buffer):
        raise EOFError("the file ends before its numbers")
    if not count:
        return torch.empty(0, dtype=torch.uint8)
    found = torch.frombuffer(buffer, dtype=torch.uint8, count=count, offset=start)
    aligned = found.data_ptr() % torch.complex128.itemsize == 0
    return found if aligned else found.clone()
