"""InfoNCE against many negatives without a matrix of all logits (paper equation 1).

At K = 65,536 and N = 256, each copy of the logits takes 67 MB, and a step reads and writes some ten
of them; at a million keys it would take 1 GB. Here tiles of the negatives are visited once, with
the running maximum and sum of a softmax (Milakov and Gimelshein, arXiv:1805.02867). The gradient of
a loss is known in this pass up to a factor, so the backward pass only multiplies.

Legend: N queries, C embedding dimension, K negatives.
"""

from typing import Any

import torch

#: Negatives at a time. MoCo computes the logits of fewer at once.
TILE = 16384


def tiled_info_nce(
    queries: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor,
    temperature: float,
    *,
    tile: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean loss, and whether the positive is the nearest key of each query, (N,).

    Args:
        queries: (N, C).
        positives: Similarity of each query to its positive, (N, 1).
        negatives: (C, K). They get no gradient, and may change before the backward pass.
        temperature: T in equation 1.
        tile: Number of negatives at a time; None means TILE.
    """
    losses, hardest = _TiledInfoNCE.apply(  # type: ignore[no-untyped-call] # torch has no type
        queries, positives, negatives, temperature, tile or TILE
    )
    return losses.mean(), (positives.detach() / temperature >= hardest).flatten()


class _TiledInfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes positional arguments
        ctx: Any,
        queries: torch.Tensor,
        positives: torch.Tensor,
        negatives: torch.Tensor,
        temperature: float,
        tile: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the losses (N, 1) and the largest logit of a negative (N, 1)."""
        scaled, positive = queries / temperature, positives / temperature
        top, total = positive, torch.ones_like(positive)
        pulled = torch.zeros_like(queries)  # sum of the negatives, weighted with exp(logit - top)
        hardest = torch.full_like(positive, -torch.inf)
        for part in negatives.split(tile, dim=1):
            logits = scaled @ part
            hardest = torch.maximum(hardest, logits.amax(dim=1, keepdim=True))
            higher = torch.maximum(top, hardest)
            shrunk = (top - higher).exp_()
            weights = logits.sub_(higher).exp_()
            total = total * shrunk + weights.sum(dim=1, keepdim=True)
            pulled = torch.addmm(pulled * shrunk, weights, part.T)
            top = higher
        share = (positive - top).exp_() / total
        ctx.save_for_backward(pulled / (total * temperature), (share - 1) / temperature)
        ctx.mark_non_differentiable(hardest)
        return top + total.log() - positive, hardest

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[Any, ...]:
        of_queries, of_positives = ctx.saved_tensors
        return grad * of_queries, grad * of_positives, None, None, None
