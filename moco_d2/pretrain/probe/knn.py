"""Evaluate features without training, by kNN classification.

The method is InstDisc's, as in the authors' CIFAR demo.

Legend: N test images, M training images, D feature width, k neighbors, T temperature.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from moco_d2.errors import UserError
from moco_d2.pixel_values import ValueRange
from moco_d2.pretrain.augmentation.views import build_evaluation_transform
from moco_d2.pretrain.data.image_list import ImageList, same_files, with_range
from moco_d2.pretrain.data.sources import list_images, share_images
from moco_d2.pretrain.model.encoder import head_name
from moco_d2.pretrain.probe.labeled import Features, evaluation_loader, extract

# Test and training images that are compared at once. Their similarities take 256 MiB in fp32.
_TEST_CHUNK, _TRAIN_CHUNK = 1024, 65536


@contextlib.contextmanager
def backbone_in_evaluation(network: nn.Module, *, head: bool = False) -> Iterator[nn.Module]:
    """Put `network` into evaluation mode, without its head, for the length of a block.

    It then is images (N, 3, H, W) -> pooled features (N, D). With `head`, the head stays.
    """
    name, was_training = head_name(network), network.training
    kept = getattr(network, name)
    if not head:
        setattr(network, name, nn.Identity())
    network.eval()
    try:
        yield network
    finally:
        setattr(network, name, kept)
        network.train(was_training)


def extract_features(
    network: nn.Module,
    images: ImageList,
    *,
    size: int,
    protocol: str = "backbone",
    batch_size: int = 256,
    num_workers: int = 0,
    store_on: torch.device | str | None = None,
) -> Features:
    """Return the features (N, D) of images, of unit length, and their labels (N,).

    Args:
        network: A torchvision ResNet or our ViT. Its mode and its head are restored at the end.
        images: Labeled images.
        size: Side of the center crop, pixels.
        protocol: MOCO.KNN.PROTOCOL.
        batch_size: Images per forward pass.
        num_workers: Number of processes that read and decode images.
        store_on: Device of the result; None means the network's device. The features of ImageNet-1M
            from a ResNet-50 take 10.5 GB.

    Raises:
        UserError: If an image cannot be decoded.
    """
    device = next(network.parameters()).device
    store_on = device if store_on is None else store_on
    outputs = protocol == "outputs"
    loader = evaluation_loader(
        images,
        build_evaluation_transform(size, margin=not outputs),
        batch_size=batch_size,
        num_workers=num_workers,
    )
    with backbone_in_evaluation(network, head=outputs) as backbone:
        return extract(
            lambda batch: F.normalize(backbone(batch).float(), dim=1),
            loader,
            device=device,
            store_on=store_on,
        )


def nearest_neighbors(
    train: torch.Tensor,
    test: torch.Tensor,
    *,
    neighbors: int,
    device: torch.device | str | None = None,
    chunks: tuple[int, int] = (_TEST_CHUNK, _TRAIN_CHUNK),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the nearest training features of each test feature, by cosine similarity.

    Args:
        train, test: Features (M, D) and (N, D) of unit length.
        neighbors: k. If M is smaller, M is used.
        device: The device that computes the similarities; None means the device of `test`. It gets
            all test features, and the training features once, chunk after chunk.
        chunks: Numbers of test and training features that are compared at once. They bound the
            memory of similarities.

    Returns:
        Similarities (N, k), descending, and indices into `train` (N, k), on the device of `test`.
    """
    device = test.device if device is None else device
    k = min(neighbors, len(train))
    queries = [chunk.to(device) for chunk in test.split(chunks[0])]
    best = [chunk.new_empty(len(chunk), 0) for chunk in queries]
    index = [torch.empty(len(chunk), 0, dtype=torch.long, device=device) for chunk in queries]
    for start in range(0, len(train), chunks[1]):
        part = train[start : start + chunks[1]].to(device)
        for i, chunk in enumerate(queries):
            near, at = (chunk @ part.T).topk(min(k, len(part)), dim=1)
            near, at = torch.cat([best[i], near], dim=1), torch.cat([index[i], at + start], dim=1)
            best[i], columns = near.topk(min(k, near.shape[1]), dim=1)
            index[i] = at.gather(1, columns)
    return torch.cat(best).to(test.device), torch.cat(index).to(test.device)


def knn_accuracy(
    train: Features,
    test: Features,
    *,
    neighbors: int,
    temperature: float,
    device: torch.device | str | None = None,
) -> float:
    """Return the fraction of test images that a weighted vote of their neighbors classifies right.

    Args:
        train: Features (M, D) of unit length and labels (M,) of the training images.
        test: Features (N, D) of unit length and labels (N,) of the test images.
        neighbors: k, at most M.
        temperature: T. A neighbor at cosine similarity s votes with weight exp(s / T).
        device: See `nearest_neighbors`.
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
    """Measures the kNN accuracy of a network on two labeled folders."""

    def __init__(
        self,
        train: str,
        test: str,
        *,
        size: int,
        neighbors: int = 200,
        temperature: float = 0.1,
        protocol: str = "backbone",
        num_workers: int = 0,
        value_range: ValueRange = (),
    ):
        """
        Args:
            train, test: Class folders with the same classes.
            size: Side of the center crop, pixels.
            neighbors: k.
            temperature: T; see `knn_accuracy`.
            protocol: MOCO.KNN.PROTOCOL.
            num_workers: Number of processes that read and decode images.
            value_range: MOCO.INPUT.RANGE.

        Raises:
            UserError: If a folder is missing, empty or flat, if the classes differ or there is only
                one, or if both folders have the same images.
        """
        if not train or not test:
            raise UserError(
                "kNN needs two folders, but only one is set: set both MOCO.KNN.TRAIN and "
                "MOCO.KNN.TEST, or neither"
            )
        if share_images(train, test):
            raise UserError(
                f"MOCO.KNN.TRAIN {train} and MOCO.KNN.TEST {test} hold the same images, and each "
                "is its own nearest neighbor: name a held-out set"
            )
        self.train, self.test = list_images(train), list_images(test)
        for key, folder, images in (
            ("TRAIN", train, self.train),
            ("TEST", test, self.test),
        ):
            if images.labels is None:
                raise UserError(
                    f"MOCO.KNN.{key} {folder} has images without labels: name a folder that has "
                    "one folder per class"
                )
        if self.train.classes != self.test.classes:
            differ = sorted(set(self.train.classes) ^ set(self.test.classes))
            raise UserError(
                "MOCO.KNN.TRAIN and MOCO.KNN.TEST have different class folders "
                f"({', '.join(differ[:5])}): make the same class folders in both"
            )
        if len(self.train.classes) < 2:
            raise UserError(
                f"MOCO.KNN.TRAIN {train} has one class, {self.train.classes[0]}, so every image "
                "would be right: name a folder that has one folder per class"
            )
        self.check_held_out(self.train, f"MOCO.KNN.TRAIN {train}")
        self.train = with_range(self.train, value_range, dataset=f"MOCO.KNN.TRAIN {train}")
        self.test = with_range(self.test, value_range, dataset=f"MOCO.KNN.TEST {test}")
        self.size = size
        self.neighbors = neighbors
        self.temperature = temperature
        self.protocol = protocol
        self.num_workers = num_workers

    def check_held_out(self, images: ImageList, source: str) -> None:
        """
        Raises:
            UserError: If an image of MOCO.KNN.TEST is among these, under any name or link.
        """
        both = same_files(self.test, images)
        if both:
            raise UserError(
                f"{len(both)} of the {len(self.test)} images of MOCO.KNN.TEST are also in "
                f"{source}, first {both[0]}: name a held-out set"
            )

    def features(self, network: nn.Module) -> tuple[Features, Features]:
        """Return features and labels of both folders, in main memory. `network` is unchanged."""
        train, test = (
            extract_features(
                network,
                images,
                size=self.size,
                protocol=self.protocol,
                num_workers=self.num_workers,
                store_on="cpu",
            )
            for images in (self.train, self.test)
        )
        return train, test

    def accuracy(self, train: Features, test: Features, device: torch.device | str) -> float:
        """Return the accuracy in [0, 1] of the two results of `features`, computed on `device`."""
        return knn_accuracy(
            train,
            test,
            neighbors=self.neighbors,
            temperature=self.temperature,
            device=device,
        )

    def __call__(self, network: nn.Module) -> float:
        """Return the accuracy in [0, 1]. `network` is unchanged."""
        return self.accuracy(*self.features(network), next(network.parameters()).device)
