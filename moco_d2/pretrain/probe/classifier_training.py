"""Train an image classifier: a linear layer on frozen features, or the whole ResNet.

Legend: N batch, C classes.
"""

import hashlib
import logging
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.engine import HookBase, TrainerBase, default_writers, hooks
from detectron2.solver.lr_scheduler import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.engine.hooks import DeferredWriters, EvalHook, StopOnSignal
from moco_d2.engine.last_checkpoint import save_checkpoint
from moco_d2.engine.loader import build_loader
from moco_d2.engine.resume_checks import check_count, check_optimizer, check_tensors, continuing
from moco_d2.engine.signals import note_saved
from moco_d2.engine.terminal import ProgressBar
from moco_d2.errors import UserError, as_raised
from moco_d2.pretrain.probe.labeled import Epochs, LabeledImages

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pth.tar"
REFERENCE_BATCH = 256  # images per step for which the recipes give the learning rate
_LOG_PERIOD = 20  # iterations between two lines of metrics.json, as Detectron2's default
_INITIAL_STD = 0.01  # standard deviation of the classifier's weights, main_lincls.py
TOPK = (1, 5)


@dataclass(frozen=True)
class Recipe:
    """The settings of a classifier's training with SGD.

    Attributes:
        base_lr: Learning rate for batches of 256 images. It is scaled linearly with the batch.
        weight_decay: Weight decay of all trained parameters.
        milestones: Fractions of training after which the learning rate is divided by ten.
        train_backbone: Whether the backbone is trained, too, including its BatchNorm. If not, it
            stays in evaluation mode.
        epochs: Passes over the training images.
        batch_size: Images per step over all processes.
        momentum: SGD momentum, in [0, 1).
    """

    base_lr: float
    weight_decay: float
    milestones: tuple[float, ...]
    train_backbone: bool
    epochs: int = 100
    batch_size: int = REFERENCE_BATCH
    momentum: float = 0.9

    @property
    def lr(self) -> float:
        """The learning rate for this batch size."""
        return self.base_lr * self.batch_size / REFERENCE_BATCH

    def schedule(self, iterations_per_epoch: int) -> MultiStepParamScheduler:
        """Return the factor on the learning rate as a function of progress in [0, 1]."""
        steps = {round(fraction * self.epochs) for fraction in self.milestones}
        milestones = sorted(step for step in steps if 0 < step < self.epochs)
        return MultiStepParamScheduler(
            [0.1**i for i in range(len(milestones) + 1)],
            num_updates=self.epochs * iterations_per_epoch,
            milestones=[step * iterations_per_epoch for step in milestones],
        )

    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.SGD:
        """Return the SGD optimizer of the parameters."""
        return torch.optim.SGD(
            parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )


# The official main_lincls.py: lr 30, no weight decay, x0.1 after epochs 60 and 80 of 100.
LINEAR = Recipe(base_lr=30.0, weight_decay=0.0, milestones=(0.6, 0.8), train_backbone=False)
# The class token behind a LayerNorm is larger: --lr=3 for ViTs in CONFIG.md of MoCo v3.
LINEAR_OF_VITS = replace(LINEAR, base_lr=3.0)

# Learning rates of end-to-end fine-tuning, from pretrained and from random weights (paper
# appendix).
FINETUNE_LR = {"imagenet": (0.03, 0.1), "inaturalist": (0.025, 0.1)}
# For iNaturalist, the appendix states 100 epochs and a division by 10 at 70 and 90 %. Weight decay
# and batch size are those of the paper's ImageNet training.
_FINETUNE_DECAY = 1e-4
_FINETUNE_MILESTONES = (0.7, 0.9)


def finetune_recipe(task: str, *, scratch: bool) -> Recipe:
    """Return the paper's recipe of end-to-end fine-tuning.

    Args:
        task: A key of `FINETUNE_LR`.
        scratch: Whether training starts from random weights.
    """
    return Recipe(
        base_lr=FINETUNE_LR[task][scratch],
        weight_decay=_FINETUNE_DECAY,
        milestones=_FINETUNE_MILESTONES,
        train_backbone=True,
    )


def new_classifier(num_features: int, num_classes: int) -> nn.Linear:
    """Return a linear layer with weights drawn from N(0, 0.01) and biases 0."""
    layer = nn.Linear(num_features, num_classes)
    nn.init.normal_(layer.weight, std=_INITIAL_STD)
    nn.init.zeros_(layer.bias)
    return layer


def topk_correct(logits: Tensor, labels: Tensor, topk: tuple[int, ...] = TOPK) -> Tensor:
    """Count the images whose label is among their k highest logits, for each k, on their device.

    With at most k classes, every image counts.

    Args:
        logits: Logits (N, C).
        labels: Class indices (N,).
    """
    highest = logits.topk(min(max(topk), logits.shape[1]), dim=1).indices
    hits = highest == labels[:, None]
    return torch.stack([hits[:, :k].sum() for k in topk])


@torch.no_grad()
def evaluate(network: nn.Module, loader: DataLoader[Any], device: torch.device) -> dict[str, float]:
    """Return the top-1 and top-5 accuracy in percent over the images of all processes.

    Args:
        network: images (N, 3, H, W) -> logits (N, C). Its training mode is restored at the end.
        loader: The local images and labels.
    """
    was_training = network.training
    network.eval()
    counts = torch.zeros(len(TOPK) + 1, dtype=torch.long, device=device)
    for images, labels in loader:
        logits = network(images.to(device, non_blocking=True))
        counts[:-1] += topk_correct(logits, labels.to(device, non_blocking=True))
        counts[-1] += len(labels)
    network.train(was_training)
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(counts)
    *correct, total = counts.tolist()
    return {f"top{k}": 100 * hits / total for k, hits in zip(TOPK, correct, strict=True)}


def backbone_sha256(network: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers except those of the classifier."""
    content = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if not name.startswith("fc."):
            content.update(name.encode())
            content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()


def _save_at_end_of_epoch(trainer: "ClassifierTrainer") -> None:
    finished = trainer.iter + 1
    if finished % trainer.order.iterations_per_epoch == 0:
        trainer.save(finished)


class ClassifierTrainer(TrainerBase):
    """Trains ``network.fc``, or the whole network, as a Detectron2 job.

    It writes metrics.json, TensorBoard events and a checkpoint of every epoch into the output
    folder. A checkpoint is ``{"state_dict", "optimizer", "epoch", "moco_d2"}``, and its names of
    tensors are torchvision's.
    """

    iter: int  # attribute of TrainerBase: the current iteration

    def __init__(
        self,
        network: nn.Module,
        train_images: LabeledImages,
        val_loader: DataLoader[Any],
        *,
        recipe: Recipe,
        output: Path,
        identity: dict[str, Any],
        num_workers: int,
        seed: int,
        device: torch.device,
        files: str = "",
    ):
        """
        Args:
            network: A torchvision ResNet with its classifier: images (N, 3, H, W) -> (N, C).
            train_images: The training images, which every epoch reads in a new order.
            val_loader: The local validation images.
            recipe: The settings of the training.
            output: The output folder.
            identity: The settings that must not change when a run is resumed, of JSON types.
            num_workers: Number of processes that read and decode images.
            seed: Seed of the order and of the augmentation.
            device: The device of the network.
            files: The fingerprint of the image files; see `labeled.state_of_files`.

        Raises:
            UserError: If the number of processes does not divide the batch size.
        """
        super().__init__()
        world_size = comm.get_world_size()
        if recipe.batch_size % world_size:
            raise UserError(
                f"--batch-size {recipe.batch_size} is not divisible by {world_size} processes: "
                "give a multiple"
            )
        self.recipe, self.output, self.identity, self.device = recipe, output, identity, device
        self.val_loader, self.num_workers, self.files = val_loader, num_workers, files
        self.train_images = train_images
        self.order = Epochs(
            len(train_images.images),
            recipe.batch_size,
            recipe.epochs,
            seed=seed,
            rank=comm.get_rank(),
            world_size=world_size,
        )
        self.network = network.to(device)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(recipe.train_backbone or name.startswith("fc."))
        self.optimizer = recipe.optimizer([p for p in network.parameters() if p.requires_grad])
        self.max_iter = recipe.epochs * self.order.iterations_per_epoch
        self.scheduler = LRMultiplier(
            self.optimizer, recipe.schedule(self.order.iterations_per_epoch), self.max_iter
        )
        self.parallel_network = network
        if world_size > 1:
            self.parallel_network = nn.parallel.DistributedDataParallel(
                network, device_ids=[device] if device.type == "cuda" else None
            )
        self.accuracy: dict[str, float] = {}
        self.register_hooks(self._build_hooks())

    def _build_hooks(self) -> list[HookBase]:
        self.stop = StopOnSignal(self._save_now)
        built = [
            hooks.IterationTimer(),
            hooks.LRScheduler(self.optimizer, self.scheduler),
            EvalHook(self.order.iterations_per_epoch, self._evaluate),
        ]
        if comm.is_main_process():
            built.append(hooks.CallbackHook(after_step=_save_at_end_of_epoch))
            writers = DeferredWriters(
                lambda: default_writers(str(self.output), self.max_iter), self.output
            )
            built.append(hooks.PeriodicWriter([writers], period=_LOG_PERIOD))
            built.append(ProgressBar("fine-tuning" if self.recipe.train_backbone else "linear"))
        return [*built, self.stop]

    def train(self) -> None:
        """Train from the start, or from the iteration that `resume` has loaded, to the end.

        Raises:
            UserError: If an image cannot be decoded, or the loss is not finite.
        """
        self.order.start_iteration = self.start_iter
        loader = build_loader(
            self.train_images, batch_sampler=self.order, num_workers=self.num_workers
        )
        self._batches = iter(loader)
        # In evaluation mode, BatchNorm of a frozen backbone is not updated.
        self.parallel_network.train(self.recipe.train_backbone)
        try:
            super().train(self.start_iter, self.max_iter)
        except UserError as error:
            raise as_raised(error) from error
        finally:
            # End the workers now: the garbage collector would take 5 seconds for each.
            del self._batches

    def run_step(self) -> None:
        """Take one training step."""
        start = time.perf_counter()
        images, labels = next(self._batches)
        data_time = time.perf_counter() - start
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        logits = self.parallel_network(images)
        loss = F.cross_entropy(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        correct = topk_correct(logits, labels, (1,))[0]
        value, hits = torch.stack([loss.detach().double(), correct.double()]).tolist()
        if comm.get_world_size() > 1:  # all processes stop after the same step
            self.stop.agreed = max(comm.all_gather(self.stop.received))
        if not math.isfinite(value):
            raise UserError(
                f"the loss is {value} at iteration {self.iter}: give a smaller --lr than "
                f"{self.recipe.base_lr:g}"
            )
        top1 = 100 * hits / len(labels)
        get_event_storage().put_scalars(total_loss=value, train_top1=top1, data_time=data_time)

    def _evaluate(self) -> dict[str, float]:
        if comm.get_world_size() > 1:
            # BatchNorm statistics differ between the processes.
            for buffer in self.network.buffers():
                torch.distributed.broadcast(buffer, src=0)
        self.accuracy = evaluate(self.network, self.val_loader, self.device)
        logger.info("top-1 %.2f %%, top-5 %.2f %%", *self.accuracy.values())
        return {f"val_{name}": value for name, value in self.accuracy.items()}

    def after_train(self) -> None:
        """Run the hooks, with the right iteration also if no step was left to train."""
        self.iter = min(self.iter, self.max_iter)
        super().after_train()

    def _save_now(self) -> None:
        if comm.is_main_process():
            self.save(self.iter + 1)

    def save(self, iteration: int) -> None:
        """Write a checkpoint after `iteration` finished iterations."""
        content = {
            "epoch": iteration // self.order.iterations_per_epoch,
            "state_dict": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "moco_d2": {"iteration": iteration, "identity": self.identity, "files": self.files},
        }
        save_checkpoint(self.output / CHECKPOINT, content, name_it=False)

    def resume(self) -> None:
        """Continue exactly from the checkpoint in the output folder, if it exists.

        Order and augmentation depend only on seed and position, so no generator state is needed.

        Raises:
            UserError: If the checkpoint belongs to a run with other settings (the message names the
                first one), or one of its entries cannot be used.
        """
        path = self.output / CHECKPOINT
        if not path.is_file():
            return
        checkpoint = load_checkpoint(path)
        note_saved(path)
        with continuing(path, "give another --output, or start again without --resume"):
            self._load(path, checkpoint)

    def _load(self, path: Path, checkpoint: dict[str, Any]) -> None:
        """Resume from the content of a checkpoint; see `resume`."""
        state = checkpoint.get("moco_d2")
        if (
            not isinstance(state, dict)
            or not isinstance(identity := state.get("identity"), dict)
            or "iteration" not in state
        ):
            raise UserError(f"{path} is not a checkpoint of this command; give another --output")
        for key, value in self.identity.items():
            if identity.get(key) != value:
                raise UserError(
                    f"{path} belongs to a run with {key} {identity.get(key)!s:.200}, and this run "
                    f"has {value}: give the same, or another --output"
                )
        if state.get("files", self.files) != self.files:
            logger.warning(
                "the image files changed since %s was written: the run goes on with the new ones",
                path,
            )
        iteration = check_count(state["iteration"], "iteration")
        check_tensors(checkpoint.get("state_dict"), self.network.state_dict(), "state_dict")
        check_optimizer(checkpoint.get("optimizer"), self.optimizer)
        self.network.load_state_dict(checkpoint["state_dict"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.start_iter = self.scheduler.last_epoch = iteration
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_lr(), strict=True):
            group["lr"] = lr
