"""The rehearsal itself: it counts what a GPU would do, and refuses what CUDA refuses."""

import pytest
import torch
from support.rehearsal.device import CudaTensor, rehearsal

from moco_d2.engine.device import fetch

VALUES = pytest.mark.parametrize("values", [False, True], ids=["shapes", "values"])


@VALUES
def test_calls_and_bytes_are_those_of_operators_that_are_no_views(values):
    with rehearsal(values=values) as counted:
        x = torch.zeros(4, 8, device="cuda")
        y = torch.nn.functional.relu(x.T.reshape(-1)[:16])
    assert (x.device, y.shape) == (torch.device("cuda:0"), (16,))
    assert counted.calls == {"zeros": 1, "clone": 1, "relu": 1}
    assert counted.bytes["relu"] == 2 * 16 * 4
    assert not counted.waits
    assert not counted.copies


@VALUES
def test_copies_from_the_host_wait_unless_they_are_non_blocking(values):
    x = torch.ones(3)
    with rehearsal(values=values) as counted:
        pinned = torch.ones(3).pin_memory()
        for source in (x, pinned):
            for non_blocking in (False, True):
                source.to("cuda", non_blocking=non_blocking)
        torch.zeros(3, device="cuda").copy_(x)
        torch.tensor([1.0], device="cuda")
    # (non-blocking, pinned): torch.tensor copies at once, and from new memory
    assert counted.copies == {
        **{(False, False): 3, (True, False): 1},
        **{(False, True): 1, (True, True): 1},
    }
    assert counted.waits.total() == 4


@VALUES
def test_what_the_host_reads_is_a_wait(values):
    with rehearsal(values=values) as counted:
        x = torch.ones(3, device="cuda")
        assert x.sum().item() == (3 if values else 0)
        assert x.tolist() == [1, 1, 1]
        assert bool((x > 0).all())
        torch.zeros(3).copy_(x)
        x[torch.tensor([0, 2])]  # a GPU fetches the indices from the host
    assert counted.waits.total() == 5


@VALUES
def test_a_fetched_tensor_is_a_wait_only_if_the_device_has_nothing_else_to_do(values):
    with rehearsal(values=values) as counted:
        x = torch.ones(3, device="cuda")
        early, late = fetch(x), fetch(x + 1)
        assert not counted.waits
        assert early().tolist() == [1, 1, 1]
        assert not counted.waits
        late()
    assert counted.waits == {"event in moco_d2/engine/device.py wait": 1}


def test_sizes_that_depend_on_values_are_waits_and_right():
    with rehearsal(values=True) as counted:
        x = torch.arange(5, device="cuda")
        found = (x > 2).nonzero().flatten()
        assert (found.shape, x[x > 0].shape) == ((2,), (4,))
        x[found] = 0
        x[x == 4] = 0
        assert counted.waits.total() == 3
        assert x.cpu().equal(torch.tensor([0, 1, 2, 0, 0]))


@VALUES
def test_a_tensor_on_the_cpu_among_those_on_the_device_raises(values):
    with rehearsal(values=values):
        x = torch.ones(3, device="cuda")
        x + torch.tensor(1.0)  # a number may be anywhere
        with pytest.raises(RuntimeError, match=r"add.* mixes tensors on cuda and on the CPU"):
            x + torch.ones(3)
        with pytest.raises(RuntimeError, match="mixes tensors"):
            torch.cat([torch.ones(3), x])


def test_modules_and_autocast_are_those_of_the_device():
    model = torch.nn.Linear(4, 2)
    with rehearsal(), torch.autocast("cuda", dtype=torch.bfloat16):
        model.to("cuda")
        out = model(torch.ones(3, 4, device="cuda"))
    assert all(isinstance(p, CudaTensor) for p in model.parameters())
    assert (out.device.type, out.dtype) == ("cuda", torch.bfloat16)


def test_outside_of_a_rehearsal_there_is_no_device():
    with rehearsal():
        x = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="after the rehearsal"):
        x + 1
