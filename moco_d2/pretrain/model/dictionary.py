"""Where the keys of the contrastive loss come from: the paper's three mechanisms (section 3.1,
Figure 2).

A dictionary turns queries and keys into logits, and is told about them once the step is over.
Updating it last is what makes a copy of it needless: until then, the backward pass still reads it.
Every process has the same dictionary without its being sent around: all update it with the same
embeddings.

Legend: N batch of one process, C embedding dimension, K dictionary size, W world size, I images.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from moco_d2.errors import UserError
from moco_d2.pretrain.model.shuffle_bn import all_gather, world_size


class Dictionary(nn.Module):
    """What the three have in common.

    Attributes:
        key_encoder: what encodes the key view. "momentum": a moving average of the query encoder;
            "query": the query encoder itself, trained through the keys as well; None: nothing does,
            the dictionary has a key for every image.
    """

    key_encoder: str | None

    def contrast(
        self, queries: torch.Tensor, keys: torch.Tensor | None, index: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Similarities of `queries` to the keys, and which of them is each one's own.

        Args:
            queries: (N, C) of unit length, of this process.
            keys: (W N, C) of unit length, of all processes in rank order.
            index: (N,), which image of the data set each query is.

        Returns:
            logits before the temperature (N, number of keys) and labels (N,).
        """
        raise NotImplementedError

    def update(
        self, queries: torch.Tensor, keys: torch.Tensor | None, index: torch.Tensor | None
    ) -> None:
        """Take in what `contrast` was given, detached; after the backward pass."""


class Queue(Dictionary):
    """MoCo's (Figure 2c): the K newest keys, first in, first out.

    Buffers (saved in checkpoints under the official names): ``queue`` (C, K), columns of unit
    length, and ``queue_ptr`` (1,), the column that the next key overwrites. Any batch size fits; it
    wraps around.
    """

    key_encoder = "momentum"
    queue: torch.Tensor
    queue_ptr: torch.Tensor

    def __init__(self, *, dim: int, size: int):
        """
        Args:
            dim: C.
            size: K.
        """
        super().__init__()
        self.register_buffer("queue", F.normalize(torch.randn(dim, size), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def contrast(
        self, queries: torch.Tensor, keys: torch.Tensor | None, index: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, 1 + K): the own key in column 0, then the queue; paper Algorithm 1."""
        keys = _needed(keys, "keys")
        positive = (queries * _own(keys, len(queries))).sum(dim=1, keepdim=True)
        logits = torch.cat([positive, queries @ self.queue], dim=1)
        return logits, torch.zeros(len(queries), dtype=torch.long, device=queries.device)

    @torch.no_grad()
    def update(
        self, queries: torch.Tensor, keys: torch.Tensor | None, index: torch.Tensor | None
    ) -> None:
        """Enqueue the keys of every process, dequeue the oldest."""
        keys = _needed(keys, "keys")
        size = self.queue.shape[1]
        columns = (self.queue_ptr + torch.arange(len(keys), device=keys.device)) % size
        # More keys than places: only the newest K survive, each in the column it would end in.
        self.queue[:, columns[-size:]] = keys[-size:].T.to(self.queue.dtype)
        self.queue_ptr.add_(len(keys)).remainder_(size)


class MemoryBank(Dictionary):
    """InstDisc's (Figure 2b; Wu et al., arXiv:1805.01978): a representation of every image, from
    when it was last seen.

    The positive is the image's own entry; the negatives are K entries drawn at random, anew in
    every step, one draw for all queries of a process. Buffer: ``bank`` (I, C), rows of unit length.
    Neither a second view nor ShuffleBN is needed: the positive comes from another batch.
    """

    key_encoder = None
    bank: torch.Tensor

    def __init__(self, *, dim: int, size: int, num_images: int, momentum: float = 0.5):
        """
        Args:
            dim: C.
            size: K, negatives a step.
            num_images: I.
            momentum: share of the old representation in the new one; InstDisc's default 0.5.
        """
        super().__init__()
        self.size = size
        self.momentum = momentum
        self.register_buffer("bank", F.normalize(torch.randn(num_images, dim), dim=1))

    def contrast(
        self, queries: torch.Tensor, keys: torch.Tensor | None, index: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, 1 + K): the image's own entry in column 0, then the negatives."""
        if index is None or int(index.min()) < 0:
            raise UserError(
                "the memory bank has a place for every image, and this data set does not number "
                "them: use a folder, a list or a registered data set, or MOCO.DICTIONARY.NAME Queue"
            )
        drawn = torch.randint(len(self.bank), (self.size,), device=queries.device)
        positive = (queries * self.bank[index]).sum(dim=1, keepdim=True)
        logits = torch.cat([positive, queries @ self.bank[drawn].T], dim=1)
        return logits, torch.zeros(len(queries), dtype=torch.long, device=queries.device)

    @torch.no_grad()
    def update(
        self, queries: torch.Tensor, keys: torch.Tensor | None, index: torch.Tensor | None
    ) -> None:
        """Move the entries of all processes' images towards their new representations."""
        index, queries = all_gather(_needed(index, "indices")), all_gather(queries)
        mixed = self.momentum * self.bank[index] + (1 - self.momentum) * queries
        self.bank[index] = F.normalize(mixed, dim=1)


class EndToEnd(Dictionary):
    """The batch is the dictionary (Figure 2a): K is the global batch, and gradients flow through
    the keys, to all processes. Nothing is kept.
    """

    key_encoder = "query"

    def contrast(
        self, queries: torch.Tensor, keys: torch.Tensor | None, index: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, W N): the own key of query i of rank r in column r N + i."""
        first = _rank() * len(queries)
        labels = torch.arange(first, first + len(queries), device=queries.device)
        return queries @ _needed(keys, "keys").T, labels


def _rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def _needed(tensor: torch.Tensor | None, name: str) -> torch.Tensor:
    """Return `tensor`; raise ValueError where there is none, but the dictionary works with it."""
    if tensor is None:
        raise ValueError(f"this dictionary needs {name}")
    return tensor


def _own(keys: torch.Tensor, batch: int) -> torch.Tensor:
    """This process's part of all `keys` (W N, C): (N, C)."""
    return keys[_rank() * batch : (_rank() + 1) * batch]


DICTIONARIES = {"Queue": Queue, "MemoryBank": MemoryBank, "EndToEnd": EndToEnd}


def build_dictionary(
    name: str, *, dim: int, size: int, num_images: int, bank_momentum: float = 0.5
) -> Dictionary:
    """The dictionary called `name` in MOCO.DICTIONARY.NAME.

    Raises:
        UserError: it would hold no key.
        KeyError: `name` is not in DICTIONARIES.
    """
    kind = DICTIONARIES[name]
    if kind is EndToEnd:
        return EndToEnd()
    if size < 1:
        raise UserError(f"MOCO.DICTIONARY.SIZE {size} holds no key; the paper's queue holds 65536")
    if kind is MemoryBank:
        return MemoryBank(dim=dim, size=size, num_images=num_images, momentum=bank_momentum)
    return Queue(dim=dim, size=size)
