"""Files that would run code, or are no files: nothing of them runs."""

import builtins
import os
import pickle

import pytest
import torch

from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.errors import UserError


class Calls:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("name", ["c.pth", "c.pkl", "c.npz", "c.safetensors"])
@pytest.mark.parametrize("container", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("gadget", [os.system, builtins.eval, builtins.exec])
def test_no_gadget_runs_in_any_reader(tmp_path, name, container, gadget):
    marker, path = tmp_path / "executed", tmp_path / name
    code = f"touch {marker}" if gadget is os.system else f"open({str(marker)!r}, 'w')"
    content = {"state_dict": Calls(gadget, code)}
    if container == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(UserError):
        load_checkpoint(path)
    assert not marker.exists()


def test_fifo_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "c.pth")
    with pytest.raises(UserError, match="is not a file"):
        load_checkpoint(tmp_path / "c.pth")
