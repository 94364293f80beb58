"""Run by test_two_processes.py under torchrun, once a rank: OUT_FOLDER KEY VALUE ..."""

import argparse
import sys
from pathlib import Path

import torch
from detectron2.utils import comm

from moco_d2.config import load_config
from moco_d2.launch import launch, seed
from moco_d2.pretrain.dictionary import Queue
from moco_d2.pretrain.engine import Pretrainer
from moco_d2.pretrain.shuffle_bn import encode_shuffled

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
    queue.update(own[:, None])
    return {
        "own": own.tolist(),
        "encoded": encoded,
        "embeddings": embeddings,
        "queue": queue.queue.tolist(),
        "pointer": queue.queue_ptr.tolist(),
    }


def main(args: argparse.Namespace) -> None:
    rank = comm.get_rank()
    result = primitives(rank)
    cfg = load_config("moco_v2_R50_200ep.yaml", args.opts)
    seed(cfg)
    trainer = Pretrainer(cfg)
    queues = [trainer.model.dictionary.queue.tolist()]
    trainer.resume_or_start(resume=False)
    trainer.train()
    queues.append(trainer.model.dictionary.queue.tolist())
    result["queues"] = queues
    result["state_dict"] = trainer.model.state_dict()
    result["losses"] = [value for value, _ in trainer.storage.history("total_loss").values()]
    torch.save(result, args.out / f"rank{rank}.pth")


if __name__ == "__main__":
    arguments = argparse.Namespace(
        out=Path(sys.argv[1]), opts=sys.argv[2:], num_gpus=1, num_machines=1
    )
    launch("__main__:main", arguments)
