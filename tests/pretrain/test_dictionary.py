import itertools

import pytest
import torch
import torch.nn.functional as F

from moco_d2.errors import UserError
from moco_d2.pretrain.dictionary import Queue, build_dictionary

DIM, SIZE = 4, 7


def keys(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, DIM, generator=generator), dim=1)


@pytest.mark.parametrize("batches", [[1] * 9, [3] * 5, [7] * 3, [2, 5, 1, 6], [8], [23, 4, 15]])
def test_holds_the_newest_keys_whatever_the_batch(batches):
    queue = Queue(dim=DIM, size=SIZE)
    columns = list(queue.queue.T.clone())  # key number i belongs in column i mod K
    arrived = 0
    for seed, count in enumerate(batches):
        new = keys(count, seed)
        queue.update(new)
        for key in new:
            columns[arrived % SIZE] = key
            arrived += 1
        assert torch.equal(queue.queue.T, torch.stack(columns))
        assert queue.queue_ptr.tolist() == [arrived % SIZE]


def test_columns_have_unit_length_from_the_start():
    queue = Queue(dim=DIM, size=SIZE)
    for seed in range(3):
        torch.testing.assert_close(queue.queue.norm(dim=0), torch.ones(SIZE))
        queue.update(keys(3, seed))
    assert torch.linalg.matrix_rank(Queue(dim=DIM, size=SIZE).queue) == DIM  # random, not alike


def test_is_updated_in_place_and_after_backward():
    queue = Queue(dim=DIM, size=SIZE)
    memory = queue.queue.data_ptr()
    queries = keys(3, 0).requires_grad_()
    loss = queue.logits(queries, keys(3, 1)).logsumexp(dim=1).sum()
    loss.backward()
    queue.update(keys(3, 1))
    assert queue.queue.data_ptr() == memory


def test_updating_before_backward_is_an_error_and_not_a_wrong_gradient():
    queue = Queue(dim=DIM, size=SIZE)
    loss = queue.logits(keys(3, 0).requires_grad_(), keys(3, 1)).logsumexp(dim=1).sum()
    queue.update(keys(3, 1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_logits_are_the_own_key_first_then_the_queue():
    queue = Queue(dim=DIM, size=SIZE)
    queries, own = keys(3, 0), keys(3, 1)
    logits = queue.logits(queries, own)
    assert logits.shape == (3, 1 + SIZE)
    for n, column in itertools.product(range(3), range(1 + SIZE)):
        other = own[n] if column == 0 else queue.queue[:, column - 1]
        torch.testing.assert_close(logits[n, column], torch.dot(queries[n], other))


def test_unknown_name_and_empty_queue_are_refused():
    with pytest.raises(UserError, match=r"MOCO\.DICTIONARY\.NAME 'Bag' is not one of Queue"):
        build_dictionary("Bag", dim=DIM, size=SIZE)
    with pytest.raises(UserError, match=r"MOCO\.DICTIONARY\.SIZE 0"):
        build_dictionary("Queue", dim=DIM, size=0)
