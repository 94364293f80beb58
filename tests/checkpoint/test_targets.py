"""The line ``use:`` of a conversion, run as it is printed."""

import shlex
import types

import pytest
import safetensors.torch
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY

import moco_d2.resnet
from moco_d2.checkpoint.convert import convert, summary
from moco_d2.checkpoint.mapping import (
    Architecture,
    build_torchvision,
    to_detectron2,
    without_values,
)
from moco_d2.checkpoint.targets import TARGETS
from moco_d2.errors import UserError

ARCHITECTURES = (
    Architecture(18, width_factor=0.25),
    Architecture(50, width_per_group=4, groups=8),  # ResNeXt
    Architecture(50, width_per_group=16),  # as a wide ResNet: other 3x3 convolutions
    Architecture(50, width_per_group=8, groups=2, width_factor=0.25),
    Architecture(50, width_factor=0.25),
    Architecture(50, width_factor=0.25, stride_in_1x1=True),
)
# What the frameworks cannot build, by their sources.
IMPOSSIBLE = {
    ("timm", ARCHITECTURES[0]): "timm does not build",
    ("torchvision", ARCHITECTURES[5]): "where torchvision has it in the 3x3",
    ("timm", ARCHITECTURES[3]): "timm does not build",
    ("timm", ARCHITECTURES[4]): "timm does not build",
    ("timm", ARCHITECTURES[5]): "where timm has it in the 3x3",
    ("mmdet", ARCHITECTURES[2]): "mmdetection does not build",
}


def fill(network: torch.nn.Module) -> None:
    """Give a network without values some that show where none arrive."""
    for tensor in network.to_empty(device="cpu").state_dict().values():
        tensor.fill_(float("nan") if tensor.is_floating_point() else 0)


def run_torchvision(line: str, architecture: Architecture) -> dict[str, torch.Tensor]:
    scope = {"torch": torch, "torchvision": torchvision, "moco_d2": moco_d2}
    exec(line, scope | {"safetensors": safetensors}, scope)
    return scope["network"].state_dict()


def run_timm(line: str, architecture: Architecture) -> dict[str, torch.Tensor]:
    """Stands for timm, which is not installed: its arguments, its reader, and its strictness."""

    def create_model(name, *, checkpoint_path, num_classes, cardinality=1, base_width=64):
        assert num_classes == 0
        with without_values():
            network = getattr(torchvision.models, name)(
                groups=cardinality, width_per_group=base_width
            )
        network.fc = torch.nn.Identity()
        fill(network)
        if checkpoint_path.endswith(".safetensors"):
            state = safetensors.torch.load_file(checkpoint_path)
        else:
            state = torch.load(checkpoint_path, weights_only=True)["state_dict"]
        network.load_state_dict(state, strict=True)
        return network

    return eval(line, {"timm": types.SimpleNamespace(create_model=create_model)}).state_dict()


def run_mmdet(line: str, architecture: Architecture) -> dict[str, torch.Tensor]:
    """Stands for mmdetection, which is not installed: its arguments for a backbone, and its reader
    of ``init_cfg``.
    """
    scope: dict = {}
    exec(line, scope)
    options = scope["backbone"]
    kind, style = options.pop("type"), options.pop("style")
    file = options.pop("init_cfg")["checkpoint"]
    assert style == ("caffe" if architecture.stride_in_1x1 else "pytorch")
    base = options.pop("base_channels", 64)
    assert options.pop("stem_channels", base) == base
    # Its ResNeXt has 3x3 convolutions of floor(planes * (base_width / base_channels)) * groups.
    width = options.pop("base_width", base) * 64 / base if kind == "ResNeXt" else 64
    built = Architecture(
        options.pop("depth"), int(width), options.pop("groups", 1), base / 64, style == "caffe"
    )
    assert not options
    with without_values():
        network = build_torchvision(built)
    network.fc = torch.nn.Identity()
    fill(network)
    network.load_state_dict(torch.load(file, weights_only=True)["state_dict"], strict=True)
    return network.state_dict()


def run_detectron2(
    line: str, architecture: Architecture, settings: list[str]
) -> dict[str, torch.Tensor]:
    """Detectron2 and the registered builders, with the words of the printed lines."""
    cfg = get_cfg()
    words = shlex.split(" ".join([line, *settings]))
    cfg.merge_from_list([*words, "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", "0"])
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    build = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)
    with without_values():
        backbone = build(cfg, ShapeSpec(channels=3))
    fill(backbone)
    left = DetectionCheckpointer(backbone).load(cfg.MODEL.WEIGHTS)
    assert "provenance" in left
    return backbone.state_dict()


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=str)
def architecture(request) -> Architecture:
    return request.param


@pytest.fixture(scope="module")
def source(architecture, tmp_path_factory):
    """A file of the architecture, and the tensors in it."""
    file = tmp_path_factory.mktemp("source") / "source.pth"
    torch.manual_seed(0)
    state = build_torchvision(architecture).state_dict()
    tensors = {n: t for n, t in state.items() if "fc." not in n and "num_batches" not in n}
    if architecture.stride_in_1x1:
        named = {to_detectron2(name): tensor for name, tensor in tensors.items()}
        pixels = {"format": "RGB", "pixel_mean": [0.0] * 3, "pixel_std": [1.0] * 3}
        provenance = {"preprocessing": pixels, "stride_in_1x1": True}
        torch.save(
            {"model": {"backbone." + n: t for n, t in named.items()}, "provenance": provenance},
            file,
        )
    else:
        torch.save(tensors, file)
    yield file, tensors
    file.unlink()


@pytest.mark.parametrize(
    ("to", "suffix"), [(t.name, suffix) for t in TARGETS.values() for suffix in t.suffixes]
)
def test_the_printed_use_loads_every_tensor(to, suffix, architecture, source, tmp_path):
    file, tensors = source
    weights = tmp_path / f"it's my file{suffix}"  # quoted as a shell and Python need it
    if reason := IMPOSSIBLE.get((to, architecture)):
        with pytest.raises(UserError, match=reason):
            convert(file, weights, to=to)
        assert not weights.exists()
        return
    lines = summary(convert(file, weights, to=to), weights, to).splitlines()
    (use,) = (line.removeprefix("use: ") for line in lines if line.startswith("use: "))
    if to == "detectron2":
        settings = lines[lines.index("Detectron2 settings for these weights:") + 1 :]
        loaded = run_detectron2(use, architecture, settings)
        tensors = {to_detectron2(name): tensor for name, tensor in tensors.items()}
    else:
        run = {"torchvision": run_torchvision, "timm": run_timm, "mmdet": run_mmdet}[to]
        loaded = run(use, architecture)
    loaded = {n: t for n, t in loaded.items() if "fc." not in n and "num_batches" not in n}
    assert loaded.keys() == tensors.keys()
    assert [n for n in tensors if not torch.equal(loaded[n], tensors[n])] == []


def test_detectron2_gets_no_file_of_which_it_would_load_nothing(tmp_path):
    """Stock Detectron2 matches no name of a safetensors file, which cannot ask for its heuristics.

    With torch 2.15, which reads such files, it would train a random network after a warning.
    """
    torch.save(build_torchvision(Architecture(18)).state_dict(), tmp_path / "source.pth")
    with pytest.raises(UserError, match=r"detectron2 weights end in \.pth or \.pkl"):
        convert(tmp_path / "source.pth", tmp_path / "w.safetensors")
