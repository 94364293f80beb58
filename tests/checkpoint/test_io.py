import argparse
import os
import pathlib
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch

from moco_d2.checkpoint import io
from moco_d2.checkpoint.io import load_checkpoint, read_provenance, save_checkpoint
from moco_d2.checkpoint.unpickling import Inert
from moco_d2.errors import UserError


class RunsCode:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def refusal(path) -> str:
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and "; " in message
    return message


def test_reads_both_formats_of_torch_save(tmp_path):
    content = {"state_dict": {"a": torch.arange(3.0)}, "epoch": 2}
    for new in (True, False):
        torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=new)
        loaded = load_checkpoint(tmp_path / "c.pth")
        assert torch.equal(loaded["state_dict"]["a"], torch.arange(3.0)) and loaded["epoch"] == 2


def test_missing_file_names_the_closest(tmp_path):
    (tmp_path / "model_final.pth").write_bytes(b"x")
    assert "did you mean 'model_final.pth'?" in refusal(tmp_path / "model_fnal.pth")
    assert "check the path" in refusal(tmp_path / "no" / "such.pth")


def test_folder_empty_and_text(tmp_path):
    assert "is not a file" in refusal(tmp_path)
    (tmp_path / "empty.pth").touch()
    assert "is empty" in refusal(tmp_path / "empty.pth")
    (tmp_path / "lfs.pth").write_text("version https://git-lfs.github.com/spec/v1\nsize 3 é\n" * 20)
    assert "is a text file" in refusal(tmp_path / "lfs.pth")
    (tmp_path / "image.pth").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    assert "not a file that torch.save wrote" in refusal(tmp_path / "image.pth")


@pytest.mark.parametrize("new", [True, False])
def test_truncated_anywhere_is_refused(tmp_path, new):
    whole, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save({"a": torch.randn(300)}, whole, _use_new_zipfile_serialization=new)
    data = whole.read_bytes()
    for length in (1, 2, 10, 50, 200, len(data) // 2, len(data) - 30, len(data) - 1):
        cut.write_bytes(data[:length])
        refusal(cut)


@pytest.mark.parametrize("new", [True, False])
def test_flipped_bytes_never_give_a_traceback(tmp_path, new):
    whole, broken = tmp_path / "whole.pth", tmp_path / "broken.pth"
    torch.save({"a": torch.randn(20)}, whole, _use_new_zipfile_serialization=new)
    data = whole.read_bytes()
    refused = 0
    for position in range(0, len(data), 7):
        broken.write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
        try:
            load_checkpoint(broken)
        except UserError:
            refused += 1
    assert refused > 10


def test_code_is_not_executed_and_is_named(tmp_path):
    marker = tmp_path / "executed"
    torch.save({"state_dict": RunsCode(marker)}, tmp_path / "a.pth")
    torch.save({"x": RunsCode(marker)}, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "c.pkl").write_bytes(pickle.dumps({"x": RunsCode(marker)}, protocol=2))
    for name in ("a.pth", "b.pth", "c.pkl"):
        assert "system" in refusal(tmp_path / name)
    assert not marker.exists()


@pytest.mark.parametrize("new", [True, False])
def test_options_and_paths_are_held_by_inert_stand_ins(tmp_path, new):
    content = {"args": argparse.Namespace(lr=1), "path": pathlib.Path("a/b"), "w": torch.ones(2)}
    torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=new)
    loaded = load_checkpoint(tmp_path / "c.pth")
    assert type(loaded["args"]) is not argparse.Namespace and loaded["args"].lr == 1
    assert isinstance(loaded["path"], Inert) and torch.equal(loaded["w"], torch.ones(2))


def test_reads_numpy_and_safetensors(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, dtype=">f4")}
    for protocol in (0, 2, 4):
        (tmp_path / f"{protocol}.pkl").write_bytes(pickle.dumps(arrays, protocol=protocol))
    np.savez(tmp_path / "c.npz", **arrays)
    safetensors.torch.save_file(
        {k: torch.tensor(v.tolist()) for k, v in arrays.items()}, tmp_path / "d.safetensors"
    )
    for file in tmp_path.iterdir():
        loaded = load_checkpoint(file)
        assert loaded.keys() == arrays.keys()
        assert all(
            loaded[k].dtype == torch.float32 and loaded[k].tolist() == v.tolist()
            for k, v in arrays.items()
        )


def test_the_same_weights_give_the_same_bytes(tmp_path):
    for name in ("a.pth", "other.pth"):
        save_checkpoint(tmp_path / name, {"model": {"a": torch.ones(3)}, "x": 1})
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "other.pth").read_bytes()


def test_not_a_dict(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    assert "holds a list" in refusal(tmp_path / "list.pth")


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_what_is_saved_is_plain_and_loads_safely(tmp_path, suffix):
    path = tmp_path / "folder" / f"w{suffix}"
    provenance = {"torch": torch.__version__, "list": (1, 2.5, True)}
    tensors = {"stem.conv1.weight": torch.ones(2), "b": torch.arange(3.0)}
    save_checkpoint(path, {"model": tensors, "provenance": provenance, "matching_heuristics": True})
    loaded = load_checkpoint(path)
    plain = {"torch": str(torch.__version__), "list": [1, 2.5, True]}
    assert loaded["provenance"] == read_provenance(path) == plain
    written = loaded if suffix == ".safetensors" else loaded["model"]
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())
    assert os.listdir(path.parent) == [path.name]
    if suffix == ".pth":
        assert torch.load(path, weights_only=True)["matching_heuristics"] is True


def test_what_reads_back_differently_leaves_nothing_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    path.write_bytes(b"old")
    monkeypatch.setitem(
        io._WRITERS, ".pth", lambda file, content: torch.save({"model": {"a": torch.ones(1)}}, file)
    )
    with pytest.raises(UserError, match="reads back differently"):
        save_checkpoint(path, {"model": {"a": torch.zeros(1)}})
    assert os.listdir(tmp_path) == ["w.pth"] and path.read_bytes() == b"old"


def test_weights_without_a_report(tmp_path):
    torch.save({"model": {}}, tmp_path / "w.pth")
    assert read_provenance(tmp_path / "w.pth") is None
