"""Evaluate the features of a checkpoint by classification: linear probe, kNN or fine-tuning.

tools/linear_eval.py runs this in every process. The result is ``result.json`` in the output folder,
a LinearEvalRecord.
"""

import argparse
import dataclasses
import datetime
import logging
import os
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from torch import nn

from moco_d2.checkpoint.backbone import RANDOM, Origin
from moco_d2.engine.device import find_device
from moco_d2.engine.exchange import decided_by_main
from moco_d2.engine.launch import claimed, without_user_errors
from moco_d2.engine.terminal import begin_setup, count, first_screen, quiet
from moco_d2.errors import UserError, printable
from moco_d2.files import expand_home, sha256_of_json, write_json
from moco_d2.pixel_values import stated_range
from moco_d2.pretrain.augmentation.views import build_evaluation_transform
from moco_d2.pretrain.probe.cached_features import (
    FAST_LRS,
    cached_features,
    choose_recipe,
    score_on_features,
    train_on_features,
)
from moco_d2.pretrain.probe.classifier_training import (
    LINEAR,
    LINEAR_OF_VITS,
    ClassifierTrainer,
    Recipe,
    backbone_sha256,
    finetune_recipe,
    new_classifier,
)
from moco_d2.pretrain.probe.knn import knn_accuracy
from moco_d2.pretrain.probe.labeled import (
    Features,
    LabeledImages,
    build_training_transform,
    evaluation_loader,
    list_labeled,
    state_of_files,
)
from moco_d2.pretrain.probe.networks import ViTBackbone, load_network, random_network
from moco_d2.records.environment import hardware, versions
from moco_d2.records.pretext_schema import (
    KIND,
    RESULT_FILE,
    SCHEMA_VERSION,
    Accuracy,
    Checkpoint,
    Images,
    LinearEvalRecord,
    Pretraining,
    Protocol,
)

logger = logging.getLogger(__name__)

FEATURES_FILE = "features.pth"
# The values of InstDisc and of the authors' CIFAR demo.
KNN_NEIGHBORS, KNN_TEMPERATURE = 200, 0.1


def evaluate_checkpoint(args: argparse.Namespace) -> None:
    """Load a checkpoint, evaluate it by the protocol and write the result.

    Args:
        args: The flags; see tools/linear_eval.py --help.

    Raises:
        UserError: If flags, data or checkpoint cannot be used. No file has been written then.
    """
    started = datetime.datetime.now(datetime.timezone.utc)
    _check_flags(args)
    begin_setup(args.checkpoint)
    with claimed(args.output, setting="--output"):
        if not args.resume:
            decided_by_main(lambda: _check_fresh(args.output))
        _evaluate(args, started)


def _evaluate(args: argparse.Namespace, started: datetime.datetime) -> None:
    """Do the work of `evaluate_checkpoint` while this run holds --output."""
    train, val = list_labeled(args.data, args.val, value_range=tuple(args.range or ()))
    seed_all_rng(args.seed)
    if args.checkpoint == RANDOM:
        network, architecture, width, origin = random_network(
            args.arch, size=args.size, heads=args.heads
        )
    else:
        network, architecture, width, origin = load_network(
            args.checkpoint, branch=args.branch, size=args.size, heads=args.heads
        )
    job = Job(args, network, origin, train, val, num_features=width)
    _prepare_folder(args.output)
    logger.info(
        "%s (%s), protocol %s; %d training and %d validation images of %d classes",
        origin.source,
        architecture,
        job.protocol,
        len(train),
        len(val),
        len(train.classes),
    )
    first_screen(job.describe(f"{origin.source} ({architecture})"), logger)
    outcome = job.run()
    if not comm.is_main_process():
        return
    accuracy = outcome.pop("accuracy")
    if args.range:
        outcome["settings"]["range"] = list(args.range)
    provenance = dataclasses.asdict(origin)
    pretraining = provenance.pop("pretraining")
    elapsed = datetime.datetime.now(datetime.timezone.utc) - started
    result = LinearEvalRecord(
        schema_version=SCHEMA_VERSION,
        kind=KIND,
        checkpoint=Checkpoint(**provenance, architecture=architecture),
        pretraining=pretraining and Pretraining(**pretraining),
        protocol=job.protocol,
        data=Images(
            name=_name_of_data(args.data, args.val),
            train_images=len(train),
            val_images=len(val),
            classes=len(train.classes),
        ),
        accuracy=Accuracy(**accuracy),
        **outcome,
        seed=args.seed,
        processes=comm.get_world_size(),
        hardware=hardware(str(job.device)),
        versions=versions(),
        started=started.isoformat(timespec="seconds"),
        seconds=round(elapsed.total_seconds(), 1),
    )
    path = Path(args.output) / RESULT_FILE
    write_json(path, msgspec.to_builtins(result))
    scores = ", ".join(f"{name} {value:.2f} %" for name, value in accuracy.items())
    print(f"{job.protocol}: {scores}; {path}")


class Job:
    """One evaluation: its protocol, recipe, network and images."""

    def __init__(
        self,
        args: argparse.Namespace,
        network: nn.Module,
        origin: Origin,
        train: Any,
        val: Any,
        *,
        num_features: int,
    ):
        """
        Raises:
            UserError: If the number of processes does not divide --batch-size, --device does not
                exist, or a file is missing or empty.
        """
        self.args, self.network, self.train, self.val = args, network, train, val
        self.num_features = num_features
        default = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = find_device(args.device or default, setting="--device")
        self.protocol: Protocol = "linear-fast" if args.fast else args.protocol
        self.folder = Path(args.output)
        scratch = origin.source == RANDOM
        recipe = LINEAR_OF_VITS if isinstance(network, ViTBackbone) else LINEAR
        if self.protocol == "finetune":
            recipe = finetune_recipe(args.task, scratch=scratch)
        changes = {"base_lr": args.lr, "epochs": args.epochs, "batch_size": args.batch_size}
        self.recipe = dataclasses.replace(
            recipe, **{name: value for name, value in changes.items() if value is not None}
        )
        # The settings that must not change when a run is resumed.
        self.identity = {
            "checkpoint": origin.sha256 or f"{RANDOM} {args.arch}",
            "branch": origin.branch,
            "protocol": self.protocol,
            "size": args.size,
            "seed": args.seed,
            "processes": comm.get_world_size(),
            "data": sha256_of_json([Path(p).parts[-2:] for s in (train, val) for p in s.paths]),
        }
        self.files = state_of_files(train, val)
        if args.range:
            self.identity["range"] = list(args.range)
        if args.heads:
            self.identity["heads"] = args.heads
        if self.recipe.batch_size % comm.get_world_size():
            raise UserError(
                f"--batch-size {self.recipe.batch_size} is not divisible by "
                f"{comm.get_world_size()} processes: give a multiple"
            )

    def describe(self, network: str) -> dict[str, str]:
        """Return the rows of the first screen."""
        recipe, knn = self.recipe, self.protocol == "knn"
        device = hardware(str(self.device))
        rows = {
            "task": f"protocol {self.protocol}, seed {self.args.seed}",
            "network": network,
            "images": f"{len(self.train):,} to train, {len(self.val):,} to validate, of "
            f"{count(len(self.train.classes), 'class')} in {self.args.data}",
            "device": f"{device['device']} ({device['name']}), "
            f"{count(comm.get_world_size(), 'process')}",
            "batch": f"{count(recipe.batch_size, 'image')} of {self.args.size} pixels",
            "rate": f"{recipe.lr:g}" if not self.args.fast else "the best of a search",
            "epochs": f"{recipe.epochs}",
            "evaluation": "once" if knn or self.args.fast else "after each epoch",
            "output": str(self.folder),
        }
        return {k: v for k, v in rows.items() if not (knn and k in ("rate", "epochs"))}

    def run(self) -> dict[str, Any]:
        """Evaluate, and return the fields of the result that depend on the protocol."""
        if self.protocol == "knn":
            return self._knn()
        if self.protocol == "linear-fast":
            return self._fast()
        return self._train()

    def _train(self) -> dict[str, Any]:
        args, recipe = self.args, self.recipe
        self._log_lr(recipe)
        self.network.fc = new_classifier(self.num_features, len(self.train.classes))
        before = backbone_sha256(self.network)
        trainer = ClassifierTrainer(
            self.network,
            LabeledImages(self.train, build_training_transform(args.size), seed=args.seed),
            evaluation_loader(
                self.val,
                build_evaluation_transform(args.size),
                batch_size=max(recipe.batch_size // comm.get_world_size(), 1),
                num_workers=args.workers,
                rank=comm.get_rank(),
                world_size=comm.get_world_size(),
            ),
            recipe=recipe,
            output=self.folder,
            # The checkpoint is read back as plain types, and then compared with this.
            identity={**self.identity, "recipe": _plain(recipe)},
            files=self.files,
            num_workers=args.workers,
            seed=args.seed,
            device=self.device,
        )
        if args.resume:
            trainer.resume()
        trainer.train()
        after = backbone_sha256(self.network)
        if not recipe.train_backbone and after != before:
            raise RuntimeError("the frozen backbone changed while the classifier was trained")
        return {
            "settings": {**_plain(recipe), "size": args.size},
            "effective_lr": recipe.lr,
            "accuracy": trainer.accuracy,
            "backbone_images": recipe.epochs * (len(self.train) + len(self.val)),
            "backbone_sha256": after,
        }

    def _fast(self) -> dict[str, Any]:
        args = self.args
        features = self._features()
        options = {"num_classes": len(self.train.classes), "seed": args.seed, "device": self.device}
        rates = FAST_LRS if args.lr is None else (args.lr,)
        recipes = [dataclasses.replace(self.recipe, base_lr=rate) for rate in rates]
        recipe, scores = choose_recipe(features["train"], recipes, **options)
        self._log_lr(recipe)
        layer = train_on_features(features["train"], recipe=recipe, **options)
        accuracy, _ = score_on_features(layer, features["val"], self.device)
        return {
            "settings": {**_plain(recipe), "size": args.size, "crops": args.crops},
            "effective_lr": recipe.lr,
            "learning_rates": scores,
            "accuracy": accuracy,
            **self._unchanged_backbone(),
        }

    def _knn(self) -> dict[str, Any]:
        features = self._features()
        normalized = {
            name: (F.normalize(values[:, 0], dim=1), labels)
            for name, (values, labels) in features.items()
        }
        accuracy = knn_accuracy(
            normalized["train"],
            normalized["val"],
            neighbors=KNN_NEIGHBORS,
            temperature=KNN_TEMPERATURE,
        )
        neighbors = min(KNN_NEIGHBORS, len(self.train))
        return {
            "settings": {
                "neighbours": neighbors,  # records of all versions are compared by this name
                "temperature": KNN_TEMPERATURE,
                "size": self.args.size,
            },
            "effective_lr": None,
            "accuracy": {"top1": 100 * accuracy},
            **self._unchanged_backbone(),
        }

    def _features(self) -> dict[str, Features]:
        args = self.args
        self._before = backbone_sha256(self.network)
        crops = args.crops if self.protocol == "linear-fast" else 1
        key = {name: value for name, value in self.identity.items() if name != "protocol"}
        return cached_features(
            self.folder / FEATURES_FILE,
            {**key, "files": self.files, "crops": crops, "backbone": self._before},
            reuse=args.resume,
            splits={
                "train": {"images": self.train, "crops": crops},
                "val": {"images": self.val, "crops": 1},
            },
            network=self.network,
            size=args.size,
            batch_size=self.recipe.batch_size,
            num_workers=args.workers,
            seed=args.seed,
            device=self.device,
        )

    def _unchanged_backbone(self) -> dict[str, Any]:
        after = backbone_sha256(self.network)
        if after != self._before:
            raise RuntimeError("the backbone changed while its features were extracted")
        crops = self.args.crops if self.protocol == "linear-fast" else 1
        return {
            "backbone_images": crops * len(self.train) + len(self.val),
            "backbone_sha256": after,
        }

    def _log_lr(self, recipe: Recipe) -> None:
        logger.info(
            "learning rate %g: %g for batches of 256, scaled to batches of %d; %d epochs",
            recipe.lr,
            recipe.base_lr,
            recipe.batch_size,
            recipe.epochs,
        )


def _check_fresh(output: str) -> None:
    if (Path(output) / RESULT_FILE).exists():
        raise UserError(
            f"--output {output} holds a result: continue its run with --resume, or choose another "
            "folder"
        )


def _check_flags(args: argparse.Namespace) -> None:
    for flag in ("data", "val", "output"):
        value = getattr(args, flag)
        if value is not None and not value.strip():
            raise UserError(f"--{flag} is empty: name a folder")
    for flag in ("epochs", "batch_size", "lr", "size", "crops"):
        value = getattr(args, flag)
        if value is not None and not value > 0:
            raise UserError(f"--{flag.replace('_', '-')} must be greater than 0, got {value}")
    stated_range(args.range)
    if args.workers < 0:
        raise UserError(f"--workers must be 0 or greater, got {args.workers}")
    if args.fast and args.protocol != "linear":
        raise UserError(f"--fast is only for --protocol linear, got {args.protocol}: leave it out")
    if args.crops > 1 and not args.fast:
        raise UserError("--crops is only for --fast: leave it out, or add --fast")
    if args.checkpoint == RANDOM and not args.arch:
        raise UserError("a random network needs an architecture: add --arch, e.g. --arch resnet50")
    if args.checkpoint != RANDOM and args.arch:
        raise UserError(
            f"--arch is only for the checkpoint {RANDOM!r}, since a file names its architecture: "
            "leave it out"
        )
    if (args.fast or args.protocol == "knn") and comm.get_world_size() > 1:
        raise UserError("--fast and --protocol knn run in one process: leave out --num-gpus")
    output = Path(args.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is not a folder: choose another")


def _prepare_folder(output: str) -> None:
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write --output {output} ({error.strerror}): choose another folder"
        ) from error
    for name in ("moco_d2", "detectron2"):
        quiet(setup_logger(output, distributed_rank=comm.get_rank(), name=name, abbrev_name=name))
    logging.getLogger("detectron2.engine.train_loop").addFilter(without_user_errors)


def _name_of_data(data: str, val: str | None) -> str:
    """Return the name of the folder that has both sets."""
    folders = [os.path.realpath(expand_home(folder)) for folder in (data, val) if folder]
    # A record with characters that cannot be printed would be refused by its readers.
    return printable(Path(os.path.commonpath(folders)).name)


def _plain(recipe: Recipe) -> dict[str, Any]:
    return {**dataclasses.asdict(recipe), "milestones": list(recipe.milestones)}
