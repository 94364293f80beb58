"""Reads checkpoints without running their code, and writes weights completely or not at all."""

import errno
import json
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from moco_d2.checkpoint.archive import check_archive, most_bytes
from moco_d2.checkpoint.pickle_stubs import Budget, OversizedError
from moco_d2.checkpoint.report_values import as_report
from moco_d2.checkpoint.torch_files import LEGACY_MAGIC, read_archive, read_legacy
from moco_d2.checkpoint.unpickling import as_tensor, check_pickle, load_pickle
from moco_d2.errors import UserError, closest, printable
from moco_d2.files import CHECKPOINTS, atomic_write, files_in, no_file

# The unpickler's error for a class or function that is not in its table.
_FORBIDDEN_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_ADDRESS = re.compile(r"([a-z][a-z\d+.-]+):/+(.*)", re.IGNORECASE | re.DOTALL)
# Constructs of other numbers and tensors than plain ones -> what to do.
_NOT_PLAIN = (
    (
        re.compile(r"DTensor|ShardedTensor|_rebuild_wrapper_subclass"),
        "tensors that are distributed over processes (DTensor); gather them before you save: "
        "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
        "options=StateDictOptions(full_state_dict=True))",
    ),
    (
        re.compile(r"torch\.float[48]_"),
        "numbers of 8 bits or fewer, which are those of a quantized network; use the unquantized "
        "checkpoint",
    ),
)
_ZIP_MAGIC = b"PK"  # torch.save since 1.6, and NumPy
_PICKLE_MAGICS = (_ZIP_MAGIC, b"\x80")
_LENGTH = 8  # bytes of a safetensors header's length
_REASON = 100  # most characters of a quoted reason
_HEAD = 512  # bytes that show the kind of a file


def load_checkpoint(path: str | Path) -> dict[Any, Any]:
    """Read a checkpoint on the CPU without ever executing code from it.

    It reads files of ``torch.save``, safetensors, npz, and pickles of NumPy arrays, whatever their
    names. Archives of torch and NumPy are compared with their checksums. The other formats have no
    checksums, so a flipped bit in their numbers goes unnoticed. All tensors of a file together take
    at most archive.MOST_EXPANSION times its bytes.

    Tensors of an archive are memory-mapped: they stay in the file until they are used. The file may
    be replaced or removed meanwhile, as our own writers do, but not overwritten in place.

    Returns:
        The file's dict. For a safetensors file: the tensors by name, our own report under
        "provenance" and other metadata under "__metadata__".

    Raises:
        UserError: If the file does not exist, is damaged, is no checkpoint, needs code to load, or
            does not hold a dict.
    """
    path = Path(path)
    checkpoint = _guarded(path, _read)
    if not isinstance(checkpoint, dict):
        raise UserError(
            f"{path} holds a {type(checkpoint).__name__}, not a dict of tensors; "
            "save the network with torch.save({'state_dict': model.state_dict()}, file)"
        )
    return checkpoint


def _guarded(path: Path, read: Callable[[Path], Any]) -> Any:
    """Return `read(path)`, with a UserError for whatever is wrong with the file."""
    try:
        if not path.exists():
            if address := _ADDRESS.match(str(path)):
                raise UserError(
                    f"{address[1]}://{address[2]} is an address, not a file; download it, and name "
                    "the file"
                )
            hint = closest(path.name, files_in(path.parent, CHECKPOINTS)) or "check the path"
            raise UserError(f"there is no file {path}; {hint}")
        if not path.is_file():
            if path.is_dir():
                reason = no_file(path, CHECKPOINTS, "checkpoint file").removeprefix("is ")
                raise UserError(f"{path} is not a file but {reason}")
            raise UserError(f"{path} is not a file but a pipe or a device; name a checkpoint file")
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty; copy or download the checkpoint again")
        return read(path)
    except UserError:
        raise
    # A damaged file can raise anything: RuntimeError, EOFError, KeyError, ...
    except Exception as error:
        raise UserError(_why_unreadable(path, error)) from error


def _read(path: Path) -> Any:
    """Read a file by its content, not by its name: published files have all kinds of suffixes."""
    head = _head(path)
    if head.startswith(_ZIP_MAGIC):
        return _read_zip(path)
    if head.startswith(LEGACY_MAGIC):
        return read_legacy(path, Budget(most_bytes(path)))
    length = int.from_bytes(head[:_LENGTH], "little")  # of a safetensors header
    if path.suffix == ".safetensors" or (
        head[_LENGTH : _LENGTH + 1] == b"{" and length < path.stat().st_size
    ):
        return _read_safetensors(path)
    return _read_pickle(path)


def _read_zip(path: Path) -> Any:
    members = check_archive(path)
    if not any(member.filename.endswith(".npy") for member in members):
        return read_archive(path, members, Budget(most_bytes(path)))
    with np.load(path, allow_pickle=False) as content:
        arrays = dict(content)
    # NumPy returns a member that is no array as bytes.
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise ValueError("a member is no array")
    return {name: as_tensor(array) for name, array in arrays.items()}


def _read_pickle(path: Path) -> Any:
    """Read a pickle of plain values and NumPy arrays (Detectron2, Caffe2)."""
    with path.open("rb") as f:
        check_pickle(f)
    return load_pickle(path.read_bytes(), Budget(most_bytes(path)))


def _read_safetensors(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = load_file(path)
    metadata = _safetensors_metadata(path)
    if provenance := _provenance_in(metadata):
        content["provenance"] = provenance
    if others := {key: value for key, value in metadata.items() if key != "provenance"}:
        content["__metadata__"] = others
    return content


def _safetensors_metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _provenance_in(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    try:
        return as_report(json.loads(metadata.get("provenance", "null")))
    except (ValueError, RecursionError):  # not from this package
        return None


def _why_unreadable(path: Path, error: Exception) -> str:
    # EINVAL is a wrong offset in a damaged file.
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        return f"cannot read {path}: {error.strerror or error}; check the path and its permissions"
    if isinstance(error, OversizedError):
        return (
            f"{path} of {path.stat().st_size} bytes unpacks to tensors of {error}; use the "
            "original checkpoint"
        )
    if forbidden := _FORBIDDEN_GLOBAL.search(str(error)):
        for pattern, advice in _NOT_PLAIN:
            if pattern.search(forbidden[1]):
                return f"{path} holds {advice}"
        return (
            f"{path} is refused: loading it would import {forbidden[1]}, which could run code; "
            "save it again with tensors and plain values only: "
            "torch.save({'state_dict': model.state_dict()}, file), or, if you trust its author, "
            "torch.save(torch.load(old, weights_only=False)['state_dict'], new)"
        )
    if isinstance(error, pickle.UnpicklingError) and _head(path).startswith(_PICKLE_MAGICS):
        return (
            f"{path} is damaged, or holds more than tensors and plain values "
            f"({printable(str(error))[:_REASON]}); copy or download it again, or save the network "
            "with torch.save({'state_dict': model.state_dict()}, file)"
        )
    return _apparent_kind(path)


def _apparent_kind(path: Path) -> str:
    head = _head(path)
    if _is_text(head):
        return (
            f"{path} is a text file, perhaps an error page or a Git LFS pointer instead of the "
            "checkpoint; download the checkpoint again"
        )
    if head.startswith(_PICKLE_MAGICS) or path.suffix == ".safetensors":
        return f"{path} is damaged or incomplete; copy or download the checkpoint again"
    return f"{path} was not written by torch.save; use the original checkpoint"


def _head(path: Path) -> bytes:
    with path.open("rb") as f:
        return f.read(_HEAD)


def _is_text(head: bytes) -> bool:
    # The head may end inside a character, which leaves at most three bytes in UTF-8.
    text = head.decode("utf-8", errors="ignore")
    return len(head) - len(text.encode()) <= 3 and all(c.isprintable() or c.isspace() for c in text)


def save_checkpoint(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write weights that load without running code, completely and verified, or not at all.

    Args:
        path: A ``.pth`` file (torch), ``.pkl`` (NumPy arrays, as Detectron2 reads them) or
            ``.safetensors`` (one dict of tensors, with the rest as JSON in its metadata).
        content: Dicts of tensors, and values of JSON types.

    Raises:
        UserError: If the destination cannot be written, or does not read back as it was written.
    """
    path = Path(path)
    # JSON leaves plain types only: a subclass of str (torch.__version__ is one) or a NumPy number
    # would make the file unreadable under weights_only=True.
    content = {
        key: value if _is_tensors(value) else json.loads(json.dumps(value, allow_nan=False))
        for key, value in content.items()
    }
    try:
        with atomic_write(path) as temporary:
            _WRITERS[path.suffix](temporary, content)
            _check_written(temporary, path, content)
    # torch's zip writer raises RuntimeError on a full disk, safetensors its own error.
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"cannot write {path}: {reason}; check the free space there") from error


def _is_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())


def _write_torch(file: Path, content: Mapping[str, Any]) -> None:
    # From a path, torch would name the folder inside the zip after the random temporary name, and
    # the same conversion must write the same bytes.
    with file.open("wb") as f:
        torch.save(dict(content), f)


class _ArrayPickler(pickle.Pickler):
    """Pickle arrays by their class: NumPy 1 does not have the function that NumPy 2 pickles."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not np.ndarray:
            return NotImplemented
        state = (1, value.shape, value.dtype, False, value.tobytes())
        return np.ndarray, ((0,),), state


def _write_pickle(file: Path, content: Mapping[str, Any]) -> None:
    arrays = {
        key: {name: tensor.numpy() for name, tensor in value.items()}
        if _is_tensors(value)
        else value
        for key, value in content.items()
    }
    with file.open("wb") as f:
        _ArrayPickler(f, protocol=4).dump(arrays)


def _write_safetensors(file: Path, content: Mapping[str, Any]) -> None:
    (tensors,) = (value for value in content.values() if _is_tensors(value))
    rest = {key: value for key, value in content.items() if not _is_tensors(value)}
    metadata = {key: json.dumps(value, sort_keys=True) for key, value in rest.items()}
    save_file(dict(tensors), file, metadata={"format": "pt", **metadata})
    _sort_metadata(file)


def _sort_metadata(file: Path) -> None:
    """Sort the metadata, which the library writes in random order: equal input, equal bytes."""
    with file.open("r+b") as f:
        length = int.from_bytes(f.read(_LENGTH), "little")
        header = json.loads(f.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        f.seek(_LENGTH)
        f.write(text.ljust(length))


_WRITERS = {".pth": _write_torch, ".pkl": _write_pickle, ".safetensors": _write_safetensors}


def _check_written(file: Path, path: Path, content: Mapping[str, Any]) -> None:
    written = load_checkpoint(file)
    for key, value in content.items():
        if not _is_tensors(value):
            continue
        tensors = written if path.suffix == ".safetensors" else written.get(key, {})
        for name, tensor in value.items():
            if name not in tensors or not torch.equal(tensors[name], tensor):
                raise UserError(
                    f"{path} reads back differently from what was written ({name}); check the disk "
                    "and try again"
                )


def read_provenance(path: str | Path) -> dict[str, Any] | None:
    """Return the converter's report in a file of weights, or None if there is no report.

    Raises:
        UserError: If the file cannot be read, as in `load_checkpoint`.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _provenance_in(_guarded(path, _safetensors_metadata))
    return as_report(load_checkpoint(path).get("provenance"))
