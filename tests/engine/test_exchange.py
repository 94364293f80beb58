import types

import torch

from moco_d2.engine import exchange


def test_gathering_survives_a_backend_that_copies_memory_as_it_lies(monkeypatch):
    """NCCL's all_gather. With gloo (tests/pretrain/test_two_processes.py) the layout is no
    matter.
    """

    def copy_memory(outputs, x):
        for output in outputs:
            count = (x.numel(),)
            output.as_strided(count, (1,)).copy_(x.as_strided(count, (1,)))

    monkeypatch.setattr(exchange, "world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather", copy_memory)
    for layout in (torch.contiguous_format, torch.channels_last):
        images = torch.randn(2, 3, 4, 5).contiguous(memory_format=layout)
        assert torch.equal(exchange.all_gather(images), torch.cat([images, images]))


def test_processes_act_on_what_all_have_read_and_never_on_their_own(monkeypatch):
    """Before the first exchange is read, too: one of them would stop or save alone."""
    monkeypatch.setattr(exchange, "world_size", lambda: 2)
    monkeypatch.setattr(exchange, "all_gather", lambda row: torch.cat([row, row]))
    stop = types.SimpleNamespace(received=15, agreed=None)
    saver = types.SimpleNamespace(overdue=True, agreed=None)
    read = exchange.exchange_step({"loss": 2.0}, 0.5, stop, saver, "cpu")
    assert (stop.agreed, saver.agreed) == (0, False)
    assert read() == ({"loss": 2.0}, 0.5)
    assert (stop.agreed, saver.agreed) == (15, True)
    exchange.exchange_step({"loss": 2.0}, 0.5, stop, saver, "cpu")
    assert (stop.agreed, saver.agreed) == (15, True)
