"""The paper's three mechanisms for the keys of the contrastive loss (section 3.1, Figure 2).

A dictionary turns queries and keys into logits, and takes them in at the end of the step. Until
then the backward pass still reads it, so an earlier update would need a copy. All processes update
their dictionary with the same embeddings, so it is equal in all processes without an exchange.

Legend: N batch of one process, C embedding dimension, K dictionary size, W world size, I images.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from moco_d2.engine.exchange import all_gather, world_size
from moco_d2.errors import UserError


class Dictionary(nn.Module):
    """Base class of the dictionaries.

    Attributes:
        key_encoder: The network that encodes the key view. "momentum" is a moving average of the
            query encoder. "query" is the query encoder itself, which is also trained through the
            keys. None means that the dictionary has a key for every image.
        size: K, the number of negatives that are in no batch, 0 if there are none.
    """

    key_encoder: str | None
    size: int = 0

    def pairs(
        self, queries: torch.Tensor, keys: torch.Tensor | None, index: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the logits of `contrast` are computed from, if `size` is not 0.

        Returns:
            Similarities to the positives (N, 1), and the negatives (C, K), which have no gradient.
        """
        raise NotImplementedError

    def contrast(
        self, queries: torch.Tensor, keys: torch.Tensor | None, index: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the similarities of the queries to the keys, and the columns of the positives.

        Args:
            queries: Local queries (N, C) of unit length.
            keys: Keys (W N, C) of all processes, of unit length, in rank order.
            index: Index in the dataset of each local image, (N,).

        Returns:
            Logits before the temperature (N, number of keys) and labels (N,). With negatives of
            `pairs`, the positive is in column 0 (paper Algorithm 1).
        """
        positive, negatives = self.pairs(queries, keys, index)
        logits = torch.cat([positive, queries @ negatives], dim=1)
        return logits, torch.zeros(len(queries), dtype=torch.long, device=queries.device)

    def update(
        self, queries: torch.Tensor, keys: torch.Tensor | None, index: torch.Tensor | None
    ) -> None:
        """Take in the arguments of `contrast`, detached, after the backward pass."""


class Queue(Dictionary):
    """MoCo's dictionary (Figure 2c): the K newest keys, first in, first out.

    Its buffers have the official names: ``queue`` (C, K) has columns of unit length, and
    ``queue_ptr`` (1,) is the column that the next key overwrites. K need not be a multiple of the
    batch size.
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
        self.size = size
        self.register_buffer("queue", F.normalize(torch.randn(dim, size), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def pairs(
        self, queries: torch.Tensor, keys: torch.Tensor | None, index: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys = _needed(keys, "keys")
        positive = (queries * _own(keys, len(queries))).sum(dim=1, keepdim=True)
        return positive, self.queue

    @torch.no_grad()
    def update(
        self, queries: torch.Tensor, keys: torch.Tensor | None, index: torch.Tensor | None
    ) -> None:
        """Enqueue the keys of all processes and dequeue the oldest keys."""
        keys = _needed(keys, "keys")
        size = self.queue.shape[1]
        columns = (self.queue_ptr + torch.arange(len(keys), device=keys.device)) % size
        # If there are more than K keys, only the newest K stay, in the columns they would end in.
        self.queue[:, columns[-size:]] = keys[-size:].T.to(self.queue.dtype)
        self.queue_ptr.add_(len(keys)).remainder_(size)


class MemoryBank(Dictionary):
    """InstDisc's dictionary (Figure 2b; Wu et al., arXiv:1805.01978): an entry for every image.

    An entry is the representation from when the image was last seen. The positive is the image's
    own entry. The negatives are K random entries, which are drawn in every step for all queries of
    a process. The buffer ``bank`` (I, C) has rows of unit length. Neither a second view nor
    ShuffleBN is needed, because the positive comes from another batch.
    """

    key_encoder = None
    bank: torch.Tensor

    def __init__(self, *, dim: int, size: int, num_images: int, momentum: float = 0.5):
        """
        Args:
            dim: C.
            size: K, the number of negatives.
            num_images: I.
            momentum: Fraction of the old representation in the new one. InstDisc's default is 0.5.
        """
        super().__init__()
        self.size = size
        self.momentum = momentum
        self.register_buffer("bank", F.normalize(torch.randn(num_images, dim), dim=1))
        self._has_indices = False  # whether a batch has shown that the dataset gives them

    def pairs(
        self, queries: torch.Tensor, keys: torch.Tensor | None, index: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the similarity to the image's own entry, and the negatives.

        Raises:
            UserError: If the dataset gives no index.
        """
        # The first batch decides, because reading the values of each would wait for a GPU.
        if index is None or not (self._has_indices or int(index.min()) >= 0):
            raise UserError(
                "the memory bank needs the index of every image, which this dataset does not give: "
                "use a folder, a list or a registered dataset, or set MOCO.DICTIONARY.NAME Queue"
            )
        self._has_indices = True
        drawn = torch.randint(len(self.bank), (self.size,), device=queries.device)
        positive = (queries * self.bank[index]).sum(dim=1, keepdim=True)
        return positive, self.bank[drawn].T

    @torch.no_grad()
    def update(
        self, queries: torch.Tensor, keys: torch.Tensor | None, index: torch.Tensor | None
    ) -> None:
        """Move the entries of the images of all processes towards their new representations."""
        index, queries = all_gather(_needed(index, "indices")), all_gather(queries)
        mixed = self.momentum * self.bank[index] + (1 - self.momentum) * queries
        self.bank[index] = F.normalize(mixed, dim=1)


class EndToEnd(Dictionary):
    """The batch itself as the dictionary (Figure 2a): K is the batch of all processes.

    Gradients flow through the keys to all processes.
    """

    key_encoder = "query"

    def contrast(
        self, queries: torch.Tensor, keys: torch.Tensor | None, index: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (N, W N); the positive of query i of rank r is in column r N + i."""
        first = _rank() * len(queries)
        labels = torch.arange(first, first + len(queries), device=queries.device)
        return queries @ _needed(keys, "keys").T, labels


def _rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def _needed(tensor: torch.Tensor | None, name: str) -> torch.Tensor:
    """Return `tensor`, or raise a ValueError if it is None."""
    if tensor is None:
        raise ValueError(f"this dictionary needs {name}")
    return tensor


def _own(keys: torch.Tensor, batch: int) -> torch.Tensor:
    """Return the local part (N, C) of the keys (W N, C) of all processes."""
    return keys[_rank() * batch : (_rank() + 1) * batch]


DICTIONARIES = {"Queue": Queue, "MemoryBank": MemoryBank, "EndToEnd": EndToEnd}


def build_dictionary(
    name: str, *, dim: int, size: int, num_images: int, bank_momentum: float = 0.5
) -> Dictionary:
    """Build the dictionary with a name of MOCO.DICTIONARY.NAME.

    Raises:
        UserError: If it would have no key.
        KeyError: If `name` is not in DICTIONARIES.
    """
    kind = DICTIONARIES[name]
    if kind is EndToEnd:
        return EndToEnd()
    if size < 1:
        raise UserError(f"MOCO.DICTIONARY.SIZE must be at least 1, got {size}; the paper has 65536")
    if kind is MemoryBank:
        return MemoryBank(dim=dim, size=size, num_images=num_images, momentum=bank_momentum)
    return Queue(dim=dim, size=size)
