"""Where the keys of the contrastive loss come from (paper section 3.1 and Figure 2).

A dictionary turns queries and keys into logits and is told about new keys once the step is over.
Updating it last is what makes a copy of it needless: until then, the backward pass still reads it.

Legend: N batch of one process, C embedding, K dictionary size, W world size.
"""

import torch
import torch.nn.functional as F
from torch import nn

from moco_d2.errors import UserError
from moco_d2.pretrain.shuffle_bn import all_gather


class Queue(nn.Module):
    """MoCo's dictionary: the K newest keys, first in, first out.

    Buffers (saved in checkpoints under the official names): ``queue`` (C, K), columns of unit
    length, and ``queue_ptr`` (1,), the column that the next key overwrites. Any batch size fits; it
    wraps around.
    """

    def __init__(self, *, dim: int, size: int):
        """
        Args:
            dim: C.
            size: K.
        """
        super().__init__()
        self.register_buffer("queue", F.normalize(torch.randn(dim, size), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def logits(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Similarities (N, 1 + K) of `queries` (N, C) to their own key (column 0) and to the queue;
        see paper Alg. 1.
        """
        positive = (queries * keys).sum(dim=1, keepdim=True)
        return torch.cat([positive, queries @ self.queue], dim=1)

    @torch.no_grad()
    def update(self, keys: torch.Tensor) -> None:
        """Enqueue the `keys` (N, C) of every process, dequeue the oldest; after backward."""
        keys = all_gather(keys)
        size = self.queue.shape[1]
        columns = (self.queue_ptr + torch.arange(len(keys), device=keys.device)) % size
        # More keys than places: only the newest K survive, each in the column it would end in.
        self.queue[:, columns[-size:]] = keys[-size:].T.to(self.queue.dtype)
        self.queue_ptr.add_(len(keys)).remainder_(size)


DICTIONARIES = {"Queue": Queue}


def build_dictionary(name: str, *, dim: int, size: int) -> nn.Module:
    """The dictionary called `name` in MOCO.DICTIONARY.NAME.

    Raises:
        UserError: there is none of that name, or it would hold no key.
    """
    if name not in DICTIONARIES:
        raise UserError(f"MOCO.DICTIONARY.NAME {name!r} is not one of {', '.join(DICTIONARIES)}")
    if size < 1:
        raise UserError(f"MOCO.DICTIONARY.SIZE {size} holds no key; the paper's queue holds 65536")
    return DICTIONARIES[name](dim=dim, size=size)
