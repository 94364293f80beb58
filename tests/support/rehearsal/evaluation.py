"""Evaluations of features on a CUDA device that is not there: kNN and linear classifiers."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from support.rehearsal.device import rehearsal
from support.toy_data import make_class_folders
from torchvision.models import resnet18

from moco_d2.pretrain.data.sources import list_images
from moco_d2.pretrain.probe import classifier_training, knn
from moco_d2.pretrain.probe.cached_features import score_on_features, train_on_features
from moco_d2.pretrain.probe.labeled import LabeledImages, build_training_transform, extract

_BATCHES, _BATCH, _CLASSES, _WIDTH = 4, 256, 2, 512


def count(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the counts of each evaluation."""
    images = list_images(make_class_folders(folder / "classes", 2))
    counts = {}
    with rehearsal() as counted:
        labels = torch.arange(_BATCH) % _CLASSES
        batch = torch.zeros(_BATCH, 3, 32, 32).pin_memory(), labels.pin_memory()
        loader = [batch] * _BATCHES
        network = resnet18()
        network.fc = classifier_training.new_classifier(_WIDTH, _CLASSES)
        trainer = classifier_training.ClassifierTrainer(
            network,
            LabeledImages(images, build_training_transform(32), seed=1),
            loader,
            recipe=classifier_training.LINEAR,
            output=folder / "linear",
            identity={},
            num_workers=0,
            seed=1,
            device=torch.device("cuda"),
        )
        trainer._batches = iter(loader)
        trainer.iter = trainer.start_iter = 0
        with EventStorage(0):
            counted.reset()
            trainer.run_step()
            counts["linear evaluation R18, step with 256 images"] = counted.summary()
        counted.reset()
        classifier_training.evaluate(network, loader, trainer.device)
        counts["linear evaluation R18, validation of 4 batches"] = counted.summary()
        counted.reset()
        with knn.backbone_in_evaluation(network) as backbone:
            extract(backbone, loader, device="cuda", store_on="cpu")
        counts["features R18, 4 batches"] = counted.summary()
        features = torch.zeros(_BATCHES * _BATCH, 1, _WIDTH), labels.repeat(_BATCHES)
        counted.reset()
        layer = train_on_features(
            features,
            num_classes=_CLASSES,
            recipe=dataclasses.replace(classifier_training.LINEAR, epochs=1),
            seed=1,
            device=trainer.device,
        )
        counts["linear evaluation --fast, epoch of 4 batches"] = counted.summary()
        counted.reset()
        score_on_features(layer, features, trainer.device)
        counts["linear evaluation --fast, validation of 1,024 images"] = counted.summary()
        train, test = (torch.zeros(chunks * size, 8) for chunks, size in ((2, 65536), (4, 1024)))
        counted.reset()
        knn.knn_accuracy(
            (train, torch.arange(len(train)) % 2),
            (test, torch.arange(len(test)) % 2),
            neighbors=200,
            temperature=0.1,
            device=trainer.device,
        )
        counts["kNN, 4 chunks of 1,024 test and 2 of 65,536 training images"] = counted.summary()
    return counts
