import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import nn

from moco_d2.engine.hooks import StopOnSignal
from moco_d2.engine.periodic_saves import PeriodicSaves
from moco_d2.transfer.divergence import DivergenceError
from moco_d2.transfer.train_step import AccumulatingTrainer

HOOKS = {"stop": StopOnSignal(lambda: None), "saver": PeriodicSaves(0, 0)}


class Regression(nn.Module):
    """Two losses over a batch of samples, as Detectron2's models have them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.Linear(5, 1)
        self.dtypes = []

    def forward(self, batch):
        x = torch.stack([sample["image"] for sample in batch])
        y = self.layer(x)
        self.dtypes.append(y.dtype)
        return {"loss_a": y.square().mean(), "loss_b": (y - 1).abs().mean()}


def batches(size, count):
    images = torch.randn(size * count, 5, generator=torch.Generator().manual_seed(1))
    return [[{"image": x} for x in part] for part in images.split(size)]


def train_steps(data, *, steps, build=AccumulatingTrainer, **kwargs):
    """The trainer after some steps, and its storage."""
    model = Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if build is AccumulatingTrainer:
        kwargs |= HOOKS
    trainer = build(model, data, optimizer, **kwargs)
    with EventStorage() as storage:
        for _ in range(steps):
            trainer.run_step()
    return trainer, storage


def assert_same_weights(a, b, **tolerance):
    for one, other in zip(a.model.parameters(), b.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def test_one_pass_is_detectron2s_step_to_the_last_bit():
    ours, storage = train_steps(batches(4, 3), steps=3)
    theirs, expected = train_steps(batches(4, 3), steps=3, build=SimpleTrainer)
    assert_same_weights(ours, theirs, rtol=0, atol=0)
    for name in ("loss_a", "loss_b", "total_loss"):
        assert storage.history(name).latest() == pytest.approx(expected.history(name).latest())
    assert storage.latest().keys() == expected.latest().keys()


def test_passes_add_up_to_the_step_of_the_whole_batch():
    whole, expected = train_steps(batches(6, 4), steps=4)
    parts, storage = train_steps(batches(2, 12), steps=4, passes=3)
    assert_same_weights(parts, whole, rtol=1e-5, atol=1e-6)
    latest = storage.history("total_loss").latest()
    assert latest == pytest.approx(expected.history("total_loss").latest(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_on_any_device(dtype):
    exact, _ = train_steps(batches(4, 3), steps=3)
    mixed, _ = train_steps(batches(4, 3), steps=3, amp_dtype=dtype)
    assert set(mixed.model.dtypes) == {dtype}
    assert all(p.dtype == torch.float32 for p in mixed.model.parameters())
    if dtype == torch.bfloat16:  # the first steps of float16 are spent on finding its scale
        assert_same_weights(mixed, exact, rtol=0.05, atol=0.02)
    assert mixed.grad_scaler.is_enabled() == (dtype == torch.float16)
    assert ("grad_scaler" in mixed.state_dict()) == (dtype == torch.float16)


def test_a_loss_that_is_not_finite_leaves_the_weights_alone():
    data = batches(4, 3)
    data[2][1]["image"] = torch.full((5,), float("nan"))
    good, _ = train_steps(data, steps=2)
    model = Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = AccumulatingTrainer(model, data, optimizer, **HOOKS)
    with EventStorage(), pytest.raises(DivergenceError) as caught:
        for _ in range(3):
            trainer.run_step()
    assert_same_weights(trainer, good, rtol=0, atol=0)
    assert caught.value.losses.keys() == {"loss_a", "loss_b"}
    assert caught.value.bad_annotations == ["the pixels of ? are not finite"]


def test_detectron2s_complaint_about_proposals_is_the_same_to_us():
    class Proposals(Regression):
        def forward(self, batch):
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN.")

    model = Proposals()
    trainer = AccumulatingTrainer(
        model,
        batches(4, 1),
        torch.optim.SGD(model.parameters(), lr=0.1),
        **HOOKS,
    )
    with EventStorage(), pytest.raises(DivergenceError):
        trainer.run_step()
