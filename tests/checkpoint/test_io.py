import argparse
import collections
import os
import pathlib
import pickle
import resource
import socket
import zipfile
from pathlib import Path

import numpy as np
import omegaconf
import pytest
import safetensors.torch
import torch
from support.checkpoint.containers import foreign, foreign_importable
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from moco_d2.checkpoint import io
from moco_d2.checkpoint.io import load_checkpoint, read_provenance, save_checkpoint
from moco_d2.checkpoint.pickle_stubs import Inert
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


@pytest.mark.parametrize(
    "address",
    [
        "https://dl.fbaipublicfiles.com/moco/moco_v2.pth.tar",
        "https://huggingface.co/timm/resnet50/resolve/main/model.safetensors",
        "hf://timm/resnet50",
        "s3://bucket/model.pth",
    ],
)
def test_an_address_is_no_file(address):
    for path in (address, Path(address)):  # a Path has only one slash
        with pytest.raises(UserError, match=f"^{address} is an address, not a file; download it"):
            load_checkpoint(path)


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (("moco_d2-0.1/README.md", "moco_d2-0.1/setup.py"), "moco_d2-0.1/README.md"),
        (("notes.txt", "moco/checkpoint_0199.pth.tar"), "(moco/checkpoint_0199.pth.tar)"),
    ],
)
def test_another_zip_archive_is_named_with_its_content(tmp_path, names, named):
    with zipfile.ZipFile(tmp_path / "release.zip", "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    message = refusal(tmp_path / "release.zip")
    assert "is a zip archive of 2 files, not a checkpoint; unpack it" in message
    assert named in message and "damaged" not in message


def test_tensors_of_several_processes_are_named(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://localhost:{port}", rank=0, world_size=1
    )
    try:
        mesh = init_device_mesh("cpu", (1,))
        tensor = distribute_tensor(torch.ones(4), mesh, [Shard(0)])
        torch.save({"state_dict": {"conv1.weight": tensor}}, tmp_path / "fsdp.pth")
    finally:
        torch.distributed.destroy_process_group()
    message = refusal(tmp_path / "fsdp.pth")
    assert "distributed over processes (DTensor); gather them" in message
    assert "full_state_dict=True" in message and "run code" not in message


def test_numbers_of_eight_bits_are_named(tmp_path):
    names = [name for name in dir(torch) if name.startswith("float8_")]
    assert names
    for name in names:
        torch.save({"a": torch.ones(4).to(getattr(torch, name))}, tmp_path / "quantized.pth")
        try:
            assert load_checkpoint(tmp_path / "quantized.pth")["a"].dtype == getattr(torch, name)
        except UserError as error:
            assert "8 bits or fewer, which are those of a quantized network" in str(error)
            assert "run code" not in str(error)


def test_folder_empty_and_text(tmp_path):
    assert "is not a file" in refusal(tmp_path)
    assert "a folder; name the checkpoint file inside it" in refusal(tmp_path)
    (tmp_path / "empty.pth").touch()
    assert "a folder; name the checkpoint file inside it, perhaps empty.pth" in refusal(tmp_path)
    assert "is empty" in refusal(tmp_path / "empty.pth")
    (tmp_path / "lfs.pth").write_text("version https://git-lfs.github.com/spec/v1\nsize 3 é\n" * 20)
    assert "is a text file" in refusal(tmp_path / "lfs.pth")
    (tmp_path / "image.pth").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    assert "was not written by torch.save" in refusal(tmp_path / "image.pth")


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


@pytest.mark.parametrize("new", [True, False])
def test_hyper_parameters_and_numbers_beside_the_tensors(tmp_path, new):
    """What Lightning and training loops save; dicts that are not plain come back as plain ones."""
    attributes = foreign("pytorch_lightning.utilities.parsing.AttributeDict", dict)
    options = {"optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}, "name": "moco"}
    content = {
        "hyper_parameters": attributes(lr=0.1, nested=attributes(a=1)),
        "cfg": omegaconf.OmegaConf.create(options),
        "losses": collections.defaultdict(list, train=[0.5]),
        "best": np.float64(0.25),
        "mean": np.array([1.0, 2.0], dtype=np.float32),
        "w": torch.ones(2),
    }
    with foreign_importable():
        torch.save(content, tmp_path / "c.ckpt", _use_new_zipfile_serialization=new)
    loaded = load_checkpoint(tmp_path / "c.ckpt")
    assert loaded["hyper_parameters"] == {"lr": 0.1, "nested": {"a": 1}}
    assert type(loaded["hyper_parameters"]["nested"]) is dict
    assert isinstance(loaded["cfg"], Inert)
    assert type(loaded["losses"]) is dict and loaded["losses"] == {"train": [0.5]}
    assert loaded["best"] == 0.25 and torch.equal(loaded["w"], torch.ones(2))
    assert torch.equal(loaded["mean"], torch.tensor([1.0, 2.0]))


def test_a_file_is_told_by_its_content(tmp_path):
    tensors = {"a": torch.arange(4.0)}
    safetensors.torch.save_file(tensors, tmp_path / "pytorch_model.bin")
    np.savez_compressed(tmp_path / "weights.npz", a=np.arange(4, dtype=np.float32))
    (tmp_path / "weights.npz").rename(tmp_path / "weights.dat")
    (tmp_path / "arrays.pth").write_bytes(pickle.dumps({"a": np.arange(4, dtype=np.float32)}))
    torch.save(tensors, tmp_path / "torch.npz")
    for file in tmp_path.iterdir():
        assert torch.equal(load_checkpoint(file)["a"], tensors["a"])


def test_a_repacked_archive_gives_its_numbers(tmp_path):
    """Compressed members are not mapped."""
    torch.save({"a": torch.arange(100.0)}, tmp_path / "c.pth")
    with (
        zipfile.ZipFile(tmp_path / "c.pth") as old,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert torch.equal(load_checkpoint(tmp_path / "packed.pth")["a"], torch.arange(100.0))


@pytest.mark.parametrize("then", ["replace", "remove"])
def test_what_was_read_outlives_the_file(tmp_path, then):
    path, values = tmp_path / "c.pth", torch.arange(1 << 18).float()
    torch.save({"a": values}, path)
    loaded = load_checkpoint(path)
    if then == "remove":
        path.unlink()
    else:
        save_checkpoint(path, {"model": {"a": -values}})
    assert torch.equal(loaded["a"], values)


def test_every_flipped_bit_in_an_archive_of_torch_is_noticed(tmp_path):
    whole, broken = tmp_path / "whole.pth", tmp_path / "broken.pth"
    torch.save({"a": torch.randn(64)}, whole)
    data = whole.read_bytes()
    with zipfile.ZipFile(whole) as archive:
        numbers = archive.read("whole/data/0")
    start = data.index(numbers)
    for position in range(start, start + len(numbers), 5):
        broken.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        assert "does not match its checksum" in refusal(broken)


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


def test_one_array_under_two_names_stays_one(tmp_path):
    array = np.arange(3, dtype=np.float32)
    content = {"a": array, "inner": {"b": array}}
    content["inner"]["outer"] = content
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(content))
    loaded = load_checkpoint(tmp_path / "c.pkl")
    assert loaded["inner"]["outer"] is loaded
    assert loaded["a"].data_ptr() == loaded["inner"]["b"].data_ptr()


def test_metadata_of_safetensors(tmp_path):
    path = tmp_path / "c.safetensors"
    metadata = {"format": "pt", "provenance": "made by hand"}
    safetensors.torch.save_file({"a": torch.ones(1)}, path, metadata=metadata)
    assert load_checkpoint(path)["__metadata__"] == {"format": "pt"}
    assert read_provenance(path) is None


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_the_same_weights_give_the_same_bytes(tmp_path, suffix):
    content = {"model": {"a": torch.ones(3)}, **{f"x{i}": {"é": i} for i in range(8)}}
    for name in ("a", "other"):
        save_checkpoint(tmp_path / f"{name}{suffix}", content)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_a_full_disk_is_one_sentence_and_keeps_the_old_file(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*; check the free space") as caught:
            save_checkpoint(path, {"model": {"a": torch.ones(1 << 16)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == [path.name] and path.read_bytes() == b"old"


def test_detectron2_reads_the_pickle_under_either_numpy(tmp_path):
    from detectron2.checkpoint import DetectionCheckpointer

    tensors = {"weight": torch.randn(2, 3), "bias": torch.zeros(2)}
    content = {"model": tensors, "__author__": "moco_d2", "matching_heuristics": True}
    save_checkpoint(tmp_path / "w.pkl", content)
    assert b"numpy._core" not in (tmp_path / "w.pkl").read_bytes()
    network = torch.nn.Linear(3, 2)
    DetectionCheckpointer(network).load(str(tmp_path / "w.pkl"))
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in tensors.items())


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
