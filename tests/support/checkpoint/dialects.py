"""The same network under the names and in the layouts of other projects."""

import re
from typing import Any

import numpy as np
import torch
from support.checkpoint.pieces import batch_norm, linear
from support.checkpoint.reference import State

_DEEP_STEM = ((3, 32), (32, 32), (32, 64))  # channels of three 3x3 convolutions


def indexed(state: State) -> State:
    """Names of ``nn.Sequential(*list(resnet.children())[:-1])``."""
    children = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    numbers = {child: str(i) for i, child in enumerate(children)}
    return {
        f"{numbers[child]}.{rest}": tensor
        for (child, _, rest), tensor in ((name.partition("."), t) for name, t in state.items())
    }


def transformers_names(state: State) -> State:
    """Names of ``ResNetModel`` in Hugging Face transformers."""

    def name(module: str) -> str:
        if module in ("conv1", "bn1"):
            return "embedder.embedder." + {"c": "convolution", "b": "normalization"}[module[0]]
        stage, block, *layer = module.split(".")
        kind, number = ".".join(layer).rstrip("0123"), int(layer[-1][-1])
        if kind == "downsample.":
            inner = ("shortcut.convolution", "shortcut.normalization")[number]
        else:
            part = {"conv": "convolution", "bn": "normalization"}[kind]
            inner = f"layer.{number - 1}.{part}"
        return f"encoder.stages.{int(stage[-1]) - 1}.layers.{block}.{inner}"

    return {
        f"{name(module)}.{leaf}": tensor
        for (module, _, leaf), tensor in ((key.rpartition("."), t) for key, t in state.items())
    }


def haiku(state: State) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and state of DeepMind's ResNet50, a haiku module with TensorFlow's layouts."""
    parameters: dict[str, Any] = {}
    statistics: dict[str, Any] = {}

    def name(module: str) -> str:
        if module in ("conv1", "bn1"):
            return {"conv1": "initial_conv", "bn1": "initial_batchnorm"}[module]
        stage, block, *inner = module.split(".")
        layer = {
            **{f"conv{i + 1}": f"conv_{i}" for i in range(3)},
            **{f"bn{i + 1}": f"batchnorm_{i}" for i in range(3)},
            "downsample.0": "shortcut_conv",
            "downsample.1": "shortcut_batchnorm",
        }[".".join(inner)]
        return f"block_group_{int(stage[-1]) - 1}/~/block_{block}/~/{layer}"

    for key, tensor in state.items():
        module, _, leaf = key.rpartition(".")
        path = f"res_net50/~/{name(module)}"
        array = tensor.numpy()
        if tensor.ndim == 4:
            parameters[path] = {"w": np.ascontiguousarray(array.transpose(2, 3, 1, 0))}
        elif leaf in ("weight", "bias"):
            leaf = {"weight": "scale", "bias": "offset"}[leaf]
            parameters.setdefault(path, {})[leaf] = array.reshape(1, 1, 1, -1)
        elif leaf in ("running_mean", "running_var"):
            average = array.reshape(1, 1, 1, -1)
            statistics[f"{path}/~/{leaf.removeprefix('running_')}_ema"] = {
                "average": average,
                "counter": np.array(1000, np.int32),
                "hidden": average * 0.5,
            }
    for head in ("projector", "predictor"):
        parameters[f"{head}/linear"] = {"w": np.zeros((8, 8), np.float32), "b": np.zeros(8)}
        parameters[f"{head}/batch_norm"] = {"scale": np.ones((1, 8)), "offset": np.zeros((1, 8))}
    parameters["classifier"] = {"w": np.zeros((2048, 4), np.float32), "b": np.zeros(4)}
    return parameters, statistics


def _simclr_v2_name(name: str) -> str:
    """Of Separius' network: everything is a Sequential."""
    name = re.sub(r"^conv1\.", "net.0.0.", name)
    name = re.sub(r"^bn1\.", "net.0.1.0.", name)
    name = re.sub(r"^layer(\d)\.", r"net.\1.blocks.", name)
    name = re.sub(r"\.downsample\.0\.", ".projection.shortcut.", name)
    name = re.sub(r"\.downsample\.1\.", ".projection.bn.0.", name)
    name = re.sub(r"\.conv(\d)\.", lambda m: f".net.{2 * int(m[1]) - 2}.", name)
    return re.sub(r"\.bn(\d)\.", lambda m: f".net.{2 * int(m[1]) - 1}.0.", name)


def deep_stem(q: State) -> State:
    state = {name: tensor for name, tensor in q.items() if not name.startswith("conv1.")}
    for i, (inputs, outputs) in enumerate(_DEEP_STEM):
        state[f"conv1.{3 * i}.weight"] = torch.randn(outputs, inputs, 3, 3)
        state |= batch_norm(f"conv1.{3 * i + 1}", outputs) if i < 2 else {}
    return state | linear("fc", 2048, 4)


def tensorpack(state: State, scope: str = "") -> dict[str, np.ndarray]:
    content = {}
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        module = re.sub(r"^conv1$", "conv0", module)
        module = re.sub(r"^bn1$", "conv0_bn", module)
        module = re.sub(
            r"^layer(\d)\.(\d+)\.", lambda m: f"group{int(m[1]) - 1}/block{m[2]}/", module
        )
        module = re.sub(r"bn(\d)$", r"conv\1_bn", module)
        module = module.replace("downsample.0", "convshortcut")
        module = module.replace("downsample.1", "convshortcut_bn")
        array = tensor.numpy()
        if tensor.ndim == 4:
            leaf, array = "W", array.transpose(2, 3, 1, 0)
        else:
            leaf = {
                "weight": "gamma",
                "bias": "beta",
                "running_mean": "mean/EMA",
                "running_var": "variance/EMA",
            }[leaf]
        content[f"{scope}{module}/{leaf}:0"] = array
    return content


def simclr_v2_names(state: State) -> State:
    """Separius' port of SimCLR v2."""
    return {_simclr_v2_name(name): tensor for name, tensor in state.items()}


def simclr_v2_selective(state: State) -> State:
    """The same with selective kernels, each for a block's second convolution and its BatchNorm."""
    selective = {}
    for torchvision_name, weight in state.items():
        name, tensor = _simclr_v2_name(torchvision_name), weight
        if name.startswith("net.0."):
            continue
        name = re.sub(r"(blocks\.\d+\.net)\.2\.", r"\1.2.main_conv.0.", name)
        name = re.sub(r"(blocks\.\d+\.net)\.3\.0\.", r"\1.2.main_conv.1.0.", name)
        name = re.sub(r"(blocks\.\d+\.net)\.4\.", r"\1.3.", name)
        name = re.sub(r"(blocks\.\d+\.net)\.5\.0\.", r"\1.4.0.", name)
        name = name.replace("projection.shortcut.", "projection.shortcut.2.")
        if ".main_conv." in name and tensor.ndim:
            tensor = torch.cat([tensor, tensor])
        selective[name] = tensor
        if ".main_conv.0." in name:
            mixing = name.replace("main_conv.0.weight", "mixing_conv")
            selective |= {f"{mixing}.0.weight": torch.randn(32, len(tensor) // 2, 1, 1)}
            selective |= batch_norm(f"{mixing}.1.0", 32)
            selective |= {f"{mixing}.2.weight": torch.randn(len(tensor), 32, 1, 1)}
    for i, (inputs, outputs) in enumerate(_DEEP_STEM):
        selective[f"net.0.{2 * i}.weight"] = torch.randn(outputs, inputs, 3, 3)
        selective |= batch_norm(f"net.0.{2 * i + 1}.0", outputs)
    return selective


def caffe2(state: State) -> dict[str, np.ndarray]:
    """Names of Detectron 1; of BatchNorm only scale and offset."""
    content = {}
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        if leaf not in ("weight", "bias"):
            continue  # merged into the two
        leaf = "w" if tensor.ndim == 4 else {"weight": "bn_s", "bias": "bn_b"}[leaf]
        if module in ("conv1", "bn1"):
            key = "conv1" if module == "conv1" else "res_conv1"
        else:
            stage, block, *inner = module.split(".")
            branch = "1" if inner[0] == "downsample" else "2" + "abc"[int(inner[0][-1]) - 1]
            key = f"res{int(stage[-1]) + 1}_{block}_branch{branch}"
        content[f"{key}_{leaf}"] = tensor.numpy()
    return content


def pycls_names(state: State) -> State:
    renamed = {}
    for torchvision_name, tensor in state.items():
        name = re.sub(r"^(conv|bn)1\.", r"stem.\1.", torchvision_name)
        name = re.sub(r"^layer(\d)\.(\d+)\.", lambda m: f"s{m[1]}.b{int(m[2]) + 1}.", name)
        name = name.replace(".downsample.0.", ".proj.").replace(".downsample.1.", ".bn.")
        name = re.sub(r"\.conv(\d)\.", lambda m: f".f.{'abc'[int(m[1]) - 1]}.", name)
        name = re.sub(r"\.bn(\d)\.", lambda m: f".f.{'abc'[int(m[1]) - 1]}_bn.", name)
        renamed[name] = tensor
    return renamed
