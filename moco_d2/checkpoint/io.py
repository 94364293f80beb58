"""Reading a checkpoint without running its code; writing weights whole or not at all."""

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from moco_d2.checkpoint.unpickling import NUMBERS, STAND_INS, as_tensors, load_arrays
from moco_d2.errors import UserError, closest
from moco_d2.files import atomic_write

# What torch's restricted unpickler says of a class or function it will not import ("GLOBAL
# posix.system was not an allowed global by default", "unsupported GLOBAL os.system whose module os
# is blocked").
_FORBIDDEN_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_ZIP_MAGIC = b"PK"  # torch.save since 1.6
_PICKLE_MAGIC = b"\x80"  # torch.save before 1.6, the format of the official MoCo files


def load_checkpoint(path: str | Path) -> dict[Any, Any]:
    """Read a checkpoint on the CPU without ever executing code from it.

    Reads what ``torch.save`` wrote, ``.safetensors``, ``.npz``, and ``.pkl`` of NumPy arrays.

    Raises:
        UserError: there is no such file, it is damaged, it is something else, it needs code to
            load, or it does not hold a dict.
    """
    path = Path(path)
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = closest(path.name, siblings) or "check the path"
        raise UserError(f"there is no file {path}; {hint}")
    if not path.is_file():
        raise UserError(f"{path} is not a file; name the checkpoint file inside it")
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty; copy or download the checkpoint again")
        checkpoint = _read(path)
    except UserError:
        raise
    # A damaged file makes torch raise whatever its bytes happen to mean: RuntimeError, EOFError,
    # KeyError, ...
    except Exception as error:
        raise UserError(_why_unreadable(path, error)) from error
    if not isinstance(checkpoint, dict):
        raise UserError(
            f"{path} holds a {type(checkpoint).__name__}, not a dict of tensors; "
            "save the network with torch.save({'state_dict': model.state_dict()}, file)"
        )
    return checkpoint


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as content:
            arrays = dict(content)
        # NumPy gives a member that is no array as bytes.
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("a member is no array")
        return as_tensors(arrays)
    try:
        with torch.serialization.safe_globals([*STAND_INS, *NUMBERS]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_torch_zip(path))
    except Exception:
        if path.suffix != ".pkl":
            raise
        return load_arrays(path)


def _read_safetensors(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = load_file(path)
    if provenance := _safetensors_provenance(path):
        content.setdefault("provenance", provenance)
    return content


def _safetensors_provenance(path: Path) -> Any:
    with safe_open(path, framework="pt") as file:
        return json.loads((file.metadata() or {}).get("provenance", "null"))


def _why_unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot read {path}: {error.strerror or error}; check its permissions"
    if forbidden := _FORBIDDEN_GLOBAL.search(str(error)):
        return (
            f"{path} can only be loaded by importing {forbidden[1]}, which could run code, so it "
            "is refused; save it again with tensors and plain values only: "
            "torch.save({'state_dict': model.state_dict()}, file)"
        )
    if "TorchScript" in str(error):
        return f"{path} is a TorchScript program; save the state_dict() of the network instead"
    with path.open("rb") as f:
        head = f.read(512)
    if _is_text(head):
        return (
            f"{path} is a text file, perhaps an error page or a Git LFS pointer in the "
            "checkpoint's place; download the checkpoint again"
        )
    if head.startswith((_ZIP_MAGIC, _PICKLE_MAGIC)):
        return f"{path} is damaged or incomplete; copy or download the checkpoint again"
    return f"{path} is not a file that torch.save wrote; give the original checkpoint"


def _is_torch_zip(path: Path) -> bool:
    with path.open("rb") as f:
        return f.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC


def _is_text(head: bytes) -> bool:
    # The last bytes may be half a character: three is the most UTF-8 can leave behind.
    text = head.decode("utf-8", errors="ignore")
    return len(head) - len(text.encode()) <= 3 and all(c.isprintable() or c.isspace() for c in text)


def save_checkpoint(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write weights that load without running code: whole and verified, or not at all.

    Args:
        path: ``.pth`` (torch), ``.pkl`` (NumPy arrays, as Detectron2 reads them) or
            ``.safetensors`` (the one dict of tensors; the rest as JSON in its metadata).
        content: dicts of tensors, and JSON types.

    Raises:
        UserError: the destination cannot be written, or does not read back as it was written.
    """
    path = Path(path)
    # Through JSON: a subclass of str (torch.__version__ is one) or a NumPy number would make the
    # file unreadable under weights_only=True.
    content = {
        key: value if _is_tensors(value) else json.loads(json.dumps(value, allow_nan=False))
        for key, value in content.items()
    }
    with atomic_write(path) as temporary:
        try:
            _WRITERS[path.suffix](temporary, content)
        # torch's zip writer raises RuntimeError on a full disk, safetensors its own error.
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"cannot write {path}: {reason}; check the free space there") from error
        _check_written(temporary, path, content)


def _is_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())


def _write_torch(file: Path, content: Mapping[str, Any]) -> None:
    # Given a path, torch names the folder inside the zip after it; the temporary name is random,
    # and the same conversion must give the same bytes.
    with file.open("wb") as f:
        torch.save(dict(content), f)


def _write_pickle(file: Path, content: Mapping[str, Any]) -> None:
    arrays = {
        key: {name: tensor.numpy() for name, tensor in value.items()}
        if _is_tensors(value)
        else value
        for key, value in content.items()
    }
    with file.open("wb") as f:
        pickle.dump(arrays, f, protocol=4)


def _write_safetensors(file: Path, content: Mapping[str, Any]) -> None:
    (tensors,) = (value for value in content.values() if _is_tensors(value))
    rest = {key: value for key, value in content.items() if not _is_tensors(value)}
    metadata = {key: json.dumps(value, sort_keys=True) for key, value in rest.items()}
    save_file(dict(tensors), file, metadata={"format": "pt", **metadata})


_WRITERS = {".pth": _write_torch, ".pkl": _write_pickle, ".safetensors": _write_safetensors}


def _check_written(file: Path, path: Path, content: Mapping[str, Any]) -> None:
    written = load_checkpoint(file)
    for key, value in content.items():
        if not _is_tensors(value):
            continue
        found = written if path.suffix == ".safetensors" else written.get(key, {})
        for name, tensor in value.items():
            if name not in found or not torch.equal(found[name], tensor):
                raise UserError(
                    f"what was written for {path} reads back differently ({name}); check the disk "
                    "and try again"
                )


def read_provenance(path: str | Path) -> dict[str, Any] | None:
    """The converter's report inside a file of weights; None where there is none.

    Raises:
        UserError: as `load_checkpoint`.
    """
    provenance = load_checkpoint(path).get("provenance")
    return provenance if isinstance(provenance, dict) else None
