import copy

import pytest
import torch
from torch import nn

from moco_d2.engine.one_pass import update_in_one_pass


def network():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    return layers.to(memory_format=torch.channels_last)


def sgd(model, **options):
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, **options}
    return torch.optim.SGD(model.parameters(), **options)


def train(model, optimizer, steps, gradients):
    for step in range(steps):
        for i, p in enumerate(model.parameters()):
            torch.manual_seed(100 * step + i)
            p.grad = gradients(torch.randn(p.shape), p)
        optimizer.step()


@pytest.mark.parametrize("options", [{}, {"nesterov": True}, {"momentum": 0}])
@pytest.mark.parametrize(
    "gradients",
    [
        lambda values, p: torch.empty_like(p).copy_(values),  # the layout of the parameter
        lambda values, p: values,  # another layout, which torch's kernel does not notice
    ],
)
def test_steps_are_those_of_sgd(options, gradients):
    model = network()
    plain = copy.deepcopy(model)
    optimizer = sgd(model, **options)
    update_in_one_pass(optimizer)
    train(model, optimizer, 3, gradients)
    train(plain, sgd(plain, **options), 3, gradients)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert all(group["fused"] for group in optimizer.param_groups)


def test_the_momentum_of_a_file_may_have_another_layout():
    model = network()
    optimizer = sgd(model)
    train(model, optimizer, 2, lambda values, p: values)
    saved = copy.deepcopy(optimizer.state_dict())  # as of a run before this choice existed
    for state in saved["state"].values():
        state["momentum_buffer"] = state["momentum_buffer"].contiguous()
    plain = copy.deepcopy(model)
    results = []
    for network_ in (model, plain):
        again = sgd(network_)
        if network_ is model:
            update_in_one_pass(again)
        again.load_state_dict(copy.deepcopy(saved))
        assert bool(again.param_groups[0]["fused"]) is (network_ is model)
        train(network_, again, 1, lambda values, p: values)
        results.append(list(network_.parameters()))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_other_optimizers_and_types_stay_as_they_are():
    model = network().double()
    for optimizer in (sgd(model), torch.optim.AdamW(model.parameters())):
        update_in_one_pass(optimizer)
        assert not optimizer.param_groups[0]["fused"]
