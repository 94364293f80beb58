import logging
import os
import re
import shutil

import pytest
import torch
from support.commands import run_python
from torchvision import models

from moco_d2.checkpoint.pretraining import describe_pretraining
from moco_d2.errors import UserError
from moco_d2.pretrain.checkpointing import PretrainCheckpointer
from moco_d2.pretrain.data.build import build_training_data
from moco_d2.pretrain.model.build import build_pretext_model
from moco_d2.pretrain.official_layout import load_official_state_dict, official_state_dict
from moco_d2.pretrain.pretrainer import Pretrainer


@pytest.fixture
def checkpointer(make_config):
    """Function: overrides -> the checkpointer of a new model."""

    def build(overrides: dict | None = None) -> PretrainCheckpointer:
        cfg = make_config(overrides)
        model = build_pretext_model(cfg, build_training_data(cfg))
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=1, momentum=0.9)
        return PretrainCheckpointer(cfg, model, optimizer, torch.amp.GradScaler(enabled=False))

    return build


def resumed(checkpointer: PretrainCheckpointer) -> int:
    """Number of finished iterations that it continues from; 3 make an epoch."""
    return checkpointer.resume(iterations_per_epoch=3)[0]


def test_layout_is_the_official_one_and_loads_without_running_code(checkpointer):
    ours = checkpointer()
    ours.model.dictionary.update(None, torch.randn(3, 16), None)
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
    for parameter in ours.model.encoder_k.parameters():
        parameter.add_(1)  # not the copy of the query encoder that it starts as
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
    ours.model.dictionary.update(None, torch.randn(5, 16), None)
    ours.save("checkpoint_0000003.pth.tar", iteration=3, epoch=1)
    drawn = torch.rand(2)
    torch.manual_seed(99)
    assert resumed(other) == 3
    assert torch.equal(torch.rand(2), drawn)
    for (name, a), b in zip(
        ours.model.state_dict().items(), other.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_the_newest_checkpoint_is_the_one_resumed(small_network, checkpointer):
    ours = checkpointer()
    for iteration in (3, 6, 5):
        ours.save(f"checkpoint_{iteration:07d}.pth.tar", iteration=iteration, epoch=1)
    assert resumed(ours) == 5


def test_nothing_to_resume_is_a_start(small_network, checkpointer):
    assert resumed(checkpointer()) == 0


def test_a_folder_in_the_place_of_last_checkpoint_is_refused(small_network, checkpointer):
    ours = checkpointer()
    (ours.folder / "last_checkpoint").mkdir(parents=True)
    with pytest.raises(UserError, match="last_checkpoint is not a file: replace it"):
        resumed(ours)
    with pytest.raises(UserError, match="last_checkpoint is not a file: replace it"):
        ours.check_fresh()


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
            r"queue has the shape \(16, 20\), but this config gives \(16, 24\): "
            r"change MOCO.DICTIONARY.SIZE back",
        ),
        ({"MOCO.ENCODER.MLP": False}, r"no encoder_q\.fc\.weight, .* compare MOCO\.ENCODER"),
        ({"MOCO.ENCODER.DIM": 8}, r"encoder_q\.fc\.2\.weight has .* change MOCO\.ENCODER back"),
        ({"MOCO.PRETEXT": "supervised"}, r"no conv\.weight"),
    ],
    ids=["queue", "head", "dim", "pretext"],
)
def test_resuming_with_other_settings_names_the_key(small_network, checkpointer, changed, message):
    checkpointer().save("checkpoint.pth.tar", iteration=3, epoch=1)
    with pytest.raises(UserError) as caught:
        resumed(checkpointer(changed))
    assert re.search(message, str(caught.value)), caught.value


def test_settings_that_changed_stay_in_the_checkpoint_and_reach_the_converted_weights(
    small_network, checkpointer, caplog
):
    checkpointer().save("checkpoint.pth.tar", iteration=3, epoch=1)
    longer = {"MOCO.EPOCHS": 7, "SOLVER.BASE_LR": 0.5, "DATALOADER.NUM_WORKERS": 1}
    second = checkpointer(longer)
    resumed(second)
    assert "resuming with MOCO.EPOCHS 7, which was 2" in caplog.text
    assert "NUM_WORKERS" not in caplog.text
    second.save("checkpoint.pth.tar", iteration=6, epoch=2)
    third = checkpointer(longer)
    resumed(third)
    path = third.save("checkpoint.pth.tar", iteration=9, epoch=3)
    changes = describe_pretraining(torch.load(path, weights_only=True))["changes"]
    before = checkpointer().cfg.SOLVER.BASE_LR
    assert changes == [
        {"iteration": 3, "key": "MOCO.EPOCHS", "before": "2", "after": "7"},
        {"iteration": 3, "key": "SOLVER.BASE_LR", "before": str(before), "after": "0.5"},
    ]


def test_other_training_images_stay_in_the_checkpoint(
    small_network, make_config, images, tmp_path, caplog
):
    """Moved data are the same; an image more or another name is not."""
    moved = tmp_path / "moved"
    shutil.copytree(images, moved)

    def run(resume: bool = True) -> Pretrainer:
        # The key stays, as for a folder whose content was replaced.
        trainer = Pretrainer(make_config({"DATASETS.TRAIN": (str(moved),)}))
        trainer.resume_or_start(resume=resume)
        return trainer

    first = Pretrainer(make_config())
    first.checkpointer.save("checkpoint_0000003.pth.tar", iteration=3, epoch=1)
    with caplog.at_level(logging.WARNING):
        assert [change.key for change in run().checkpointer.changes] == ["DATASETS.TRAIN"]
        assert "the training data" not in caplog.text
        (moved / "dark" / "0.png").rename(moved / "dark" / "another.png")
        shutil.copy(moved / "dark" / "1.png", moved / "light" / "new.png")
        second = run()
    assert "resuming with the training data 25 images, " in caplog.text
    assert ", which was 24 images, " in caplog.text
    path = second.checkpointer.save("checkpoint_0000006.pth.tar", iteration=6, epoch=2)
    changes = describe_pretraining(torch.load(path, weights_only=True))["changes"]
    assert [(c["iteration"], c["key"]) for c in changes][1:] == [(3, "the training data")]
    assert len(run().checkpointer.changes) == 2


def test_a_supervised_run_is_not_resumed_with_labels_of_other_classes(
    small_network, make_config, images, tmp_path
):
    data = tmp_path / "data"
    shutil.copytree(images, data)
    supervised = {"DATASETS.TRAIN": (str(data),), "MOCO.PRETEXT": "supervised"}
    first = Pretrainer(make_config(supervised))
    path = first.checkpointer.save("checkpoint_0000003.pth.tar", iteration=3, epoch=1)
    (data / "dark").rename(data / "night")
    with pytest.raises(UserError, match=r"\(class 0 is dark\).* 2 classes \(class 0 is light"):
        Pretrainer(make_config(supervised)).resume_or_start(resume=True)
    content = torch.load(path, weights_only=True)
    del content["moco_d2"]["data"]  # of an earlier version
    torch.save(content, path)
    trainer = Pretrainer(make_config(supervised))
    trainer.resume_or_start(resume=True)
    assert trainer.start_iter == 3


def test_resuming_a_deeper_network_is_refused_and_not_cut_short(checkpointer):
    """Everything a ResNet-18 has is in a ResNet-34 too, under the same names and shapes."""
    deeper = official_state_dict(checkpointer({"MOCO.ENCODER.ARCH": "resnet34"}).model)
    with pytest.raises(UserError, match=r"has encoder_q\.layer1\.2\.\S+, .* compare MOCO\.ENCODER"):
        load_official_state_dict(checkpointer().model, deeper)


def official_file(ours: PretrainCheckpointer, path, epoch: int) -> dict:
    """What main_moco.py saves after `epoch` epochs: its optimizer has the keys' parameters too."""
    loss = sum(p.square().sum() for p in ours.model.parameters())
    loss.backward()
    ours.optimizer.step()
    everything = list(ours.model.parameters())
    optimizer = torch.optim.SGD(everything, lr=1, momentum=0.9)
    for i, p in enumerate(everything):
        if p.requires_grad:
            optimizer.state[p]["momentum_buffer"] = torch.full_like(p, float(i))
    content = {
        "epoch": epoch,
        "arch": "resnet18",
        "state_dict": official_state_dict(ours.model),
        "optimizer": optimizer.state_dict(),
    }
    path.parent.mkdir(exist_ok=True)
    torch.save(content, path)
    return content


@pytest.mark.parametrize("named_by", ["last_checkpoint", "MODEL.WEIGHTS"])
def test_an_official_file_is_continued_at_its_epoch(
    small_network, checkpointer, tmp_path, named_by, caplog
):
    path = tmp_path / "out" / "checkpoint_0004.pth.tar"
    content = official_file(checkpointer(), path, epoch=5)
    other = checkpointer({"MODEL.WEIGHTS": path} if named_by == "MODEL.WEIGHTS" else {})
    if named_by == "last_checkpoint":
        (tmp_path / "out" / "last_checkpoint").write_text(path.name)
    assert resumed(other) == 5 * 3
    assert "beginning of its epoch" in caplog.text and "newly seeded" in caplog.text
    for name, tensor in official_state_dict(other.model).items():
        if "encoder_k" not in name:  # see test_official_code.py
            assert torch.equal(tensor, content["state_dict"][name]), name
    momentum = [state["momentum_buffer"] for state in other.optimizer.state.values()]
    assert len(momentum) == len(list(other.model.encoder_q.parameters()))
    for i, buffer in enumerate(momentum):
        assert (buffer == i).all()


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_taken(
    small_network, checkpointer, tmp_path, caplog
):
    ours = checkpointer({"MOCO.CHECKPOINT.KEEP_LAST": 0})
    for iteration in (3, 6, 9):
        ours.save(f"checkpoint_{iteration:07d}.pth.tar", iteration=iteration, epoch=1)
    newest = tmp_path / "out" / "checkpoint_0000009.pth.tar"
    newest.write_bytes(newest.read_bytes()[:5000])
    assert resumed(checkpointer()) == 6
    assert str(newest) in caplog.text
    assert "continuing from the newest intact one" in caplog.text
    for path in (tmp_path / "out").glob("checkpoint_*"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"checkpoint_0000009\.pth\.tar is empty"):
        resumed(checkpointer())


def test_a_checkpoint_that_was_written_and_not_yet_named_is_continued(
    small_network, checkpointer, tmp_path
):
    ours = checkpointer()
    first = ours.save("checkpoint_0000003.pth.tar", iteration=3, epoch=1)
    second = ours.save("checkpoint_0000006.pth.tar", iteration=6, epoch=1)
    pointer = tmp_path / "out" / "last_checkpoint"
    pointer.write_text(first.name)
    assert resumed(checkpointer()) == 3  # named by hand, later
    os.utime(pointer, ns=(second.stat().st_mtime_ns - 10**6,) * 2)
    assert resumed(checkpointer()) == 6
    assert pointer.read_text() == second.name


def test_the_last_n_and_every_mth_checkpoint_are_kept(small_network, checkpointer, tmp_path):
    ours = checkpointer({"MOCO.CHECKPOINT.KEEP_LAST": 2, "MOCO.CHECKPOINT.KEEP_EVERY": 2})
    for iteration in range(3, 22, 3):
        ours.save(f"checkpoint_{iteration:07d}.pth.tar", iteration=iteration, epoch=1)
    kept = [int(path.name[11:18]) for path in sorted((tmp_path / "out").glob("checkpoint_*"))]
    assert kept == [6, 12, 18, 21]
    ours.save("checkpoint_final.pth.tar", iteration=24, epoch=8)
    assert len(list((tmp_path / "out").glob("checkpoint_*"))) == 5


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("queue", {"MOCO.DICTIONARY.SIZE": 24}),
        ("head", {"MOCO.ENCODER.MLP": False}),
    ],
)
def test_a_part_can_begin_anew(small_network, checkpointer, part, changed):
    ours = checkpointer()
    sum(p.square().sum() for p in ours.model.parameters()).backward()
    ours.optimizer.step()
    ours.save("checkpoint.pth.tar", iteration=3, epoch=1)
    with pytest.raises(UserError, match=rf"REINITIALISE {part}"):
        resumed(checkpointer(changed))
    other = checkpointer({**changed, "MOCO.CHECKPOINT.REINITIALISE": (part,)})
    fresh = {name: tensor.clone() for name, tensor in other.model.state_dict().items()}
    assert resumed(other) == 3
    anew = "dictionary." if part == "queue" else (".fc.")
    for name, tensor in other.model.state_dict().items():
        wanted = fresh[name] if anew in name else ours.model.state_dict()[name]
        assert torch.equal(tensor, wanted), name
    names = [n for n, p in other.model.named_parameters() if p.requires_grad]
    with_momentum = {names[i] for i in other.optimizer.state_dict()["state"]}
    assert with_momentum == {n for n in names if part == "queue" or ".fc." not in n}


def test_another_batch_size_is_refused(small_network, checkpointer):
    checkpointer().save("checkpoint.pth.tar", iteration=3, epoch=1)
    with pytest.raises(UserError, match=r"SOLVER\.IMS_PER_BATCH is 4, .* with 8: set it back"):
        resumed(checkpointer({"SOLVER.IMS_PER_BATCH": 4}))


FULL_DISK = """
import resource, sys, torch
from moco_d2.cli import run_command
from moco_d2.files import atomic_write
from moco_d2.pretrain.checkpointing import PretrainCheckpointer
from moco_d2.config.load import load_config
cfg = load_config("moco_v2_R50_200ep.yaml", ["OUTPUT_DIR", sys.argv[1]])
model = torch.nn.Linear(300, 300)
optimizer = torch.optim.SGD(model.parameters(), lr=1)
ours = PretrainCheckpointer(cfg, model, optimizer, torch.amp.GradScaler(enabled=False))
ours.save("checkpoint_0000001.pth.tar", iteration=1, epoch=0)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
run_command(lambda: ours.save("checkpoint_0000002.pth.tar", iteration=2, epoch=0))
"""


def test_a_full_disk_is_one_sentence_and_the_checkpoint_before_stays(tmp_path):
    result = run_python("-c", FULL_DISK, tmp_path)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: cannot write {tmp_path}/checkpoint_0000002.pth.tar (")
    assert "free some space and continue with --resume" in line
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint_0000001.pth.tar",
        "last_checkpoint",
    }
    assert (tmp_path / "last_checkpoint").read_text() == "checkpoint_0000001.pth.tar"


def test_weights_without_an_optimizer_are_refused(small_network, checkpointer, tmp_path):
    ours = checkpointer()
    (tmp_path / "out").mkdir()
    torch.save({"model": {}}, tmp_path / "out" / "weights.pth")
    (tmp_path / "out" / "last_checkpoint").write_text("weights.pth")
    with pytest.raises(UserError, match="not a training checkpoint"):
        resumed(ours)
