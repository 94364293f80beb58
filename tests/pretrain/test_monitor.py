import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from toy_data import make_class_folders

from moco_d2.errors import UserError
from moco_d2.pretrain.data import list_images
from moco_d2.pretrain.encoder import build_encoder
from moco_d2.pretrain.monitor import KNNMonitor, extract_features, knn_accuracy


@pytest.mark.parametrize(("neighbours", "temperature"), [(1, 0.1), (5, 0.1), (5, 1.0), (500, 0.5)])
def test_knn_is_the_weighted_vote_of_the_nearest(neighbours, temperature):
    generator = torch.Generator().manual_seed(0)
    train, test = (F.normalize(torch.randn(n, 3, generator=generator), dim=1) for n in (30, 20))
    train_labels, test_labels = (torch.randint(4, (n,), generator=generator) for n in (30, 20))
    right = 0
    for feature, label in zip(test.tolist(), test_labels.tolist(), strict=True):
        near = sorted(
            (
                (sum(a * b for a, b in zip(feature, other, strict=True)), neighbour)
                for other, neighbour in zip(train.tolist(), train_labels.tolist(), strict=True)
            ),
            reverse=True,
        )[:neighbours]
        votes = dict.fromkeys(range(4), 0.0)
        for similarity, neighbour in near:
            votes[neighbour] += math.exp(similarity / temperature)
        right += max(votes, key=votes.get) == label
    found = knn_accuracy(
        (train, train_labels),
        (test, test_labels),
        neighbours=neighbours,
        temperature=temperature,
    )
    assert found == pytest.approx(right / 20)


def test_features_are_the_pooled_output_of_the_evaluated_backbone(images):
    network = build_encoder("resnet18", dim=8, mlp=True).train()
    head, statistics = network.fc, network.bn1.running_mean.clone()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    features, labels = extract_features(network, list_images(images), size=32, batch_size=7)
    assert features.shape == (24, 512) and labels.tolist() == [0] * 12 + [1] * 12
    torch.testing.assert_close(features.norm(dim=1), torch.ones(24))
    # One batch or many, the features are the same: BatchNorm evaluates.
    whole, _ = extract_features(network, list_images(images), size=32)
    torch.testing.assert_close(features, whole)
    # And the network is left as it was, with the generator that training draws from.
    assert network.training and network.fc is head
    assert torch.equal(network.bn1.running_mean, statistics)
    assert torch.equal(torch.get_rng_state(), before)


def test_monitor_finds_each_image_nearest_to_itself(images):
    monitor = KNNMonitor(str(images), str(images), size=32, neighbours=1)
    assert monitor(build_encoder("resnet18", dim=8)) == 1.0


def test_monitor_refuses_folders_it_cannot_compare(images, tmp_path):
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "flat" / "x.png")
    with pytest.raises(UserError, match=r"MOCO\.KNN\.TEST .*flat is a flat folder"):
        KNNMonitor(str(images), str(tmp_path / "flat"), size=32)
    other = make_class_folders(tmp_path / "other", per_class=1)
    (other / "light").rename(other / "bright")
    with pytest.raises(UserError, match="different class folders: bright, light"):
        KNNMonitor(str(images), str(other), size=32)
    for folders in ((str(images), ""), ("", str(images))):
        with pytest.raises(UserError, match=r"MOCO\.KNN\.TRAIN and MOCO\.KNN\.TEST"):
            KNNMonitor(*folders, size=32)
