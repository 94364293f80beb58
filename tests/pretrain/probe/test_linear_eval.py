"""tools/linear_eval.py: the protocols against plain loops, the result file, and the refusals."""

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.engine import HookBase
from PIL import Image
from support.commands import run_processes, run_tool
from support.hostile_states import drop, put
from support.paths import TOOLS
from support.run_loggers import restored_loggers
from support.toy_data import make_class_folders
from torch import nn

from moco_d2.benchmark.records.pretext_records import read_pretext_records
from moco_d2.checkpoint.backbone import load_backbone
from moco_d2.checkpoint.mapping import Architecture, build_torchvision
from moco_d2.cli import run_command
from moco_d2.config.plain import to_plain
from moco_d2.errors import UserError
from moco_d2.pretrain.augmentation.views import build_evaluation_transform
from moco_d2.pretrain.pretrainer import Pretrainer
from moco_d2.pretrain.probe import cached_features
from moco_d2.pretrain.probe.cached_features import FAST_LRS, hold_out
from moco_d2.pretrain.probe.classifier_training import (
    CHECKPOINT,
    LINEAR,
    ClassifierTrainer,
    Recipe,
    backbone_sha256,
    evaluate,
    finetune_recipe,
    new_classifier,
    topk_correct,
)
from moco_d2.pretrain.probe.labeled import (
    Epochs,
    LabeledImages,
    build_training_transform,
    evaluation_loader,
    list_labeled,
)
from moco_d2.pretrain.probe.main import evaluate_checkpoint
from moco_d2.records.pretext_schema import RESULT_FILE, LinearEvalRecord

TOOL = TOOLS / "linear_eval.py"
SIZE, BATCH, SEED = 32, 8, 3
DEVICE = torch.device("cpu")
SLIM = Architecture(18, width_factor=1 / 8)  # a checkpoint of a megabyte


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """train/ of 2 x 11 images, so that the last batch of 8 is partial, and val/ of 2 x 5."""
    root = tmp_path_factory.mktemp("labeled")
    make_class_folders(root / "train", 11)
    make_class_folders(root / "val", 5, seed=1)
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A slim ResNet-18's file, of torchvision's names, whose BatchNorm has seen data."""
    torch.manual_seed(0)
    network = build_torchvision(SLIM)
    network.train()(torch.randn(16, 3, SIZE, SIZE))
    path = tmp_path_factory.mktemp("checkpoint") / "resnet18.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def loggers():
    with restored_loggers():
        yield


@pytest.fixture
def parse(monkeypatch):
    """Function: words of the command line -> its flags."""
    spec = importlib.util.spec_from_file_location("linear_eval_tool", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def build(*words):
        monkeypatch.setattr(sys, "argv", ["linear_eval.py", *map(str, words)])
        return tool.parse_args()

    return build


@pytest.fixture
def probe_run(parse, data, tmp_path):
    """Function: checkpoint and further words -> result.json of a small run into tmp_path/out."""

    def call(source, *words) -> dict:
        small = ("--size", SIZE, "--batch-size", BATCH, "--workers", 0, "--device", "cpu")
        out = ("--data", data, "--output", tmp_path / "out")
        evaluate_checkpoint(parse(source, *out, *small, *words))
        result = json.loads((tmp_path / "out" / RESULT_FILE).read_text())
        msgspec.convert(result, LinearEvalRecord)
        return result

    return call


def make_trainer(data, folder, recipe):
    torch.manual_seed(1)
    network = build_torchvision(SLIM)
    network.train()(torch.randn(16, 3, SIZE, SIZE))
    network.fc = new_classifier(SLIM.num_features, 2)
    train, val = list_labeled(data)
    return ClassifierTrainer(
        network,
        LabeledImages(train, build_training_transform(SIZE), seed=SEED),
        evaluation_loader(val, build_evaluation_transform(SIZE), batch_size=BATCH, num_workers=0),
        recipe=recipe,
        output=folder,
        identity={"seed": SEED},
        num_workers=0,
        seed=SEED,
        device=DEVICE,
    )


# x0.1 after 3 and 4 of 5 epochs, as after 60 and 80 of 100.
SHORT_LINEAR = Recipe(30.0, 0.0, (0.6, 0.8), train_backbone=False, epochs=5, batch_size=BATCH)
SHORT_FINETUNE = Recipe(0.1, 1e-4, (0.7, 0.9), train_backbone=True, epochs=3, batch_size=BATCH)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_validation_image_that_is_a_link_to_a_training_image_is_refused(data, tmp_path, link):
    root = Path(shutil.copytree(data, tmp_path / "data"))
    list_labeled(root)
    (image,) = (root / "val" / "dark").glob("0.png")
    image.unlink()
    link(root / "train" / "light" / "0.png", image)
    with pytest.raises(UserError, match=r"^1 of the 10 images in .*/val are also in .*/val/dark/0"):
        list_labeled(root)


def test_one_class_of_which_every_image_would_be_right_is_refused(data, tmp_path):
    root = Path(shutil.copytree(data, tmp_path / "data"))
    for split in ("train", "val"):
        shutil.rmtree(root / split / "light")
    with pytest.raises(UserError, match="has one class, dark, so every image would be right"):
        list_labeled(root)


@pytest.mark.parametrize(
    ("recipe", "dropped_after"), [(SHORT_LINEAR, (3, 4)), (SHORT_FINETUNE, (2, 3))]
)
def test_training_is_the_plain_loop(data, tmp_path, recipe, dropped_after):
    trainer = make_trainer(data, tmp_path, recipe)
    reference = build_torchvision(SLIM)
    reference.fc = nn.Linear(SLIM.num_features, 2)
    reference.load_state_dict(trainer.network.state_dict())
    trainer.train()

    reference.train(recipe.train_backbone)
    trained = [p for n, p in reference.named_parameters() if recipe.train_backbone or "fc" in n]
    lr = recipe.base_lr * BATCH / 256
    optimizer = torch.optim.SGD(trained, lr, momentum=0.9, weight_decay=recipe.weight_decay)
    samples, losses = trainer.train_images, []
    order = Epochs(22, BATCH, recipe.epochs, seed=SEED, rank=0, world_size=1)
    for step, keys in enumerate(order):
        optimizer.param_groups[0]["lr"] = lr * 0.1 ** sum(step // 3 >= e for e in dropped_after)
        images, labels = zip(*(samples[key] for key in keys), strict=True)
        loss = F.cross_entropy(reference(torch.stack(images)), torch.tensor(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert len(losses) == 3 * recipe.epochs
    found = [value for value, _ in trainer.storage.history("total_loss").values()]
    np.testing.assert_allclose(found, losses, rtol=1e-6)
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(trainer.network.state_dict()[name], tensor, rtol=1e-6, atol=1e-6)


def test_recipes_are_the_papers():
    assert (LINEAR.base_lr, LINEAR.weight_decay, LINEAR.momentum, LINEAR.epochs) == (
        30,
        0,
        0.9,
        100,
    )
    assert LINEAR.lr == 30  # of batches of 256; the rate goes with the batch
    assert dataclasses.replace(LINEAR, batch_size=64).lr == pytest.approx(7.5)
    factor = LINEAR.schedule(10)
    assert [factor(e / 100) for e in (0, 59.9, 60, 79.9, 80, 99)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    factor = finetune_recipe("inaturalist", scratch=False).schedule(10)
    assert [factor(e / 100) for e in (69, 70, 89, 90)] == pytest.approx([1, 0.1, 0.1, 0.01])
    rates = {
        (task, scratch): finetune_recipe(task, scratch=scratch).base_lr
        for task in ("imagenet", "inaturalist")
        for scratch in (False, True)
    }
    assert list(rates.values()) == [0.03, 0.1, 0.025, 0.1]
    crop = build_training_transform(224).transforms[0]
    assert (list(crop.size), tuple(crop.scale)) == ([224, 224], (0.08, 1.0))


def test_classifier_starts_as_the_official_one():
    layer = new_classifier(2048, 1000)
    assert layer.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert not layer.bias.any()


def test_linear_leaves_the_backbone_bit_identical(probe_run, checkpoint, tmp_path, capsys):
    result = probe_run(checkpoint, "--epochs", 2)
    saved = torch.load(tmp_path / "out" / "checkpoint.pth.tar", weights_only=True)["state_dict"]
    original = torch.load(checkpoint, weights_only=True)
    for name, tensor in original.items():
        if not name.startswith("fc.") and "num_batches" not in name:
            assert torch.equal(saved[name], tensor), name
    assert saved["fc.weight"].shape == (2, SLIM.num_features)
    assert result["effective_lr"] == 30 * BATCH / 256
    assert "learning rate 0.9375: 30 for batches of 256, scaled to batches of 8" in (
        capsys.readouterr().out
    )
    assert result["backbone_images"] == 2 * (22 + 10)
    assert result["checkpoint"]["family"] == "torchvision"


def test_a_changed_backbone_is_an_error(probe_run, checkpoint, monkeypatch):
    def train_with_batch_norm(self, *args):
        self.network.bn1.running_mean += 1e-6

    monkeypatch.setattr(ClassifierTrainer, "train", train_with_batch_norm)
    with pytest.raises(RuntimeError, match="backbone changed"):
        probe_run(checkpoint, "--epochs", 1)


def test_fingerprint_sees_one_bit_of_a_buffer_and_not_the_classifier():
    network = build_torchvision(SLIM)
    before = backbone_sha256(network)
    network.fc = nn.Linear(SLIM.num_features, 2)
    assert backbone_sha256(network) == before
    network.bn1.running_var[0] = torch.nextafter(network.bn1.running_var[0], torch.tensor(2.0))
    assert backbone_sha256(network) != before


@pytest.fixture(scope="module")
def colored(tmp_path_factory):
    """Six classes of noisy images, each of a color: more than five, and linearly separable."""
    root = tmp_path_factory.mktemp("colored")
    rng = np.random.default_rng(0)
    colors = [
        (200, 60, 60),
        (60, 200, 60),
        (60, 60, 200),
        (200, 200, 60),
        (60, 200, 200),
        (20,) * 3,
    ]
    for split, count in (("train", 12), ("val", 6)):
        for label, color in enumerate(colors):
            (root / split / str(label)).mkdir(parents=True)
            for i in range(count):
                pixels = rng.normal(color, 30, (40, 40, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / str(label) / f"{i}.png")
    return root


def test_fast_is_close_to_the_full_protocol_and_twenty_times_cheaper(
    probe_run, checkpoint, colored, tmp_path
):
    words = ("--data", colored, "--batch-size", 24)
    full = probe_run(checkpoint, *words, "--lr", 3, "--epochs", 15)
    (tmp_path / "out" / RESULT_FILE).unlink()
    fast = probe_run(checkpoint, *words, "--fast", "--crops", 2)
    assert full["accuracy"]["top1"] > 80
    assert abs(fast["accuracy"]["top1"] - full["accuracy"]["top1"]) <= 10
    assert fast["accuracy"]["top5"] >= fast["accuracy"]["top1"]
    per_epoch = full["backbone_images"] / 15
    assert 100 * per_epoch / fast["backbone_images"] >= 20
    tried = {entry["base_lr"]: entry["held_out_top1"] for entry in fast["learning_rates"]}
    assert tuple(tried) == FAST_LRS
    assert tried[fast["settings"]["base_lr"]] == max(tried.values())


def test_cached_features_are_used_again_and_only_for_the_same_backbone(
    probe_run, checkpoint, monkeypatch
):
    first = probe_run(checkpoint, "--protocol", "knn")
    calls = []
    monkeypatch.setattr(nn.Conv2d, "forward", lambda *args: calls.append(args))
    assert probe_run(checkpoint, "--protocol", "knn", "--resume")["accuracy"] == first["accuracy"]
    assert not calls
    with pytest.raises(UserError, match="holds a result: continue its run with --resume, or"):
        probe_run(checkpoint, "--protocol", "knn")
    monkeypatch.undo()


@pytest.mark.parametrize("split", ["train", "val"])
def test_cached_features_of_a_changed_image_are_not_used(
    probe_run, checkpoint, data, tmp_path, monkeypatch, split
):
    changed = tmp_path / "data"
    shutil.copytree(data, changed)
    words = ("--data", changed, "--protocol", "knn")
    probe_run(checkpoint, *words)
    image = changed / split / "dark" / "0.png"
    status = image.stat()
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # of the same size
    calls = []
    forward = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda *args: calls.append(args) or forward(*args))
    probe_run(checkpoint, *words, "--resume")
    assert calls


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("damage", ["empty", "link"])
def test_an_image_that_is_not_there_is_known_before_training(
    probe_run, checkpoint, data, tmp_path, split, damage
):
    damaged = tmp_path / "data"
    shutil.copytree(data, damaged)
    image = damaged / split / "dark" / "0.png"
    image.unlink()
    image.symlink_to("absent") if damage == "link" else image.write_bytes(b"")
    with pytest.raises(UserError, match=rf"1 images cannot be read, first {image} \("):
        probe_run(checkpoint, "--data", damaged)
    assert not (tmp_path / "out").exists()


def test_held_out_images_are_a_tenth_of_each_class_and_never_all():
    labels = torch.tensor([0] * 30 + [1] * 4 + [2])
    kept, held_out = hold_out(labels, seed=0)
    assert labels[held_out].bincount(minlength=3).tolist() == [3, 1, 0]
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(35))


def test_topk_with_fewer_classes_than_k():
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 3.0, 1.0]])
    assert topk_correct(logits, torch.tensor([0, 0, 1])).tolist() == [2, 3]
    six = torch.arange(6.0).expand(2, 6)
    assert topk_correct(six, torch.tensor([0, 1])).tolist() == [0, 1]


class _Stop(HookBase):
    def after_step(self) -> None:
        if self.trainer.iter + 1 == 3:  # the end of the first epoch
            raise KeyboardInterrupt


@pytest.mark.parametrize("recipe", [SHORT_LINEAR, SHORT_FINETUNE])
def test_resumed_run_equals_uninterrupted_one(data, tmp_path, recipe):
    whole = make_trainer(data, tmp_path / "whole", recipe)
    whole.train()
    cut = make_trainer(data, tmp_path / "cut", recipe)
    cut.register_hooks([_Stop()])
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    resumed = make_trainer(data, tmp_path / "cut", recipe)
    resumed.resume()
    assert resumed.start_iter == 3
    resumed.train()
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], tensor), name
    assert resumed.accuracy == whole.accuracy


def test_the_result_says_how_the_pretraining_was_made(probe_run, make_config, tmp_path):
    cfg = make_config(
        {"MOCO.MOMENTUM": 0.9, "SEED": 5, "MOCO.LR_STEPS": ()}, config="moco_v1_R50_200ep.yaml"
    )
    cfg.MOCO.ENCODER.WIDTH_FACTOR = SLIM.width_factor
    trainer = Pretrainer(cfg)
    trainer.resume_or_start(resume=False)
    trainer.train()
    result = probe_run(tmp_path / "out" / "checkpoint_final.pth.tar", "--protocol", "knn")
    made = result["pretraining"]
    assert (made["iterations"], made["images"], made["processes"]) == (6, 24, 1)
    assert made["config"]["SEED"] == 5 and made["config"]["MOCO"]["MOMENTUM"] == 0.9
    assert made["config"]["MOCO"]["KNN"] == to_plain(trainer.cfg.MOCO.KNN)
    assert made["seconds_per_iteration"] > 0 and made["peak_memory_gib"] is None
    assert made["hardware"]["device"] == "cpu"
    assert torch.__version__.startswith(made["environment"]["torch"])
    assert str(tmp_path) not in json.dumps(result)  # results travel, folders do not
    (record,) = read_pretext_records([tmp_path / "out"])
    assert (record.seed, record.images, record.top1) == (5, 24, result["accuracy"]["top1"])


def test_an_entry_that_is_not_ours_says_nothing(probe_run, checkpoint, tmp_path):
    content = {"state_dict": torch.load(checkpoint, weights_only=True)}
    config = {"MOCO": {}, "SOLVER": {}, "SEED": 1}
    entries = [
        {"config": 3},
        {"config": {}, "iteration": "x"},
        {"config": {"MOCO": {}}, "iteration": 1},
        {"config": config, "iteration": -1},
        {"config": config, "iteration": 1, "scaling": {"num_images": "many"}},
        [1],
        {},
    ]
    for i, entry in enumerate(entries):
        path = tmp_path / f"{i}.pth"
        torch.save({**content, "moco_d2": entry}, path)
        assert load_backbone(path)[2].pretraining is None


def test_validation_images_elsewhere(probe_run, checkpoint, data, tmp_path):
    beside = probe_run(checkpoint, "--protocol", "knn")
    (tmp_path / "out" / RESULT_FILE).unlink()
    elsewhere = probe_run(
        checkpoint, "--protocol", "knn", "--data", data / "train", "--val", data / "val"
    )
    assert elsewhere["accuracy"] == beside["accuracy"]
    assert elsewhere["data"] == beside["data"]  # its name too: of the folder that holds both
    with pytest.raises(UserError, match="folder .*absent.* does not exist"):
        probe_run(checkpoint, "--data", data / "train", "--val", tmp_path / "absent", "--resume")


def test_finetuning_trains_batch_norm_and_takes_random_weights(probe_run):
    result = probe_run("random", "--arch", "resnet18", "--protocol", "finetune", "--epochs", 1)
    assert result["settings"]["base_lr"] == 0.1
    assert result["checkpoint"]["sha256"] is None


def test_accuracy_counts_every_image_once(data):
    _, val = list_labeled(data)
    transform = build_evaluation_transform(SIZE)
    loader = evaluation_loader(val, transform, batch_size=4, num_workers=0)

    class AlwaysFirst(nn.Module):
        def forward(self, x):
            return torch.tensor([1.0, 0.0]).expand(len(x), 2)

    assert evaluate(AlwaysFirst(), loader, DEVICE) == {"top1": 50.0, "top5": 100.0}


def test_shares_of_two_processes_are_the_batch_of_one():
    def epoch(rank, world_size):
        order = Epochs(21, 8, 2, seed=SEED, rank=rank, world_size=world_size)
        return [[index for _, index in batch] for batch in order]

    first, second = epoch(0, 2), epoch(1, 2)
    assert [len(batch) for batch in first] == [len(batch) for batch in second] == [4, 4, 3] * 2
    for one, a, b in zip(epoch(0, 1), first, second, strict=True):
        assert set(one) <= {*a, *b}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "{empty}"], "folder .*train does not exist"),
        (["--data", "{differ}"], "have different class folders"),
        (["--data", "{same}"], "same/train and .*same/val hold the same images"),
        (["--batch-size", "0"], "--batch-size must be greater than 0, got 0"),
        (["--arch", "resnet18"], "--arch is only for the checkpoint 'random'"),
        (["--fast", "--protocol", "knn"], "--fast is only for --protocol linear"),
        (["--device", "abacus"], "'abacus' is unknown"),
        (["--data", ""], "--data is empty"),
        (["--val", " "], "--val is empty"),
        (["--output", ""], "--output is empty"),
    ],
)
def test_refusals_write_nothing(probe_run, data, checkpoint, tmp_path, capsys, words, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "differ").mkdir()
    (tmp_path / "differ" / "train").symlink_to(data / "train")
    (tmp_path / "differ" / "val" / "light").mkdir(parents=True)
    (tmp_path / "differ" / "val" / "light" / "0.png").symlink_to(data / "val" / "light" / "0.png")
    (tmp_path / "same").mkdir()
    for split in ("train", "val"):
        (tmp_path / "same" / split).symlink_to(data / "train")
    places = {name: tmp_path / name for name in ("empty", "differ", "same")}
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: probe_run(checkpoint, *(word.format(**places) for word in words)))
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error)
    assert sorted(tmp_path.rglob("*")) == before


def test_help_is_immediate_and_wrong_checkpoint_is_one_sentence(data, tmp_path):
    code = "import sys, runpy; sys.argv = ['x', '--help']\n"
    code += "try: runpy.run_path(%r, run_name='__main__')\n"
    code += "except SystemExit: print('torch' in sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", code % str(TOOL)], capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith("usage") and shown.stdout.endswith("False\n")
    wrong = tmp_path / "wrong.pth"
    torch.save({"weight": torch.zeros(3)}, wrong)
    done = run_tool(TOOL, wrong, "--data", data, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "no ResNet backbone" in done.stderr
    assert not (tmp_path / "out").exists()


def test_two_processes_train_as_one(probe_run, data, checkpoint, tmp_path):
    # 22 images are an even number, and a frozen backbone's features depend on no batch: the two
    # runs do the same arithmetic.
    single = probe_run(checkpoint, "--epochs", 2)
    words = [checkpoint, "--data", data, "--output", tmp_path / "two", "--size", SIZE]
    words += ["--batch-size", BATCH, "--workers", 0, "--device", "cpu", "--epochs", 2]
    run_processes(2, TOOL, *words)
    double = json.loads((tmp_path / "two" / RESULT_FILE).read_text())
    assert double["processes"] == 2
    assert double["backbone_sha256"] == single["backbone_sha256"]
    weights = [
        torch.load(tmp_path / name / "checkpoint.pth.tar", weights_only=True)["state_dict"]
        for name in ("out", "two")
    ]
    for name in ("fc.weight", "fc.bias"):
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "words", [(), ("--fast",), ("--protocol", "knn"), ("--protocol", "finetune")]
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_damaged_image_in_a_worker_is_one_sentence(data, checkpoint, tmp_path, words, split):
    shutil.copytree(data, tmp_path / "data")
    damaged = next((tmp_path / "data" / split).rglob("*.png"))
    damaged.write_bytes(b"no image")
    small = ("--size", SIZE, "--batch-size", BATCH, "--workers", 1, "--device", "cpu")
    more = ("--epochs", 1) if words != ("--protocol", "knn") else ()
    if "finetune" in words:
        more += ("--task", "inaturalist")
    command = [TOOL, checkpoint, "--data", tmp_path / "data", "--output", tmp_path / "out"]
    done = run_tool(*command, *small, *words, *more)
    assert done.returncode == 2
    assert f"error: image {damaged} cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.pop("train"),
        lambda content: content.update(train=5),
        lambda content: content.update(train=[1, 2]),
        lambda content: content.update(train=content["val"]),
        lambda content: content.update(key=torch.zeros(3)),
        lambda content: content["key"].update(crops=torch.zeros(3)),
        lambda content: content["train"][0].fill_(float("nan")),
        lambda content: content["train"].__setitem__(1, content["train"][1] + 1),
        lambda content: content["train"].__setitem__(1, content["train"][1].float()),
        lambda content: content["train"].__setitem__(0, content["train"][0][:, 0]),
    ],
)
def test_features_that_are_not_ours_are_made_anew(data, tmp_path, monkeypatch, damage):
    train, val = list_labeled(data)
    made = []

    def extract(*, images, crops):
        made.append(images)
        return torch.rand(len(images), crops, 4), torch.tensor(list(images.labels))

    monkeypatch.setattr(cached_features, "extract_crops", extract)
    file, key = tmp_path / "features.pth", {"seed": 1, "crops": 2}
    splits = {"train": {"images": train, "crops": 2}, "val": {"images": val, "crops": 1}}

    def features():
        return cached_features.cached_features(file, key, reuse=True, splits=splits)

    first = features()
    assert torch.equal(features()["train"][0], first["train"][0]) and len(made) == 2
    content = torch.load(file, weights_only=True)
    damage(content)
    torch.save(content, file)
    assert torch.isfinite(features()["train"][0]).all() and len(made) == 4
    features()
    assert len(made) == 4


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (put("moco_d2", value=[1]), "is not a checkpoint of this command"),
        (put("moco_d2", "identity", value=[1]), "is not a checkpoint of this command"),
        (put("moco_d2", "identity", "seed", value=torch.ones(2)), "cannot be continued"),
        (put("moco_d2", "iteration", value="x"), "iteration is 'x', not a whole number"),
        (put("moco_d2", "iteration", value=-1), "iteration is -1, not a whole number"),
        (put("moco_d2", "iteration", value=2**60), "iteration is 1152921504606846976, not"),
        (put("state_dict", value=None), "state_dict is None, not a dict of tensors"),
        (put("state_dict", "fc.bias", value="x"), "'fc.bias' is 'x', not a tensor"),
        (put("state_dict", "fc.bias", value=torch.ones(3)), r"has the shape \(3,\)"),
        (put("state_dict", "fc.bias", value=torch.full((2,), torch.nan)), "not finite"),
        (put("state_dict", "other", value=torch.ones(2)), "has 'other', which this network"),
        (drop("state_dict", "fc.bias"), "has no 'fc.bias', which this network has"),
        (put("optimizer", value=[]), "optimizer is a list, not a dict"),
        (put("optimizer", "state", value=[]), "optimizer.state is a list"),
        (put("optimizer", "state", "x", value={}), "a state of 'x', which is no parameter"),
        (put("optimizer", "state", 0, value=5), "state of 'parameter 0' is 5, not a dict"),
        (
            put("optimizer", "state", 0, "momentum_buffer", value=torch.ones(3)),
            r"momentum of parameter 0' has the shape \(3,\)",
        ),
        (put("optimizer", "param_groups", value=[]), "0 parameter groups instead of 1"),
        (put("optimizer", "param_groups", 0, "params", value=[0]), "other parameters than"),
        (put("optimizer", "param_groups", 0, "weight_decay", value="x"), "weight_decay is 'x'"),
        (
            put("optimizer", "param_groups", 0, "momentum", value=float("nan")),
            "momentum is nan",
        ),
        (put("optimizer", "param_groups", 0, "maximize", value=True), "maximize is True and"),
    ],
)
def test_a_checkpoint_that_holds_what_it_must_not(data, tmp_path, damage, message):
    trainer = make_trainer(data, tmp_path, SHORT_LINEAR)
    trainer.network.fc(torch.ones(1, SLIM.num_features)).sum().backward()
    trainer.optimizer.step()
    trainer.save(3)
    trainer.resume()
    content = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    damage(content)
    torch.save(content, tmp_path / CHECKPOINT)
    with pytest.raises(UserError, match=message) as caught:
        trainer.resume()
    assert str(caught.value).startswith(str(tmp_path / CHECKPOINT))
    assert "another --output" in str(caught.value)
