import re

import pytest
import torch
from torchvision import models

from moco_d2.errors import UserError
from moco_d2.pretrain.checkpointing import (
    PretrainCheckpointer,
    load_official_state_dict,
    official_state_dict,
)
from moco_d2.pretrain.data import list_training_images
from moco_d2.pretrain.engine import build_pretext_model


@pytest.fixture
def checkpointer(make_config):
    """Function: overrides -> the checkpointer of a new model."""

    def build(overrides: dict | None = None) -> PretrainCheckpointer:
        cfg = make_config(overrides)
        model = build_pretext_model(cfg, list_training_images(cfg))
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=1, momentum=0.9)
        return PretrainCheckpointer(cfg, model, optimizer, torch.amp.GradScaler(enabled=False))

    return build


def test_layout_is_the_official_one_and_loads_without_running_code(checkpointer):
    ours = checkpointer()
    ours.model.dictionary.update(torch.randn(3, 16))
    path = ours.save("checkpoint.pth.tar", iteration=3, epoch=1)
    content = torch.load(path, weights_only=True)
    assert {"epoch", "arch", "state_dict", "optimizer"} <= content.keys()
    assert (content["epoch"], content["arch"]) == (1, "resnet18")

    # main_moco.py: DistributedDataParallel around MoCo around a torchvision ResNet, with --mlp
    encoder = models.resnet18(num_classes=16)
    encoder.fc = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU(), encoder.fc)
    wanted = {
        f"module.encoder_{branch}.{name}": tensor.shape
        for branch in "qk"
        for name, tensor in encoder.state_dict().items()
    }
    wanted |= {"module.queue": (16, 20), "module.queue_ptr": (1,)}
    assert {name: tensor.shape for name, tensor in content["state_dict"].items()} == wanted
    assert content["state_dict"]["module.queue_ptr"].tolist() == [3]


def test_the_official_linear_evaluation_reads_our_file(checkpointer):
    ours = checkpointer()
    path = ours.save("checkpoint.pth.tar", iteration=3, epoch=1)
    # The lines of main_lincls.py.
    state_dict = torch.load(path, weights_only=True)["state_dict"]
    for name in list(state_dict):
        if name.startswith("module.encoder_q") and not name.startswith("module.encoder_q.fc"):
            state_dict[name[len("module.encoder_q.") :]] = state_dict[name]
        del state_dict[name]
    network = models.resnet18()
    result = network.load_state_dict(state_dict, strict=False)
    assert set(result.missing_keys) == {"fc.weight", "fc.bias"}
    assert not result.unexpected_keys
    assert torch.equal(network.conv1.weight, ours.model.encoder_q.conv1.weight)


def test_resuming_restores_model_generators_and_place(small_network, checkpointer):
    ours, other = checkpointer(), checkpointer()
    ours.model.dictionary.update(torch.randn(5, 16))
    ours.save("checkpoint_0000003.pth.tar", iteration=3, epoch=1)
    drawn = torch.rand(2)
    torch.manual_seed(99)
    assert other.resume() == 3
    assert torch.equal(torch.rand(2), drawn)
    for (name, a), b in zip(
        ours.model.state_dict().items(), other.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_the_newest_checkpoint_is_the_one_resumed(small_network, checkpointer):
    ours = checkpointer()
    for iteration in (3, 6, 5):
        ours.save(f"checkpoint_{iteration:07d}.pth.tar", iteration=iteration, epoch=1)
    assert ours.resume() == 5


def test_nothing_to_resume_is_a_start(small_network, checkpointer):
    assert checkpointer().resume() == 0


def test_an_interrupted_save_keeps_the_checkpoint_before(
    small_network, checkpointer, monkeypatch, tmp_path
):
    ours = checkpointer()
    ours.save("checkpoint_final.pth.tar", iteration=3, epoch=1)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(torch, "save", lambda content, path: path.write_bytes(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ours.save("checkpoint_final.pth.tar", iteration=6, epoch=2)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"MOCO.DICTIONARY.SIZE": 24},
            r"queue is \(16, 20\) and this config makes it \(16, 24\): "
            r"change MOCO.DICTIONARY.SIZE back",
        ),
        ({"MOCO.ENCODER.MLP": False}, r"no encoder_q\.fc\.weight; .* check MOCO\.ENCODER"),
        ({"MOCO.ENCODER.DIM": 8}, r"encoder_q\.fc\.2\.weight is .* change MOCO\.ENCODER back"),
        ({"MOCO.PRETEXT": "supervised"}, r"no conv\.weight"),
    ],
    ids=["queue", "head", "dim", "pretext"],
)
def test_resuming_with_other_settings_names_the_key(small_network, checkpointer, changed, message):
    checkpointer().save("checkpoint.pth.tar", iteration=3, epoch=1)
    with pytest.raises(UserError) as caught:
        checkpointer(changed).resume()
    assert re.search(message, str(caught.value)), caught.value


def test_resuming_a_deeper_network_is_refused_and_not_cut_short(checkpointer):
    """Everything a ResNet-18 has is in a ResNet-34 too, under the same names and shapes."""
    deeper = official_state_dict(checkpointer({"MOCO.ENCODER.ARCH": "resnet34"}).model)
    with pytest.raises(UserError, match=r"has encoder_q\.layer1\.2\.\S+, .* check MOCO\.ENCODER"):
        load_official_state_dict(checkpointer().model, deeper)


def test_an_official_file_is_refused_before_anything_is_loaded(small_network, checkpointer):
    ours = checkpointer()
    path = ours.save("checkpoint.pth.tar", iteration=3, epoch=1)
    content = torch.load(path, weights_only=True)
    del content["moco_d2"]
    torch.save(content, path)
    other = checkpointer()
    before = other.model.encoder_q.conv.weight.clone()
    with pytest.raises(UserError, match="cannot be resumed exactly"):
        other.resume()
    assert torch.equal(other.model.encoder_q.conv.weight, before)


def test_weights_without_an_optimizer_are_refused(small_network, checkpointer, tmp_path):
    ours = checkpointer()
    (tmp_path / "out").mkdir()
    torch.save({"model": {}}, tmp_path / "out" / "weights.pth")
    (tmp_path / "out" / "last_checkpoint").write_text("weights.pth")
    with pytest.raises(UserError, match="not a training checkpoint"):
        ours.resume()
