import math
import os
import shutil

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.toy_data import SIDE, make_class_folders
from torchvision.transforms.functional import to_tensor

from moco_d2.errors import UserError
from moco_d2.pretrain.augmentation.views import IMAGENET_MEAN, IMAGENET_STD
from moco_d2.pretrain.data.sources import list_images
from moco_d2.pretrain.model.encoder import build_encoder
from moco_d2.pretrain.probe.knn import (
    KNNMonitor,
    extract_features,
    knn_accuracy,
    nearest_neighbors,
)


def random_features(*sizes: int, dim: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [F.normalize(torch.randn(n, dim, generator=generator), dim=1) for n in sizes]


@pytest.mark.parametrize(("neighbors", "temperature"), [(1, 0.1), (5, 0.1), (5, 1.0), (500, 0.5)])
def test_knn_is_the_weighted_vote_of_the_nearest(neighbors, temperature):
    train, test = random_features(30, 20)
    generator = torch.Generator().manual_seed(1)
    train_labels, test_labels = (torch.randint(4, (n,), generator=generator) for n in (30, 20))
    right = 0
    for feature, label in zip(test.tolist(), test_labels.tolist(), strict=True):
        near = sorted(
            (
                (sum(a * b for a, b in zip(feature, other, strict=True)), neighbor)
                for other, neighbor in zip(train.tolist(), train_labels.tolist(), strict=True)
            ),
            reverse=True,
        )[:neighbors]
        votes = dict.fromkeys(range(4), 0.0)
        for similarity, neighbor in near:
            votes[neighbor] += math.exp(similarity / temperature)
        right += max(votes, key=votes.get) == label
    found = knn_accuracy(
        (train, train_labels),
        (test, test_labels),
        neighbors=neighbors,
        temperature=temperature,
    )
    assert found == pytest.approx(right / 20)


@pytest.mark.parametrize("chunks", [(1, 1), (4, 7), (3, 50), (100, 100)])
@pytest.mark.parametrize("neighbors", [1, 9, 60])
def test_neighbors_do_not_depend_on_the_pieces(chunks, neighbors):
    train, test = random_features(50, 11, dim=8)
    similarity, index = nearest_neighbors(train, test, neighbors=neighbors, chunks=chunks)
    wanted = (test @ train.T).sort(dim=1, descending=True)
    kept = min(neighbors, 50)
    torch.testing.assert_close(similarity, wanted.values[:, :kept])
    assert torch.equal(index, wanted.indices[:, :kept])


def test_similarities_never_exceed_the_pieces(monkeypatch):
    """More pairs than memory: the largest matrix is of one piece's size."""
    train, test = random_features(50, 11, dim=8)
    sizes = []
    topk = torch.Tensor.topk
    monkeypatch.setattr(
        torch.Tensor, "topk", lambda x, *a, **k: sizes.append(x.numel()) or topk(x, *a, **k)
    )
    nearest_neighbors(train, test, neighbors=2, chunks=(4, 7))
    assert max(sizes) == 4 * 7


def test_features_are_the_pooled_output_of_the_evaluated_backbone(images):
    network = build_encoder("resnet18", dim=8, mlp=True).train()
    head, statistics = network.fc, network.bn1.running_mean.clone()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    features, labels = extract_features(network, list_images(images), size=32, batch_size=7)
    assert features.shape == (24, 512) and labels.tolist() == [0] * 12 + [1] * 12
    torch.testing.assert_close(features.norm(dim=1), torch.ones(24))
    # One batch or many, here or in a worker, the features are the same: BatchNorm evaluates.
    whole, _ = extract_features(
        network, list_images(images), size=32, num_workers=1, store_on="cpu"
    )
    torch.testing.assert_close(features, whole)
    # And the network is left as it was, with the generator that training draws from.
    assert network.training and network.fc is head
    assert torch.equal(network.bn1.running_mean, statistics)
    assert torch.equal(torch.get_rng_state(), before)


def test_protocol_of_the_demo_is_the_heads_output_of_untouched_images(images, held_out):
    """The CIFAR-10 demo gives its network, with its head, the images as they are."""
    network = build_encoder("resnet18", dim=8).train()
    monitor = KNNMonitor(str(images), str(held_out), size=SIDE, protocol="outputs")
    (features, _), _ = monitor.features(network)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = []
    for path in monitor.train.paths:
        with Image.open(path) as image:
            assert image.size == (SIDE, SIDE)
            pixels.append((to_tensor(image.convert("RGB")) - mean) / std)
    with torch.no_grad():
        expected = F.normalize(network.eval()(torch.stack(pixels)), dim=1)
    assert features.shape == (24, 8)
    torch.testing.assert_close(features, expected)
    backbone = KNNMonitor(str(images), str(held_out), size=32)
    assert backbone.features(network)[0][0].shape == (24, 512)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_image_is_named_in_one_sentence(tmp_path, num_workers):
    folder = make_class_folders(tmp_path / "images", per_class=2)
    (folder / "dark" / "1.png").write_bytes(b"no image")
    network = build_encoder("resnet18", dim=8)
    with pytest.raises(UserError, match=r"^image .*1\.png cannot be read") as raised:
        extract_features(network, list_images(folder), size=32, num_workers=num_workers)
    assert "\n" not in str(raised.value)
    assert isinstance(network.fc, torch.nn.Linear)


def test_monitor_refuses_images_that_are_searched_in_and_tested(images, tmp_path):
    (tmp_path / "link").symlink_to(images)
    for test in (images, tmp_path / "link"):
        with pytest.raises(UserError, match=r"KNN\.TEST .* hold the same images.*held-out"):
            KNNMonitor(str(images), str(test), size=32)
    held_out = make_class_folders(tmp_path / "held_out", per_class=1, seed=1)
    monitor = KNNMonitor(str(images), str(held_out), size=32)
    # And it tests on the one, in the other.
    assert (len(monitor.train), len(monitor.test)) == (24, 2)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_monitor_refuses_test_images_that_are_links_to_others(images, held_out, tmp_path, link):
    test = make_class_folders(tmp_path / "test", per_class=2, seed=2)
    (test / "dark" / "1.png").unlink()
    link(images / "dark" / "3.png", test / "dark" / "1.png")
    message = r"^1 of the 4 images of MOCO\.KNN\.TEST are also in {}, first .*/test/dark/1\.png"
    with pytest.raises(UserError, match=message.format(r"MOCO\.KNN\.TRAIN .*")):
        KNNMonitor(str(images), str(test), size=32)
    monitor = KNNMonitor(str(held_out), str(test), size=32)
    monitor.check_held_out(monitor.train, "these")
    with pytest.raises(UserError, match=message.format("DATASETS.TRAIN x")):
        monitor.check_held_out(list_images(images), "DATASETS.TRAIN x")


def test_monitor_refuses_one_class_of_which_all_would_be_right(tmp_path):
    for name in ("train", "val"):
        make_class_folders(tmp_path / f"only_{name}" / "images", per_class=1, seed=ord(name[1]))
    with pytest.raises(UserError, match=r"KNN\.TRAIN .*only_train has one class, images, so every"):
        KNNMonitor(str(tmp_path / "only_train"), str(tmp_path / "only_val"), size=32)


def test_monitor_finds_the_nearest_image(images, tmp_path):
    copies = shutil.copytree(images, tmp_path / "copies")  # other files, so they are not noticed
    monitor = KNNMonitor(str(images), str(copies), size=32, neighbors=1)
    assert monitor(build_encoder("resnet18", dim=8)) == 1.0


def test_monitor_refuses_folders_it_cannot_compare(images, tmp_path):
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "flat" / "x.png")
    with pytest.raises(UserError, match=r"MOCO\.KNN\.TEST .*flat has images without labels"):
        KNNMonitor(str(images), str(tmp_path / "flat"), size=32)
    other = make_class_folders(tmp_path / "other", per_class=1)
    (other / "light").rename(other / "bright")
    with pytest.raises(UserError, match=r"different class folders \(bright, light\)"):
        KNNMonitor(str(images), str(other), size=32)
    for folders in ((str(images), ""), ("", str(images))):
        with pytest.raises(UserError, match=r"MOCO\.KNN\.TRAIN and MOCO\.KNN\.TEST"):
            KNNMonitor(*folders, size=32)
