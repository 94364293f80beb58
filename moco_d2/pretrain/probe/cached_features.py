"""Evaluate on cached features: every crop goes through the backbone only once.

Legend: M images, V crops of each, D feature width, C classes.
"""

import logging
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.engine.device import send
from moco_d2.files import atomic_write, sha256_of_json
from moco_d2.pretrain.augmentation.views import build_evaluation_transform
from moco_d2.pretrain.data.image_list import ImageList
from moco_d2.pretrain.probe.classifier_training import Recipe, new_classifier, topk_correct
from moco_d2.pretrain.probe.labeled import (
    Features,
    build_training_transform,
    evaluation_loader,
    extract,
)

logger = logging.getLogger(__name__)

# Learning rates that the fast mode tries, for batches of 256. The paper uses 30 for MoCo features;
# features of larger norm need smaller ones.
FAST_LRS = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
_HELD_OUT = 0.1  # fraction of each class' training images on which the learning rate is chosen
_SCORE_CHUNK = 4096  # features whose logits are computed at once


def extract_crops(
    network: nn.Module,
    images: ImageList,
    *,
    size: int,
    crops: int,
    batch_size: int,
    num_workers: int,
    seed: int,
    device: torch.device,
) -> Features:
    """Return pooled features (M, V, D) on the CPU and labels (M,).

    The first crop is the center crop. Further crops are random and flipped at random.

    Args:
        network: images -> pooled features. It is put into evaluation mode.
        size: Side of a crop, pixels.
        crops: V.
    """
    network.to(device).eval()
    views = []
    for crop in range(crops):
        transform = build_training_transform(size) if crop else build_evaluation_transform(size)
        loader = evaluation_loader(
            images, transform, batch_size=batch_size, num_workers=num_workers, seed=seed + crop
        )
        progress = tqdm(loader, desc=f"features, crop {crop + 1} of {crops}", disable=None)
        features, labels = extract(network, progress, device=device, store_on="cpu")
        views.append(features)
    return torch.stack(views, dim=1), labels


def cached_features(
    file: Path,
    key: dict[str, Any],
    *,
    reuse: bool,
    splits: dict[str, dict[str, Any]],
    **options: Any,
) -> dict[str, Features]:
    """Return the features of each split.

    They are read from `file` if it has the same `key` and features of these images. Otherwise they
    are computed and written to `file`.

    Args:
        key: Everything that the features depend on, of JSON types.
        reuse: Whether `file` may be read.
        splits: Name of a split -> its arguments of `extract_crops`.
        options: Arguments of `extract_crops` for all splits.
    """
    if reuse and file.is_file():
        content = load_checkpoint(file)
        if _has_key_and_features(content, key, splits):
            logger.info("features from %s", file)
            return {name: tuple(content[name]) for name in splits}
    computed = {name: extract_crops(**arguments, **options) for name, arguments in splits.items()}
    with atomic_write(file) as temporary:
        torch.save({"key": key, **{name: list(pair) for name, pair in computed.items()}}, temporary)
    return computed


def _has_key_and_features(
    content: dict[Any, Any], key: dict[str, Any], splits: dict[str, Any]
) -> bool:
    """Return whether the content of a cache file has this key and features of these splits."""
    try:
        if sha256_of_json(content.get("key")) != sha256_of_json(key):
            return False
        return all(_are_features(content[name], **splits[name]) for name in splits)
    except (LookupError, TypeError, ValueError, RecursionError):
        return False


def _are_features(pair: Any, *, images: ImageList, crops: int) -> bool:
    """Return whether `pair` can be a result of `extract_crops` for these arguments."""
    features, labels = pair
    return (
        isinstance(features, Tensor)
        and isinstance(labels, Tensor)
        and features.is_floating_point()
        and features.dim() == 3
        and features.shape[:2] == (len(images), crops)
        and bool(torch.isfinite(features).all())
        and labels.dtype == torch.long
        and images.labels is not None
        and labels.tolist() == list(images.labels)
    )


def train_on_features(
    train: Features, *, num_classes: int, recipe: Recipe, seed: int, device: torch.device
) -> nn.Linear:
    """Train a linear classifier on features. Each epoch uses one random crop of each image."""
    features, labels = train
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layer = new_classifier(features.shape[-1], num_classes).to(device)
    optimizer = recipe.optimizer(list(layer.parameters()))
    factor = recipe.schedule(1)
    for epoch in range(recipe.epochs):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * factor(epoch / recipe.epochs)
        order = torch.randperm(len(labels), generator=generator)
        crop = torch.randint(features.shape[1], (len(labels),), generator=generator)
        for index in order.split(recipe.batch_size):
            logits = layer(send(features[index, crop[index]], device))
            loss = F.cross_entropy(logits, send(labels[index], device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return layer


@torch.no_grad()
def score_on_features(
    layer: nn.Linear, test: Features, device: torch.device
) -> tuple[dict[str, float], float]:
    """Return top-1 and top-5 in percent on the center crops, and the mean loss."""
    features, labels = test[0][:, 0], test[1].to(device)
    logits = torch.cat([layer(part.to(device)) for part in features.split(_SCORE_CHUNK)])
    top1, top5 = (100 * hits / len(labels) for hits in topk_correct(logits, labels).tolist())
    return {"top1": top1, "top5": top5}, F.cross_entropy(logits, labels).item()


def choose_recipe(
    train: Features, recipes: list[Recipe], *, num_classes: int, seed: int, device: torch.device
) -> tuple[Recipe, list[dict[str, float]]]:
    """Choose the recipe with the best top-1 accuracy on held-out training images.

    Of two recipes with the same accuracy, the one with the lower loss is better.

    Returns:
        The best recipe, and ``{"base_lr", "held_out_top1"}`` of each recipe.
    """
    features, labels = train
    fitted, held_out = hold_out(labels, seed=seed)
    scores, best, best_score = [], recipes[0], (-1.0, 0.0)
    for recipe in tqdm(recipes, desc="learning rates", disable=None):
        layer = train_on_features(
            (features[fitted], labels[fitted]),
            num_classes=num_classes,
            recipe=recipe,
            seed=seed,
            device=device,
        )
        accuracy, loss = score_on_features(layer, (features[held_out], labels[held_out]), device)
        scores.append({"base_lr": recipe.base_lr, "held_out_top1": accuracy["top1"]})
        if (accuracy["top1"], -loss) > best_score:
            best, best_score = recipe, (accuracy["top1"], -loss)
    return best, scores


def hold_out(labels: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Split the images into indices to train on and held-out indices.

    A tenth of each class is held out, but at least one image. A class of one image has none held
    out.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        count = max(round(_HELD_OUT * len(members)), 1) if len(members) > 1 else 0
        chosen[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]
