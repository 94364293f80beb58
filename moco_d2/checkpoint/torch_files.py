"""Reads both formats of torch.save without torch's own reader.

torch's reader checks neither the checksums nor the declared sizes of an archive. It also locates
the members in another way than zipfile, which checks them. Here one reader does both.
"""

import io
import mmap
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from moco_d2.checkpoint.pickle_stubs import Budget, Storage, storage_of
from moco_d2.checkpoint.unpickling import check_pickle, load_pickle
from moco_d2.errors import UserError

# The format of torch.save before 1.6 and of the official MoCo files: pickles of a magic number, a
# version, a description of the machine, the content and the order of the storages; then the
# storages.
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_BEFORE_CONTENT = 3  # pickles
_LOCAL_HEADER = 30  # bytes of a zip member's local header
_LENGTHS = slice(26, 30)  # in it, the lengths of the name and the extra field behind it
_COUNT = 8  # bytes of a number of elements


def read_archive(path: Path, members: list[zipfile.ZipInfo], budget: Budget) -> Any:
    """Return the content of an archive of torch.

    Its tensors are memory-mapped: they stay in the file until they are used.

    Args:
        path: The archive.
        members: The result of check_archive.
        budget: The budget for the tensors.

    Raises:
        UserError: If the archive is a program, or has another byte order.
        Exception: Any error that a damaged or hostile file causes; see load_pickle.
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

            def read_bytes(count: int) -> torch.Tensor:
                if member.file_size != count:
                    raise ValueError(f"{name} has {member.file_size} bytes, not {count}")
                if member.compress_type != zipfile.ZIP_STORED:
                    return _view(bytearray(archive.read(member)), 0, count)
                if member.compress_size != count:
                    raise ValueError(f"{name} has {member.compress_size} bytes, not {count}")
                return _view(mapped, _start(mapped, member), count)

            return read_bytes

        storages: dict[str, Storage] = {}

        def persistent(pid: object) -> Storage:
            kind, key, count, _ = storage_of(pid)
            new = Storage(kind.dtype, count, read(f"{root}data/{key}"))
            return _check_kind(storages.setdefault(key, new), kind.dtype, count)

        data = archive.read(content)
        check_pickle(io.BytesIO(data))
        return load_pickle(data, budget, persistent)


def _start(mapped: mmap.mmap, member: zipfile.ZipInfo) -> int:
    """Return the offset of a stored member's bytes."""
    header = mapped[member.header_offset : member.header_offset + _LOCAL_HEADER]
    return member.header_offset + _LOCAL_HEADER + sum(struct.unpack("<HH", header[_LENGTHS]))


def read_legacy(path: Path, budget: Budget) -> Any:
    """Return the content of a file from torch before 1.6.

    Raises:
        UserError: If the file has another byte order.
        Exception: Any error that a damaged or hostile file causes; see load_pickle.
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
    # Sizes are declared in the content, so the offsets are known only after it has been read.
    storages: dict[str, Storage] = {}
    offsets: dict[str, int] = {}

    def persistent(pid: object) -> Storage:
        kind, key, count, view = storage_of(pid)
        if kind.dtype is None:
            raise ValueError("an untyped storage in this format")
        new = Storage(kind.dtype, count, lambda n: _read_storage(key, n))
        storage = _check_kind(storages.setdefault(key, new), kind.dtype, count)
        return storage if view is None else _part(storage, view)

    def _read_storage(key: str, count: int) -> torch.Tensor:
        if not offsets:
            offsets.update(_offsets(mapped, behind, order, storages))
        return _view(mapped, offsets[key], count)

    return load_pickle(content, budget, persistent)


def _offsets(
    mapped: mmap.mmap, start: int, order: Any, storages: dict[str, Storage]
) -> dict[str, int]:
    """Return the offset of each storage's numbers."""
    offsets = {}
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(storages):
        raise ValueError("other storages than the tensors have")
    for key in order:
        (count,) = struct.unpack("<q", mapped[start : start + _COUNT])
        if count != storages[key].count:
            raise ValueError(f"storage {key} has {count} elements, not {storages[key].count}")
        offsets[key] = start + _COUNT
        start = offsets[key] + count * storages[key].itemsize
    if start > len(mapped):
        raise EOFError("the file ends before its numbers")
    return offsets


def _part(root: Storage, view: Any) -> Storage:
    """Return a storage that is a part of another, as torch before 0.4 wrote them."""
    key, offset, count = view
    if not isinstance(key, str) or type(offset) is not int or type(count) is not int:
        raise ValueError("such a part of a storage")
    if not 0 <= offset <= offset + count <= root.count:
        raise ValueError("a part beyond its storage")
    first = offset * root.itemsize
    return Storage(root.dtype, count, lambda n: root.flat()[first : first + n])


def _check_kind(storage: Storage, dtype: torch.dtype | None, count: int) -> Storage:
    if (storage.dtype, storage.count) != (dtype, count):
        raise ValueError("one storage of two types or sizes")
    return storage


def _next_pickle(file: io.BufferedReader) -> bytes:
    """Return the bytes of one pickle after checking them."""
    start = file.tell()
    check_pickle(file)
    end = file.tell()
    file.seek(start)
    return file.read(end - start)


def _view(buffer: mmap.mmap | bytearray, start: int, count: int) -> torch.Tensor:
    """Return bytes of a buffer as a tensor."""
    if not 0 <= start <= start + count <= len(buffer):
        raise EOFError("the file ends before its numbers")
    if not count:
        return torch.empty(0, dtype=torch.uint8)
    view = torch.frombuffer(buffer, dtype=torch.uint8, count=count, offset=start)
    aligned = view.data_ptr() % torch.complex128.itemsize == 0
    return view if aligned else view.clone()
