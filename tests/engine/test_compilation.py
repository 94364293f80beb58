import logging

import pytest
import torch

from moco_d2.engine import compilation
from moco_d2.engine.compilation import fastest_convolutions, should_compile

GPU = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch):
    """Function: compute capability -> a machine with Triton, a C compiler and such a GPU."""

    def build(capability):
        monkeypatch.setattr(compilation.importlib.util, "find_spec", lambda name: name)
        monkeypatch.setattr(compilation.shutil, "which", lambda name: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return build


def test_auto_compiles_on_a_gpu_and_not_on_a_cpu(gpu):
    gpu((9, 0))
    assert should_compile(None, GPU)
    assert not should_compile(None, torch.device("cpu"))
    assert should_compile(True, torch.device("cpu"))
    assert not should_compile(False, GPU)


@pytest.mark.parametrize(
    "module, name, says",
    [
        ("shutil", "which", "no C compiler, which Triton needs: install gcc"),
        ("importlib.util", "find_spec", "the package triton is not installed"),
    ],
)
def test_the_log_says_why_a_gpu_does_without(gpu, monkeypatch, caplog, module, name, says):
    gpu((9, 0))
    monkeypatch.setattr(f"moco_d2.engine.compilation.{module}.{name}", lambda _: None)
    with caplog.at_level(logging.INFO):
        assert not should_compile(None, GPU)
    assert says in caplog.text


def test_an_old_gpu_is_named(gpu, caplog):
    gpu((6, 1))
    with caplog.at_level(logging.INFO):
        assert not should_compile(None, GPU)
    assert "capability 6.1, and Triton needs 7.0" in caplog.text


@pytest.mark.parametrize("deterministic", [False, True])
def test_cudnn_searches_only_in_the_block_and_not_in_deterministic_mode(monkeypatch, deterministic):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", deterministic)
    before = torch.backends.cudnn.benchmark
    with pytest.raises(KeyError), fastest_convolutions():
        assert torch.backends.cudnn.benchmark is not deterministic
        raise KeyError
    assert torch.backends.cudnn.benchmark is before
