"""Reading a checkpoint without running its code; writing weights whole or not at all."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from moco_d2.checkpoint.unpickling import STAND_INS, as_tensors, load_arrays
from moco_d2.errors import UserError, closest
from moco_d2.files import atomic_write

AUTHOR = "moco_d2"

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
        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as content:
            arrays = dict(content)
        # NumPy gives a member that is no array as bytes.
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("a member is no array")
        return as_tensors(arrays)
    try:
        with torch.serialization.safe_globals(STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        if path.suffix != ".pkl":
            raise
        return load_arrays(path)


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


def _is_text(head: bytes) -> bool:
    # The last bytes may be half a character: three is the most UTF-8 can leave behind.
    text = head.decode("utf-8", errors="ignore")
    return len(head) - len(text.encode()) <= 3 and all(c.isprintable() or c.isspace() for c in text)


def check_destination(path: str | Path) -> None:
    """Refuse a destination that `save_detectron2` cannot write, before any work is done.

    Raises:
        UserError: the name does not end in ``.pth``, or it is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the file to write, e.g. {path / 'moco_R50.pth'}")
    if path.suffix != ".pth":
        raise UserError(
            f"cannot write {path}: Detectron2 weights end in .pth here; "
            f"name it {path.with_suffix('.pth')}"
        )


def save_detectron2(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    provenance: Mapping[str, Any],
    verify: Callable[[Path], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write weights that every Detectron2 loads through ``MODEL.WEIGHTS``, code-free.

    Args:
        path: the ``.pth`` file; it appears whole and verified, or not at all.
        tensors: Detectron2 name -> tensor.
        provenance: JSON types only. Detectron2 ignores it.
        verify: is given the temporary file before it gets its name, raises to refuse it, and
            returns what to add to the provenance.

    Returns:
        The provenance as written.

    Raises:
        UserError: the destination cannot be written, or `verify` refused.
    """
    check_destination(path)
    with atomic_write(path) as temporary:
        provenance = _write(temporary, path, tensors, provenance)
        if verify is not None:
            found = verify(temporary)
            # The file that stays is this one, with the figures: its tensors are those verified.
            provenance = _write(temporary, path, tensors, {**provenance, **found})
        _check_written(temporary, path, tensors)
    return provenance


def _write(
    file: Path, path: str | Path, tensors: Mapping[str, Tensor], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    # Through JSON: a subclass of str (torch.__version__ is one) or a NumPy number would make the
    # file unreadable under weights_only=True.
    plain = json.loads(json.dumps(provenance, allow_nan=False))
    content = {
        "model": dict(tensors),
        "__author__": AUTHOR,
        # Lets Detectron2 find res5 in roi_heads (C4) and in backbone.bottom_up (FPN).
        "matching_heuristics": True,
        "provenance": plain,
    }
    try:
        # Given a path, torch names the folder inside the zip after it; the temporary name is
        # random, and the same conversion must give the same bytes.
        with file.open("wb") as f:
            torch.save(content, f)
    except (
        OSError,
        RuntimeError,
    ) as error:  # torch's zip writer raises RuntimeError on a full disk
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot write {path}: {reason}; check the free space there") from error
    return plain


def _check_written(file: Path, path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    written = load_checkpoint(file)["model"]
    if written.keys() != tensors.keys() or not all(
        torch.equal(written[name], tensor) for name, tensor in tensors.items()
    ):
        raise UserError(
            f"what was written for {path} reads back differently; check the disk and try again"
        )
