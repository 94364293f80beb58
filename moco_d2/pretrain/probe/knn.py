"""What features are worth without training on them: kNN classification (authors' CIFAR demo, after
InstDisc).

Legend: N test images, M training images, D feature width, k neighbors, T temperature.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms import v2

from moco_d2.engine.loader import build_loader
from moco_d2.errors import UserError, as_raised
from moco_d2.pretrain.augmentation.views import build_evaluation_transform
from moco_d2.pretrain.data.images import UnreadableImageError, read_image
from moco_d2.pretrain.data.sources import ImageList, list_images, share_images

logger = logging.getLogger(__name__)

Features = tuple[torch.Tensor, torch.Tensor]  # of unit length (N, D), and labels (N,)

# Test and training images whose similarities are in memory at once: 256 MiB in fp32.
_TEST_CHUNK, _TRAIN_CHUNK = 1024, 65536


class _LabeledImages(Dataset[Any]):
    def __init__(self, images: ImageList, transform: v2.Transform):
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        try:
            image = read_image(self.images.paths[index])
        except UnreadableImageError as error:
            raise UserError(str(error)) from error  # the class whose sentence leaves a worker whole
        return self.transform(image), self.images.label(index)


@contextlib.contextmanager
def backbone_in_evaluation(network: nn.Module) -> Iterator[nn.Module]:
    """`network` in evaluation mode and without its ``fc``: images (N, 3, H, W) -> pooled features
    (N, D).
    """
    head, was_training = network.fc, network.training
    network.fc = nn.Identity()
    network.eval()
    try:
        yield network
    finally:
        network.fc = head
        network.train(was_training)


@torch.no_grad()
def extract_features(
    network: nn.Module,
    images: ImageList,
    *,
    size: int,
    batch_size: int = 256,
    num_workers: int = 0,
    store_on: torch.device | str | None = None,
) -> Features:
    """Unit-length pooled features (N, D) and labels (N,) of labeled images, center crops of `size`
    pixels.

    Args:
        num_workers: processes that read and decode. Training's randomness does not depend on them.
        store_on: device of the result; None: the network's. The features of ImageNet-1M by a
            ResNet-50 take 10.5 GB.

    Raises:
        UserError: an image does not decode.
    """
    device = next(network.parameters()).device
    store_on = device if store_on is None else store_on
    loader = build_loader(
        _LabeledImages(images, build_evaluation_transform(size)),
        batch_size=batch_size,
        num_workers=num_workers,
    )
    features, labels = [], []
    with backbone_in_evaluation(network) as backbone:
        try:
            for batch, label in loader:
                found = F.normalize(backbone(batch.to(device)).float(), dim=1)
                features.append(found.to(store_on))
                labels.append(label.to(store_on))
        except UserError as error:
            raise as_raised(error) from error
    return torch.cat(features), torch.cat(labels)


def nearest_neighbors(
    train: torch.Tensor,
    test: torch.Tensor,
    *,
    neighbors: int,
    device: torch.device | str | None = None,
    chunks: tuple[int, int] = (_TEST_CHUNK, _TRAIN_CHUNK),
) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest training features of each test feature, by cosine similarity.

    Args:
        train, test: unit-length features (M, D) and (N, D).
        neighbors: k; where M is smaller, M.
        device: where the similarities are computed; None: where `test` is. The features may lie
            elsewhere: they pass through it in pieces.
        chunks: test and training features compared at once; memory is bounded by them, not by N M.

    Returns:
        similarities (N, k), descending, and indices into `train` (N, k), where `test` is.
    """
    device = test.device if device is None else device
    k = min(neighbors, len(train))
    similarities, indices = [], []
    for chunk in test.split(chunks[0]):
        queries = chunk.to(device)
        best = queries.new_empty(len(queries), 0)
        index = torch.empty(len(queries), 0, dtype=torch.long, device=device)
        for start in range(0, len(train), chunks[1]):
            near = queries @ train[start : start + chunks[1]].to(device).T
            near, at = near.topk(min(k, near.shape[1]), dim=1)
            best, index = torch.cat([best, near], dim=1), torch.cat([index, at + start], dim=1)
            best, kept = best.topk(min(k, best.shape[1]), dim=1)
            index = index.gather(1, kept)
        similarities.append(best.to(test.device))
        indices.append(index.to(test.device))
    return torch.cat(similarities), torch.cat(indices)


def knn_accuracy(
    train: Features,
    test: Features,
    *,
    neighbors: int,
    temperature: float,
    device: torch.device | str | None = None,
) -> float:
    """Share of test images whose class the weighted vote of their nearest training images gets
    right.

    Args:
        train: unit-length features (M, D) and labels (M,).
        test: the same of the N test images.
        neighbors: k, at most M.
        temperature: T; a neighbor at cosine similarity s votes with weight exp(s / T).
        device: of `nearest_neighbors`.
    """
    train_features, train_labels = train
    test_features, test_labels = test
    similarity, index = nearest_neighbors(
        train_features, test_features, neighbors=neighbors, device=device
    )
    classes = int(train_labels.max()) + 1
    right = 0
    for near, at, labels in zip(
        *(values.split(_TEST_CHUNK) for values in (similarity, index, test_labels)), strict=True
    ):
        votes = torch.zeros(len(near), classes, device=near.device)
        votes.scatter_add_(1, train_labels.to(at.device)[at], (near / temperature).exp())
        right += int((votes.argmax(dim=1) == labels.to(near.device)).sum())
    return right / len(test_labels)


class KNNMonitor:
    """kNN accuracy of a network on two labeled folders that are listed once."""

    def __init__(
        self,
        train: str,
        test: str,
        *,
        size: int,
        neighbors: int = 200,
        temperature: float = 0.1,
        num_workers: int = 0,
    ):
        """
        Args:
            train, test: class folders, the same classes in both.
            size: side of the center crop, pixels.
            num_workers: processes that read and decode.

        Raises:
            UserError: a folder is missing, empty or flat, or the classes differ.
        """
        if not train or not test:
            raise UserError(
                "kNN needs both folders: set MOCO.KNN.TRAIN and MOCO.KNN.TEST, or neither"
            )
        if share_images(train, test):
            logger.warning(
                "MOCO.KNN.TRAIN %s and MOCO.KNN.TEST %s hold the same images, of which each is its "
                "own nearest neighbor: the accuracy says nothing; name a set that is held out",
                train,
                test,
            )
        self.train, self.test = list_images(train), list_images(test)
        for key, folder, images in (
            ("TRAIN", train, self.train),
            ("TEST", test, self.test),
        ):
            if images.labels is None:
                raise UserError(
                    f"MOCO.KNN.{key} {folder} is a flat folder; kNN needs one folder a class"
                )
        if self.train.classes != self.test.classes:
            differ = sorted(set(self.train.classes) ^ set(self.test.classes))
            raise UserError(
                "MOCO.KNN.TRAIN and MOCO.KNN.TEST have different class folders: "
                f"{', '.join(differ[:5])}"
            )
        self.size = size
        self.neighbors = neighbors
        self.temperature = temperature
        self.num_workers = num_workers

    def features(self, network: nn.Module) -> tuple[Features, Features]:
        """Features and labels of both folders, in main memory; leaves the network as it was."""
        train, test = (
            extract_features(
                network, images, size=self.size, num_workers=self.num_workers, store_on="cpu"
            )
            for images in (self.train, self.test)
        )
        return train, test

    def accuracy(self, train: Features, test: Features, device: torch.device | str) -> float:
        """Accuracy in [0, 1] of what `features` gave, computed on `device`."""
        return knn_accuracy(
            train,
            test,
            neighbors=self.neighbors,
            temperature=self.temperature,
            device=device,
        )

    def __call__(self, network: nn.Module) -> float:
        """Accuracy in [0, 1]; leaves the network as it was."""
        return self.accuracy(*self.features(network), next(network.parameters()).device)
