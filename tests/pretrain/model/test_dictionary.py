import itertools

import pytest
import torch
import torch.nn.functional as F

from moco_d2.errors import UserError
from moco_d2.pretrain.model.dictionary import EndToEnd, MemoryBank, Queue, build_dictionary

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
        queue.update(None, new, None)
        for key in new:
            columns[arrived % SIZE] = key
            arrived += 1
        assert torch.equal(queue.queue.T, torch.stack(columns))
        assert queue.queue_ptr.tolist() == [arrived % SIZE]


def test_columns_have_unit_length_from_the_start():
    queue = Queue(dim=DIM, size=SIZE)
    for seed in range(3):
        torch.testing.assert_close(queue.queue.norm(dim=0), torch.ones(SIZE))
        queue.update(None, keys(3, seed), None)
    assert torch.linalg.matrix_rank(Queue(dim=DIM, size=SIZE).queue) == DIM  # random, not alike


def test_is_updated_in_place_and_after_backward():
    queue = Queue(dim=DIM, size=SIZE)
    memory = queue.queue.data_ptr()
    queries = keys(3, 0).requires_grad_()
    logits, _ = queue.contrast(queries, keys(3, 1), None)
    logits.logsumexp(dim=1).sum().backward()
    queue.update(None, keys(3, 1), None)
    assert queue.queue.data_ptr() == memory


def test_updating_before_backward_is_an_error_and_not_a_wrong_gradient():
    queue = Queue(dim=DIM, size=SIZE)
    logits, _ = queue.contrast(keys(3, 0).requires_grad_(), keys(3, 1), None)
    queue.update(None, keys(3, 1), None)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.logsumexp(dim=1).sum().backward()


def test_logits_are_the_own_key_first_then_the_queue():
    queue = Queue(dim=DIM, size=SIZE)
    queries, own = keys(3, 0), keys(3, 1)
    logits, labels = queue.contrast(queries, own, None)
    assert labels.tolist() == [0, 0, 0]
    assert logits.shape == (3, 1 + SIZE)
    for n, column in itertools.product(range(3), range(1 + SIZE)):
        other = own[n] if column == 0 else queue.queue[:, column - 1]
        torch.testing.assert_close(logits[n, column], torch.dot(queries[n], other))


def test_a_memory_bank_contrasts_with_the_own_entry_and_random_others():
    bank = MemoryBank(dim=DIM, size=SIZE, num_images=5, momentum=0.5)
    queries, index = keys(3, 0), torch.tensor([4, 0, 2])
    draws = set()
    for _ in range(40):
        logits, labels = bank.contrast(queries, None, index)
        assert logits.shape == (3, 1 + SIZE) and labels.tolist() == [0, 0, 0]
        torch.testing.assert_close(logits[:, 0], (queries * bank.bank[index]).sum(dim=1))
        similarities = queries @ bank.bank.T
        nearest = (logits[:, 1:, None] - similarities[:, None]).abs().min(dim=2)
        assert nearest.values.max() < 1e-6  # every negative is an entry,
        assert (nearest.indices == nearest.indices[0]).all()  # the same for all queries
        draws.add(tuple(nearest.indices[0].tolist()))
    assert len(draws) > 30
    assert set().union(*draws) == set(range(5))


def test_a_memory_bank_mixes_the_seen_images_representations():
    bank = MemoryBank(dim=DIM, size=SIZE, num_images=5, momentum=0.75)
    before, queries = bank.bank.clone(), keys(2, 0)
    bank.update(queries, None, torch.tensor([3, 1]))
    for image, query in ((3, queries[0]), (1, queries[1])):
        mixed = 0.75 * before[image] + 0.25 * query
        torch.testing.assert_close(bank.bank[image], mixed / mixed.norm())
    for image in (0, 2, 4):
        assert torch.equal(bank.bank[image], before[image])


@pytest.mark.parametrize("index", [None, torch.tensor([-1, 0, 1])])
def test_a_memory_bank_needs_to_know_the_images(index):
    bank = MemoryBank(dim=DIM, size=SIZE, num_images=5)
    with pytest.raises(
        UserError, match=r"needs the index of every image.* MOCO\.DICTIONARY\.NAME Queue"
    ):
        bank.contrast(keys(3, 0), None, index)


def test_end_to_end_contrasts_within_the_batch_and_sends_gradients_to_the_keys():
    queries, own = keys(3, 0), keys(3, 1).requires_grad_()
    logits, labels = EndToEnd().contrast(queries, own, None)
    assert labels.tolist() == [0, 1, 2]
    for n, k in itertools.product(range(3), range(3)):
        torch.testing.assert_close(logits[n, k], torch.dot(queries[n], own[k]))
    F.cross_entropy(logits, labels).backward()
    assert own.grad.abs().min() > 0
    assert not EndToEnd().state_dict()


@pytest.mark.parametrize("name", ["Queue", "MemoryBank"])
def test_unknown_names_and_empty_dictionaries_are_refused(name):
    with pytest.raises(KeyError, match="Bag"):
        build_dictionary("Bag", dim=DIM, size=SIZE, num_images=5)
    with pytest.raises(UserError, match=r"MOCO\.DICTIONARY\.SIZE must be at least 1, got 0"):
        build_dictionary(name, dim=DIM, size=0, num_images=5)
