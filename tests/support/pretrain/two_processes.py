"""Run by tests/pretrain/test_two_processes.py as two processes: OUT_FOLDER RUNS.json.

RUNS.json: {name of a run: its overrides as words}. What a rank finds goes to rankN.pth.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import torch
from detectron2.utils import comm
from support.small_network import SmallNetwork

from moco_d2.config.load import load_config
from moco_d2.engine.launch import launch, seed
from moco_d2.pretrain.model import moco, moco_v3
from moco_d2.pretrain.model.dictionary import Queue
from moco_d2.pretrain.model.shuffle_bn import encode_shuffled
from moco_d2.pretrain.model.vit import VITS
from moco_d2.pretrain.pretrainer import Pretrainer

SHARE, SIZE = 3, 4  # images a process, places in the queue


def primitives(rank: int) -> dict:
    """ShuffleBN and the queue on images that are their own number."""
    torch.manual_seed(rank)  # the order has to come from one of the two
    own = torch.arange(rank * SHARE, (rank + 1) * SHARE).float()
    encoded = []

    def encode(images: torch.Tensor) -> torch.Tensor:
        numbers = images.flatten(1)[:, 0]
        encoded.append(numbers.tolist())
        return torch.stack([numbers, -numbers], dim=1)

    embeddings = [
        encode_shuffled(encode, own.reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2)).tolist()
        for _ in range(4)
    ]
    queue = Queue(dim=1, size=SIZE)
    queue.update(None, torch.arange(2.0 * SHARE)[:, None], None)
    return {
        "own": own.tolist(),
        "encoded": encoded,
        "embeddings": embeddings,
        "queue": queue.queue.tolist(),
        "pointer": queue.queue_ptr.tolist(),
    }


class ObservedPretrainer(Pretrainer):
    """Keeps a copy of the model as one step has left it."""

    def after_step(self) -> None:
        super().after_step()
        if self.iter == 0:
            state = self.model.state_dict()
            self.first_step = {name: tensor.clone() for name, tensor in state.items()}


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """In float32, rounding grows a hundredfold in three steps, on some CPUs more."""
    to_single = torch.Tensor.float
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.Tensor.float = to_single
        torch.set_default_dtype(torch.float32)


def train(words: list[str]) -> dict:
    """A whole run in double precision: its losses, and the model after the first step and at the
    end.
    """
    cfg = load_config("moco_v2_R50_200ep.yaml", words)
    is_vit = cfg.MOCO.ENCODER.ARCH in VITS
    build_v3 = moco_v3.build_encoder if is_vit else SmallNetwork.build
    with (
        double_precision(),
        patch.object(moco, "build_encoder", SmallNetwork.build),
        patch.object(moco_v3, "build_encoder", build_v3),
    ):
        seed(cfg)
        trainer = ObservedPretrainer(cfg)
        for encoder in trainer.model.children():
            encoder.register_forward_pre_hook(lambda _, args: (args[0].double(),))
        trainer.resume_or_start(resume=False)
        trainer.train()
    return {
        "first_step": trainer.first_step,
        "losses": [value for value, _ in trainer.storage.history("total_loss").values()],
        "state_dict": trainer.model.state_dict(),
    }


def main(args: argparse.Namespace) -> None:
    rank = comm.get_rank()
    result = primitives(rank)
    result["runs"] = {name: train(words) for name, words in args.runs.items()}
    torch.save(result, args.out / f"rank{rank}.pth")


if __name__ == "__main__":
    arguments = argparse.Namespace(
        out=Path(sys.argv[1]),
        runs=json.loads(Path(sys.argv[2]).read_text()),
        num_gpus=1,
        num_machines=1,
    )
    launch("__main__:main", arguments)
