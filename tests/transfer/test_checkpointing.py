import json
import pickle

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from safetensors.torch import save_file
from torch import nn

from moco_d2.checkpoint.convert import convert
from moco_d2.checkpoint.mapping import Architecture, build_torchvision
from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.transfer.checkpointing import TransferCheckpointer, WeightsCheckpointer
from moco_d2.transfer.divergence import DivergenceError
from moco_d2.transfer.weights import measure_coverage, read_provenance


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A converted torchvision ResNet-18 as .pth, .pkl and .safetensors."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(build_torchvision(Architecture(18)).state_dict(), folder / "resnet18.pth")
    convert(folder / "resnet18.pth", folder / "converted.pth")
    content = torch.load(folder / "converted.pth", weights_only=True)
    arrays = {name: tensor.numpy() for name, tensor in content["model"].items()}
    (folder / "converted.pkl").write_bytes(pickle.dumps({**content, "model": arrays}))
    metadata = {"provenance": json.dumps(content["provenance"])}
    save_file(content["model"], folder / "converted.safetensors", metadata=metadata)
    return folder


@pytest.fixture
def detector(tiny):
    return lambda config: build_model(load_config(config, [*tiny, "MODEL.DEVICE", "cpu"]))


@pytest.mark.parametrize("suffix", ["pth", "pkl", "safetensors"])
@pytest.mark.parametrize("config", ["voc_C4_moco.yaml", "coco_FPN_1x_moco.yaml"])
def test_all_formats_arrive_in_every_head(detector, converted, suffix, config):
    model = detector(config)
    with measure_coverage(model) as coverage:
        WeightsCheckpointer(model).load(str(converted / f"converted.{suffix}"))
    assert (coverage.result.expected, coverage.result.missing) == (100, ())


@pytest.mark.parametrize("suffix", ["pth", "pkl", "safetensors"])
def test_all_formats_say_where_they_are_from(converted, suffix):
    expected = torch.load(converted / "converted.pth", weights_only=True)["provenance"]
    assert read_provenance(converted / f"converted.{suffix}") == expected


def test_files_of_others_say_nothing(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "a.safetensors")
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"model": {"x": np.zeros(2)}}))
    assert read_provenance(tmp_path / "a.safetensors") is None
    assert read_provenance(tmp_path / "b.pkl") is None
    (tmp_path / "c.safetensors").write_bytes(b"no such thing")
    with pytest.raises(UserError, match=r"c\.safetensors"):
        read_provenance(tmp_path / "c.safetensors")


class Opens:
    """Its pickle would touch a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    trap = tmp_path / "trap"
    content = {"model": {"x": Opens(str(trap))}, "__author__": "somebody"}
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="is refused: loading it would import .* could run code"):
        WeightsCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / "weights.pkl"))
    assert not trap.exists()


@pytest.mark.parametrize("nested", [True, False])
def test_caffe2_files_are_renamed_as_detectron2_does(detector, tmp_path, nested):
    stem = np.random.default_rng(0).normal(size=(64, 3, 7, 7)).astype(np.float32)
    blobs = {"conv1_w": stem, "conv1_w_momentum": stem}
    (tmp_path / "R.pkl").write_bytes(pickle.dumps({"blobs": blobs} if nested else blobs))
    model = detector("voc_C4_random.yaml")
    WeightsCheckpointer(model).load(str(tmp_path / "R.pkl"))
    assert torch.equal(model.backbone.stem.conv1.weight, torch.from_numpy(stem))


@pytest.fixture
def checkpointer(tmp_path):
    return TransferCheckpointer(nn.Linear(3, 2), str(tmp_path))


def test_a_checkpoint_is_whole_or_absent(checkpointer, tmp_path, monkeypatch):
    checkpointer.save("model_0000001", iteration=1)

    def full(content, file):
        file.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        UserError, match=r"model_0000003.pth \(No space left on device\): free some"
    ):
        checkpointer.save("model_0000003", iteration=3)
    monkeypatch.undo()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["last_checkpoint", "model_0000001.pth"]
    assert checkpointer.newest_intact() == str(tmp_path / "model_0000001.pth")


def test_weights_that_are_not_finite_are_not_saved(checkpointer, tmp_path):
    checkpointer.save("model_0000001", iteration=1)
    checkpointer.model.weight.data[1, 2] = float("inf")
    with pytest.raises(DivergenceError) as caught:
        checkpointer.save("model_0000003", iteration=3)
    assert list(caught.value.losses) == ["weight"]
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")


def test_the_newest_that_is_whole_is_found_by_its_iteration(checkpointer, tmp_path, caplog):
    for iteration in (9, 3, 12):
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    (tmp_path / "model_0000012.pth").write_bytes(b"")
    (tmp_path / "model_0000010.pth").write_bytes(b"PK\x03\x04\x00\x00")
    torch.save({"model": {}}, tmp_path / "model_others.pth")
    assert checkpointer.newest_intact() == str(tmp_path / "model_0000009.pth")
    assert "model_0000012.pth is empty" in caplog.text


def test_without_one_that_is_whole_the_damage_is_the_error(checkpointer, tmp_path):
    checkpointer.save("model_0000003", iteration=3)
    (tmp_path / "model_0000003.pth").write_bytes(b"PK\x03\x04\x00\x00")
    with pytest.raises(UserError, match="model_0000003.pth is damaged or incomplete"):
        checkpointer.newest_intact()


def test_a_folder_in_the_place_of_last_checkpoint_is_refused(checkpointer, tmp_path):
    assert not checkpointer.has_checkpoint()
    (tmp_path / "last_checkpoint").mkdir()
    with pytest.raises(UserError, match="last_checkpoint is not a file: replace it"):
        checkpointer.has_checkpoint()


def test_stock_detectron2_reads_what_is_saved(checkpointer, tmp_path):
    from detectron2.checkpoint import DetectionCheckpointer

    checkpointer.save("model_0000003", iteration=3)
    other = nn.Linear(3, 2)
    rest = DetectionCheckpointer(other).load(checkpointer.get_checkpoint_file())
    assert torch.equal(other.weight, checkpointer.model.weight)
    assert rest["iteration"] == 3
