"""What the features are worth while they are being learnt: kNN classification (authors' CIFAR demo,
after InstDisc).

Legend: N test images, M training images, D feature width, k neighbours, T temperature.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from moco_d2.errors import UserError
from moco_d2.pretrain.augmentation import build_evaluation_transform
from moco_d2.pretrain.data import ImageList, list_images, read_image


class _LabelledImages(Dataset):
    def __init__(self, images: ImageList, transform):
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(read_image(self.images.paths[index])), self.images.labels[index]


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
    network: nn.Module, images: ImageList, *, size: int, batch_size: int = 256
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit-length pooled features (N, D) and labels (N,) of labelled images, centre crops of `size`
    pixels.
    """
    device = next(network.parameters()).device
    loader = DataLoader(
        _LabelledImages(images, build_evaluation_transform(size)),
        batch_size=batch_size,
        generator=torch.Generator(),  # training's randomness does not depend on how often we look
    )
    features, labels = [], []
    with backbone_in_evaluation(network) as backbone:
        for batch, label in loader:
            features.append(F.normalize(backbone(batch.to(device)).float(), dim=1))
            labels.append(label.to(device))
    return torch.cat(features), torch.cat(labels)


def knn_accuracy(
    train: tuple[torch.Tensor, torch.Tensor],
    test: tuple[torch.Tensor, torch.Tensor],
    *,
    neighbours: int,
    temperature: float,
) -> float:
    """Share of test images whose class the weighted vote of their nearest training images gets
    right.

    Args:
        train: unit-length features (M, D) and labels (M,).
        test: the same of the N test images.
        neighbours: k, at most M.
        temperature: T; a neighbour at cosine similarity s votes with weight exp(s / T).
    """
    train_features, train_labels = train
    test_features, test_labels = test
    similarity, index = (test_features @ train_features.T).topk(
        min(neighbours, len(train_features)), dim=1
    )
    votes = torch.zeros(len(test_features), int(train_labels.max()) + 1, device=similarity.device)
    votes.scatter_add_(1, train_labels[index], (similarity / temperature).exp())
    return (votes.argmax(dim=1) == test_labels).float().mean().item()


class KNNMonitor:
    """kNN accuracy of a network on two labelled folders that are listed once."""

    def __init__(
        self, train: str, test: str, *, size: int, neighbours: int = 200, temperature: float = 0.1
    ):
        """
        Args:
            train, test: class folders, the same classes in both.
            size: side of the centre crop, pixels.

        Raises:
            UserError: a folder is missing, empty or flat, or the classes differ.
        """
        if not train or not test:
            raise UserError(
                "kNN needs both folders: set MOCO.KNN.TRAIN and MOCO.KNN.TEST, or neither"
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
        self.neighbours = neighbours
        self.temperature = temperature

    def __call__(self, network: nn.Module) -> float:
        """Accuracy in [0, 1]; leaves the network as it was."""
        return knn_accuracy(
            extract_features(network, self.train, size=self.size),
            extract_features(network, self.test, size=self.size),
            neighbours=self.neighbours,
            temperature=self.temperature,
        )
