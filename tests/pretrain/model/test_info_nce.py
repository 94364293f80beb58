import pytest
import torch
import torch.nn.functional as F

from moco_d2.pretrain.model.info_nce import tiled_info_nce

N, C, K = 6, 8, 50


def embeddings(count: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, C, generator=torch.Generator().manual_seed(seed)), dim=1)


def whole(queries, positives, negatives, temperature):
    logits = torch.cat([positives, queries @ negatives], dim=1) / temperature
    labels = torch.zeros(len(queries), dtype=torch.long)
    return F.cross_entropy(logits, labels), logits.argmax(dim=1) == labels


@pytest.mark.parametrize("tile", [1, 7, 25, K, 1000])
@pytest.mark.parametrize("temperature", [0.01, 0.2])
def test_tiles_give_the_loss_and_gradients_of_all_logits(tile, temperature):
    negatives = embeddings(K, 0).T
    found = []
    for function, options in ((whole, {}), (tiled_info_nce, {"tile": tile})):
        queries, keys = embeddings(N, 1).requires_grad_(), embeddings(N, 2)
        keys[:3] = queries.detach()[:3]  # nearest to these
        keys.requires_grad_()
        positives = (queries * keys).sum(dim=1, keepdim=True)
        loss, is_nearest = function(queries, positives, negatives, temperature, **options)
        (3 * loss).backward()
        found.append((loss, queries.grad, keys.grad, is_nearest))
    for all_at_once, in_tiles in zip(*found, strict=True):
        torch.testing.assert_close(in_tiles, all_at_once, rtol=1e-5, atol=1e-5)
    assert found[1][3].any() and not found[1][3].all()


def test_a_loss_that_is_no_number_stays_none():
    queries = embeddings(N, 1)
    queries[2, 0] = torch.nan
    loss, _ = tiled_info_nce(queries, torch.zeros(N, 1), embeddings(K, 0).T, 0.2, tile=7)
    assert loss.isnan()


def test_a_million_keys_need_the_memory_of_a_tile():
    """The logits of 64 queries would take 256 MB, and torch's loss makes several copies of them."""
    size, tile = 10**6, 4096
    negatives = embeddings(size, 0).T
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and not func.is_view:
                largest = max(largest, out.numel())
            return out

    queries = embeddings(64, 1).requires_grad_()
    with Largest():
        tiled_info_nce(queries, torch.ones(64, 1), negatives, 0.2, tile=tile)[0].backward()
    assert largest == 64 * tile
    with torch.no_grad():
        part = torch.cat([torch.ones(64, 1), queries @ negatives], dim=1) / 0.2
        wanted = part.logsumexp(dim=1).mean() - 5
        found, _ = tiled_info_nce(queries, torch.ones(64, 1), negatives, 0.2, tile=tile)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
