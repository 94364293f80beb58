"""The device that a user names is the one that runs; a GPU of the test is a counted one."""

import types

import pytest
import torch
from detectron2.utils import comm

from moco_d2.config.load import load_config
from moco_d2.engine.device import choose_device, find_device, take_own_gpu
from moco_d2.errors import UserError


class Gpus:
    """What torch says about the GPUs of this process."""

    def __init__(self, monkeypatch):
        self.count, self.current = 0, 0
        for name, function in {
            "is_available": lambda: self.count > 0,
            "device_count": lambda: self.count,
            "current_device": lambda: self.current,
            "set_device": self.set,
            "get_device_properties": lambda index: types.SimpleNamespace(uuid=f"GPU-{index}"),
        }.items():
            monkeypatch.setattr(torch.cuda, name, function)

    def set(self, device: torch.device | int) -> None:
        self.current = device if isinstance(device, int) else device.index


@pytest.fixture
def gpus(monkeypatch):
    return Gpus(monkeypatch)


def test_a_named_gpu_is_the_current_one(gpus):
    gpus.count = 2
    assert find_device("cuda:1", setting="--device") == torch.device("cuda:1")
    assert gpus.current == 1
    assert find_device("cuda", setting="--device") == torch.device("cuda:1")
    assert find_device("cpu", setting="--device") == torch.device("cpu")


@pytest.mark.parametrize(
    ("count", "processes", "name", "message"),
    [
        (2, 1, "cuda:2", r"MODEL.DEVICE is cuda:2, but this process sees 2 GPU\(s\)"),
        (0, 1, "cuda:1", "MODEL.DEVICE is cuda:1, but this machine has no usable GPU"),
        (2, 2, "cuda:1", "MODEL.DEVICE is cuda:1, but each of the 2 processes takes a GPU of its"),
        (2, 1, "gpu", "MODEL.DEVICE 'gpu' is unknown: give cpu, cuda or cuda:INDEX"),
    ],
)
def test_a_device_that_cannot_be_is_refused(gpus, monkeypatch, count, processes, name, message):
    gpus.count = count
    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    cfg = load_config("moco_v2_R50_200ep.yaml", ["MODEL.DEVICE", name])
    with pytest.raises(UserError, match=message):
        choose_device(cfg)
    assert gpus.current == 0


def test_a_config_of_a_gpu_runs_on_a_cpu(gpus):
    cfg = load_config("moco_v2_R50_200ep.yaml", [])
    assert cfg.MODEL.DEVICE == "cuda"
    choose_device(cfg)
    assert cfg.MODEL.DEVICE == "cpu"


@pytest.mark.parametrize(
    ("visible", "local_rank", "processes", "taken"),
    [
        (4, 3, 4, 3),  # torchrun: every process sees all GPUs of its machine
        (4, 1, 2, 1),
        (1, 3, 4, 0),  # SLURM's --gpus-per-task: every process sees its own one as number 0
        (2, 3, 4, 0),
    ],
)
def test_a_process_takes_its_own_gpu(gpus, visible, local_rank, processes, taken):
    gpus.count = visible
    assert take_own_gpu(local_rank, processes) == f"GPU-{taken}"
    assert gpus.current == taken


def test_a_gpu_without_a_uuid_is_named_by_its_machine_and_visibility(gpus, monkeypatch):
    gpus.count = 1
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: object())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    second = take_own_gpu(1, 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert take_own_gpu(2, 4) != second
