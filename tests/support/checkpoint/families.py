"""Checkpoint files of networks with random weights, written as other projects write theirs.

One function a file: it gets the names and tensors of a query and a key network and returns what the
project would save. `FILES` has them all, numbered as in the table of families; a family that comes
in several shapes (a released file, a training file, a variant that cannot be converted) has several
files. What has to come of a file is said beside it, from what the project's own code does.
"""

import argparse
import datetime
import pathlib
import re
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.checkpoint.containers import (
    foreign,
    foreign_importable,
    npz,
    pickled,
    pickled_by_numpy_1,
    pickled_by_python_2,
    safetensors,
    torch_legacy,
    torch_zip,
)
from support.checkpoint.dialects import (
    caffe2,
    deep_stem,
    haiku,
    indexed,
    pycls_names,
    simclr_v2_names,
    simclr_v2_selective,
    tensorpack,
    transformers_names,
)
from support.checkpoint.pieces import (
    batch_norm,
    lightning,
    linear,
    projector,
    queue,
    sgd,
    under,
    without_trackers,
)
from support.checkpoint.reference import (
    KEY,
    MSRA,
    NARROW,
    QUARTER,
    QUERY,
    R18,
    R50,
    STRIDE_IN_1X1,
    Network,
    State,
)


@dataclass(frozen=True)
class Input:
    """Pixels as Detectron2's config describes them."""

    format: str
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]


IMAGENET = Input("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
IMAGENET_BGR = Input("BGR", (103.53, 116.28, 123.675), (57.375, 57.12, 58.395))
UNIT = Input("RGB", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
MSRA_INPUT = Input("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class File:
    """A file to convert, and what has to come of it.

    Args:
        row: number in the table of families.
        title: whose file it is.
        name: of the file, as the project calls it.
        content: query state, key state -> what is saved.
        network: in it.
        save: content, path -> the file.
        refused: pattern of the reason in the refusal; None: it is converted.
        key: it holds a key (momentum, target, teacher) network too, under ``branch="key"``.
        input: what the network expects; None if nothing in the file tells.
        caveat: pattern of what the report has to warn of.
        half: the weights are float16.
    """

    row: int
    title: str
    name: str
    content: Callable[[State, State], Any] = field(repr=False)
    network: Network = NARROW
    save: Callable[[Any, Path], None] = torch_zip
    refused: str | None = None
    key: bool = False
    input: Input | None = IMAGENET
    caveat: str | None = None
    half: bool = False

    @property
    def id(self) -> str:
        return f"{self.row:02d}-{self.content.__name__}"

    def write(self, folder: Path) -> Path:
        path = folder / self.name
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            content = self.content(self.query, self.key_state)
        with foreign_importable():
            self.save(content, path)
        return path

    @property
    def query(self) -> State:
        """The weights in the file, under torchvision names."""
        state = self.network.state(QUERY)
        if self.half:
            state = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
        return state

    @property
    def key_state(self) -> State:
        return self.network.state(KEY)


FILES: list[File] = []


def _file(row: int, title: str, name: str, **arguments: Any) -> Callable[[Any], Any]:
    def register(content: Callable[[State, State], Any]) -> Callable[[State, State], Any]:
        FILES.append(File(row, title, name, content, **arguments))
        return content

    return register


# What refusals have to say.
DEEP_STEM = r"(?i:deep stem)"
RESNET_D = r"(?i)resnet(-?50)?-?d\b|average"
SMALL_STEM = r"3x3"
LAB = r"(?i)\bLab\b"
SELECTIVE_KERNEL = r"(?i:selective.kernel)"
ANTI_ALIASING = r"anti-aliasing"
OTHER_LAYERS = r"another architecture"
NO_STATISTICS = r"(?i)BatchNorm statistics|running_mean"


@_file(1, "MoCo v1/v2", "checkpoint_0199.pth.tar", network=R50, save=torch_legacy, key=True)
def moco(q, k):
    head = linear("fc.0", 2048, 8) | linear("fc.2")
    state = under("encoder_q.", q | head) | under("encoder_k.", k | head) | queue()
    return {
        "epoch": 200,
        "arch": "resnet50",
        "state_dict": OrderedDict(under("module.", state)),
        "optimizer": sgd(q),
    }


@_file(1, "MoCo, DistributedDataParallel stripped", "moco_stripped.pth.tar", key=True)
def moco_stripped(q, k):
    head = linear("fc", 2048, 8)
    return {"state_dict": under("encoder_q.", q | head) | under("encoder_k.", k | head) | queue()}


@_file(2, "PCL v1/v2", "PCL_v2_epoch200.pth.tar", save=torch_legacy, key=True)
def pcl(q, k):
    return moco(q, k)


def _moco_v3_head() -> State:
    return (
        linear("fc.0", 2048, 8, bias=False)
        | batch_norm("fc.1", 8)
        | linear("fc.3", bias=False)
        | batch_norm("fc.4", affine=False)
    )


@_file(3, "MoCo v3 R50", "r-50-1000ep.pth.tar", key=True)
def moco_v3(q, k):
    state = (
        under("base_encoder.", q | _moco_v3_head())
        | under("momentum_encoder.", k | _moco_v3_head())
        | projector("predictor", 8)
    )
    return {
        "epoch": 1000,
        "arch": "resnet50",
        "state_dict": under("module.", state),
        "optimizer": sgd(q),
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 10},
    }


@_file(4, "SimSiam", "checkpoint_0099.pth.tar")
def simsiam(q, k):
    head = (
        linear("fc.0", 2048, 8, bias=False)
        | batch_norm("fc.1", 8)
        | linear("fc.3", 8, 8, bias=False)
        | batch_norm("fc.4", 8)
        | linear("fc.6")
        | batch_norm("fc.7", affine=False)
    )
    state = under("encoder.", q | head) | projector("predictor", 4)
    return {
        "epoch": 100,
        "arch": "resnet50",
        "state_dict": under("module.", state),
        "optimizer": sgd(q),
    }


def _swav(q: State) -> State:
    features = q["layer4.0.conv3.weight"].shape[0]
    state = q | projector("projection_head", features) | linear("prototypes", bias=False)
    return under("module.", state)


@_file(5, "SwAV, released", "swav_800ep_pretrain.pth.tar", save=torch_legacy)
def swav(q, k):
    return OrderedDict(_swav(q))


@_file(5, "SwAV, every width scaled (w2 .. w5)", "swav_RN50w2_400ep.pth.tar", network=QUARTER)
def swav_scaled(q, k):
    return _swav(q)


@_file(5, "DeepCluster-v2, released", "deepclusterv2_800ep_pretrain.pth.tar")
def deepcluster_v2(q, k):
    state = q | projector("projection_head", 2048)
    state |= {f"prototypes.prototypes{i}.weight": torch.randn(8, 4) for i in range(3)}
    return under("module.", state)


@_file(6, "SwAV, training", "checkpoint.pth.tar")
def swav_training(q, k):
    return {
        "epoch": 100,
        "state_dict": _swav(q),
        "optimizer": sgd(q),
        "amp": {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 5}},
    }


@_file(
    7,
    "BYOL of DeepMind, saved again as plain dicts",
    "pretrain_res50x1_plain.pkl",
    save=pickled,
    key=True,
    caveat=r"SAME",
)
def byol_plain(q, k):
    (online, online_state), (target, target_state) = haiku(q), haiku(k)
    return {
        "experiment_state": {
            "online_params": online,
            "target_params": target,
            "online_state": online_state,
            "target_state": target_state,
        },
        "step": 1000,
        "rng": np.zeros(2, np.uint32),
    }


_ExperimentState = namedtuple(
    "_ExperimentState",
    ["online_params", "target_params", "online_state", "target_state", "opt_state"],
)


class _Frozen(dict):
    """Pickled by calling its class with a dict, as haiku's."""

    def __reduce__(self):
        return type(self), (dict(self),)


@_file(
    7,
    "BYOL of DeepMind",
    "pretrain_res50x1.pkl",
    save=pickled_by_numpy_1,
    refused=r"byol\.byol_experiment|haiku\._src",
)
def byol(q, k):
    frozen = foreign("haiku._src.data_structures.FlatMapping", _Frozen)
    experiment = foreign("byol.byol_experiment._ByolExperimentState", _ExperimentState)
    content = byol_plain(q, k)
    parts = {name: frozen(part) for name, part in content["experiment_state"].items()}
    content["experiment_state"] = experiment(**parts, opt_state=None)
    return content


@_file(8, "byol-convert", "pretrain_res50x1.pth.tar")
def byol_convert(q, k):
    return without_trackers(q) | linear("fc", 2048, 4)


@_file(9, "BYOL of ssl-transfer", "BYOL.pth")
def byol_ssl_transfer(q, k):
    return {"state_dict": q | linear("fc", 2048, 4)}


@_file(10, "BYOL of yaox12, training", "resnet50_ckpt_299.pth.tar", key=True)
def byol_yaox12(q, k):
    state = (
        under("online_network.encoder.", indexed(q))
        | projector("online_network.projetion.net", 2048)  # sic
        | under("target_network.encoder.", indexed(k))
        | projector("target_network.projetion.net", 2048)
        | projector("predictor.net", 4)
    )
    return {
        "config": {"model": {"backbone": {"type": "resnet50"}}, "stage": "train"},
        "epoch": 299,
        "steps": 93_000,
        "model": OrderedDict(under("module.", state)),
        "optimizer": sgd(q),
        "amp": {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 5}},
    }


@_file(10, "BYOL of yaox12, released", "resnet50_byol_imagenet2012.pth.tar")
def byol_yaox12_released(q, k):
    # Its reader takes the first 318 values: a torchvision network with its classifier last.
    return {"online_backbone": OrderedDict(q | linear("fc", 2048, 4))}


@_file(11, "BYOL of lucidrains, the network", "improved-net.pt")
def byol_lucidrains_network(q, k):
    return q | linear("fc", 2048, 4)


@_file(11, "BYOL of lucidrains, the learner", "learner.pt", key=True)
def byol_lucidrains(q, k):
    fc = linear("fc", 2048, 4)
    return (
        under("net.", q | fc)
        | under("online_encoder.net.", q | fc)
        | projector("online_encoder.projector", 2048)
        | under("target_encoder.net.", k | fc)
        | projector("target_encoder.projector", 2048)
        | projector("online_predictor", 4)
    )


@_file(12, "SimCLR v1 of tonylins", "resnet50-1x.pth", input=None)
def simclr_v1(q, k):
    return {"state_dict": q | linear("fc", 2048, 4)}


def _simclr_v2_file(state: State) -> dict[str, State]:
    head = linear("layers.0", 2048, 8, bias=False) | batch_norm("layers.1", 8)
    return {"resnet": state | linear("fc", 2048, 4), "head": head}


@_file(13, "SimCLR v2 of Separius", "r50_1x_sk0.pth", input=UNIT)
def simclr_v2(q, k):
    return _simclr_v2_file(simclr_v2_names(q))


@_file(
    13,
    "SimCLR v2 of Separius, selective kernels",
    "r50_1x_sk1.pth",
    refused=f"{SELECTIVE_KERNEL}|{DEEP_STEM}",
)
def simclr_v2_sk(q, k):
    return _simclr_v2_file(simclr_v2_selective(q))


@_file(14, "SimCLR of sthalles", "checkpoint_0200.pth.tar", network=R18)
def simclr_sthalles(q, k):
    head = linear("fc.0", 512, 8) | linear("fc.2")
    return {
        "epoch": 200,
        "arch": "resnet18",
        "state_dict": under("backbone.", q | head),
        "optimizer": sgd(q),
    }


@_file(14, "SimCLR of sthalles, older", "model.pth", network=R18)
def simclr_sthalles_older(q, k):
    return under("features.", indexed(q)) | linear("l1", 512, 8) | linear("l2")


@_file(15, "Barlow Twins, released", "resnet50.pth")
def barlow_twins(q, k):
    return q


@_file(15, "Barlow Twins, training", "checkpoint.pth")
def barlow_twins_training(q, k):
    state = under("backbone.", q) | projector("projector", 2048) | batch_norm("bn", affine=False)
    return {"epoch": 1000, "model": under("module.", state), "optimizer": sgd(q)}


@_file(16, "VICReg, backbone", "resnet50.pth")
def vicreg(q, k):
    return q


@_file(16, "VICRegL, training", "model.pth")
def vicregl_training(q, k):
    state = (
        under("backbone.", q)
        | projector("projector", 2048)
        | projector("maps_projector", 2048)
        | linear("classifier", 2048, 4)
    )
    return {"epoch": 300, "model": under("module.", state), "optimizer": sgd(q)}


@_file(17, "DINO R50, backbone", "dino_resnet50_pretrain.pth")
def dino(q, k):
    return q


def _dino(student: State, teacher: State) -> dict[str, Any]:
    head = projector("head.mlp", 2048) | {
        "head.last_layer.weight_g": torch.ones(8, 1),
        "head.last_layer.weight_v": torch.randn(8, 4),
    }
    return {
        "student": student | under("module.", head),
        "teacher": teacher | under("module." if "module." in next(iter(teacher)) else "", head),
        "optimizer": sgd(student),
        "epoch": 800,
        "args": argparse.Namespace(arch="resnet50", lr=0.03, momentum_teacher=0.996),
        "dino_loss": {"center": torch.randn(1, 8)},
        "fp16_scaler": {"scale": 65536.0, "growth_factor": 2.0},
    }


@_file(17, "DINO R50, training", "dino_resnet50_pretrain_full_checkpoint.pth", key=True)
def dino_training(q, k):
    return _dino(under("module.backbone.", q), under("module.backbone.", k))


@_file(18, "DenseCL, released", "densecl_r50_imagenet_200ep.pth")
def densecl(q, k):
    return {"state_dict": OrderedDict(q), "author": "OpenSelfSup"}


@_file(18, "DetCo, released", "detco_200ep_AA.pkl", save=torch_legacy)
def detco(q, k):
    return {"state_dict": OrderedDict(q), "author": "OpenSelfSup"}


def _mmcv(state: State, q: State) -> dict[str, Any]:
    meta = {"mmcv_version": "1.0.3", "time": "Tue Oct 20 2020", "config": "model = dict()\n"}
    return {
        "meta": {**meta, "epoch": 200, "iter": 1_000_000},
        "state_dict": OrderedDict(state),
        "optimizer": sgd(q),
    }


@_file(19, "OpenSelfSup and DenseCL, training", "epoch_200.pth", save=torch_legacy, key=True)
def openselfsup(q, k):
    neck = linear("1.mlp.0", 2048, 8) | linear("1.mlp.2") | linear("1.mlp2.0", 8)
    state = (
        queue()
        | {"queue2": torch.randn(16, 32), "queue2_ptr": torch.zeros(1, dtype=torch.long)}
        | under("encoder_q.", under("0.", q) | neck)
        | under("encoder_k.", under("0.", k) | neck)
        | under("backbone.", q)
    )
    return _mmcv(state, q)


@_file(19, "OpenSelfSup BYOL, training", "epoch_300.pth", key=True)
def openselfsup_byol(q, k):
    neck = projector("1", 2048)
    state = (
        under("online_net.", under("0.", q) | neck)
        | under("target_net.", under("0.", k) | neck)
        | under("backbone.", q)
        | projector("head.predictor", 4)
    )
    return _mmcv(state, q)


def _mmselfsup(q: State, k: State) -> dict[str, Any]:
    neck = linear("mlp.0", 2048, 8) | linear("mlp.2")
    return {
        "meta": {
            "epoch": 200,
            "iter": 1_000_000,
            "cfg": "model = dict(type='MoCo')\n",
            "seed": 0,
            "experiment_name": "mocov2_resnet50",
            "time": "20220825_000000",
            "mmengine_version": "0.1.0",
            "dataset_meta": {},
        },
        "state_dict": OrderedDict(
            queue()
            | under("backbone.", q)
            | under("neck.", neck)
            | under("encoder_k.module.0.", k)
            | under("encoder_k.module.1.", neck)
            | {"encoder_k.steps": torch.tensor(1000)}
        ),
    }


@_file(20, "mmselfsup and mmpretrain, released", "mocov2_resnet50.pth", network=R50, key=True)
def mmselfsup(q, k):
    return _mmselfsup(q, k)


@_file(20, "mmselfsup and mmpretrain, training", "epoch_200.pth", refused=r"HistoryBuffer")
def mmselfsup_training(q, k):
    buffer = foreign("mmengine.logging.history_buffer.HistoryBuffer", object)()
    buffer._log_history = np.zeros(4)
    return {
        **_mmselfsup(q, k),
        "message_hub": {"log_scalars": OrderedDict({"train/loss": buffer}), "runtime_info": {}},
        "optimizer": sgd(q),
    }


@_file(21, "PixPro, training", "ckpt_epoch_100.pth", key=True)
def pixpro(q, k):
    state = (
        under("encoder.", q)
        | projector("projector.linear1", 2048)
        | under("encoder_k.", k)
        | projector("projector_k.linear1", 2048)
        | {"value_transform.weight": torch.randn(8, 8, 1, 1)}
    )
    return {
        "opt": argparse.Namespace(arch="resnet50", pixpro_p=2, output_dir="output"),
        "model": under("module.", state),
        "optimizer": sgd(q),
        "scheduler": {"last_epoch": 100},
        "epoch": 100,
    }


@_file(22, "SoCo", "ckpt_epoch_100.pth", key=True)
def soco(q, k):
    neck = {f"neck.lateral_convs.{i}.weight": torch.randn(8, 2**i * 256, 1, 1) for i in range(4)}
    neck |= {f"neck.fpn_convs.{i}.weight": torch.randn(8, 8, 3, 3) for i in range(4)}
    heads = neck | linear("head.shared_fcs.0") | linear("head.shared_fcs.1")
    return {
        "opt": argparse.Namespace(arch="resnet50"),
        "model": under("module.", under("encoder.", q) | heads),
        "model_ema": under("encoder.", k) | heads,
        "optimizer": sgd(q),
        "epoch": 100,
    }


@_file(23, "PyContrast", "InfoMin_800.pth", key=True)
def pycontrast(q, k):
    head = linear("head.0", 2048, 8) | linear("head.2") | linear("head_jig.fc1", 2048, 4)
    return {
        "model": under("module.", under("encoder.", q) | head),
        "contrast": {"memory": torch.randn(32, 4), "params": torch.tensor([1.0, 0.07])},
        "optimizer": sgd(q),
        "epoch": 800,
        "model_ema": under("encoder.", k) | head,
    }


@_file(23, "PyContrast CMC", "CMC_240.pth", refused=LAB)
def pycontrast_cmc(q, k):
    state = {}
    for encoder, channels in (("encoder1.", slice(0, 1)), ("encoder2.", slice(1, 3))):
        state |= under(encoder, {**q, "conv1.weight": q["conv1.weight"][:, channels].clone()})
    state |= linear("head1.0", 2048, 8) | linear("head2.0", 2048, 8)
    return {
        "model": under("module.", state),
        "contrast": {"memory_1": torch.randn(32, 4), "memory_2": torch.randn(32, 4)},
        "optimizer": sgd(q),
        "epoch": 240,
    }


@_file(24, "bl0/moco", "ckpt_epoch_200.pth", key=True)
def bl0_moco(q, k):
    fc = linear("fc", 2048, 8)
    return {
        "opt": argparse.Namespace(model="resnet50", alpha=0.999),
        "model": under("module.", q | fc),
        "contrast": {"memory": torch.randn(32, 8), "index": torch.tensor(3)},
        "optimizer": sgd(q),
        "epoch": 200,
        "model_ema": k | fc,
    }


def _vissl(q: State, loss: State) -> dict[str, Any]:
    return {
        "phase_idx": 199,
        "iteration": 1_000_000,
        "loss": 5.5,
        "iteration_num": 5000,
        "train_phase_idx": 199,
        "classy_state_dict": {
            "train": True,
            "base_model": {
                "model": {
                    "trunk": under("_feature_blocks.", q),
                    "heads": linear("0.clf.0", 2048, 8) | linear("0.clf.2"),
                }
            },
            "meters": [],
            "optimizer": {"optim": sgd(q), "parameters": None},
            "phase_idx": 199,
            "losses": [5.6, 5.5],
            "hooks": {},
            "loss": loss,
        },
    }


@_file(25, "VISSL", "model_final_checkpoint_phase199.torch", network=R50)
def vissl(q, k):
    return _vissl(q, {"info_criterion.buffer": torch.zeros(4)})


@_file(25, "VISSL MoCo", "model_final_checkpoint_phase199.torch", key=True)
def vissl_moco(q, k):
    encoder = under("trunk._feature_blocks.", k) | linear("heads.0.clf.0", 2048, 8)
    return _vissl(q, queue() | under("moco_encoder.", encoder))


@_file(25, "VISSL, old and converted", "converted_vissl_r50.torch", save=torch_legacy)
def vissl_old(q, k):
    return {"model_state_dict": under("_feature_blocks.", q)}


@_file(25, "VISSL, BGR", "resnet50_jigsaw_bgr.torch", input=IMAGENET_BGR)
def vissl_bgr(q, k):
    return {"model_state_dict": under("_feature_blocks.", q)}


@_file(25, "VISSL colorization", "converted_vissl_rn50_colorization.torch", refused=LAB)
def vissl_colorization(q, k):
    state = {**q, "conv1.weight": q["conv1.weight"][:, :1].clone()}
    return {"model_state_dict": under("_feature_blocks.", state)}


@_file(26, "lightly benchmarks", "epoch=99-step=500400.ckpt", network=R50)
def lightly_benchmark(q, k):
    state = (
        under("backbone.", q)
        | projector("projection_head.layers", 2048)
        | linear("online_classifier.linear", 2048, 4)
    )
    return lightning(
        state,
        hparams_name="kwargs",
        hyper_parameters={"batch_size_per_device": 128, "num_classes": 1000},
    )


@_file(26, "lightly benchmarks, MoCo v2", "last.ckpt", key=True)
def lightly_benchmark_moco(q, k):
    state = (
        under("backbone.", q)
        | projector("projection_head.layers", 2048)
        | under("key_backbone.", k)
        | projector("key_projection_head.layers", 2048)
        | under("criterion.memory_bank.", {"bank": torch.randn(4, 8), "bank_ptr": torch.zeros(1)})
        | linear("online_classifier.linear", 2048, 4)
    )
    return lightning(state)


@_file(26, "lightly benchmarks, DINO", "epoch=99-step=1000.ckpt", key=True)
def lightly_benchmark_dino(q, k):
    # As its update_momentum(student_backbone, backbone) says.
    return lightning(
        under("backbone.", k)
        | _dino_head("projection_head")
        | under("student_backbone.", q)
        | _dino_head("student_projection_head")
        | under("criterion.center.", {"center": torch.zeros(1, 1, 4)})
        | linear("online_classifier.linear", 2048, 4)
    )


@_file(26, "lightly benchmarks, TiCo", "tico.ckpt", key=True)
def lightly_benchmark_tico(q, k):
    return lightning(
        under("backbone.", q)
        | projector("projection_head.layers", 2048)
        | under("backbone_momentum.", k)
        | projector("projection_head_momentum.layers", 2048)
        | linear("online_classifier.linear", 2048, 4)
    )


def _prototypes() -> State:
    state = linear("prototypes.heads.0", 4, 8, bias=False)
    return state | {f"queues.{i}.bank": torch.randn(4, 8) for i in range(2)}


@_file(26, "lightly benchmarks, SwAV", "swav.ckpt")
def lightly_benchmark_swav(q, k):
    return lightning(
        under("backbone.", q)
        | projector("projection_head.layers", 2048)
        | _prototypes()
        | linear("online_classifier.linear", 2048, 4)
    )


def _dino_head(name: str) -> State:
    # Three layers, and one with weight_norm: eight tensors.
    layers = [linear(f"{name}.layers.{i}") for i in (0, 2, 4)]
    last = {f"{name}.last_layer.weight_{part}": torch.randn(4, 1) for part in "gv"}
    return {k: v for layer in (*layers, last) for k, v in layer.items()}


@_file(27, "lightly examples, DINO", "lightly_dino.pth", network=R18, key=True)
def lightly_example_dino(q, k):
    return (
        under("student_backbone.", indexed(q))
        | _dino_head("student_head")
        | under("teacher_backbone.", indexed(k))
        | _dino_head("teacher_head")
    )


@_file(27, "lightly examples, SwAV", "lightly_swav.pth", network=R18)
def lightly_example_swav(q, k):
    return under("backbone.", indexed(q)) | projector("projection_head.layers", 512) | _prototypes()


@_file(27, "lightly examples", "lightly_moco.pth", key=True)
def lightly_example(q, k):
    return (
        under("backbone.", indexed(q))
        | projector("projection_head.layers", 2048)
        | under("backbone_momentum.", indexed(k))
        | projector("projection_head_momentum.layers", 2048)
    )


@_file(28, "lightly-train, exported", "exported_last.pt")
def lightly_train(q, k):
    return q | linear("fc", 2048, 4)


@_file(28, "lightly-train, training", "last.ckpt", refused=r"lightly_train")
def lightly_train_training(q, k):
    model = foreign("lightly_train._models.embedding_model.EmbeddingModel", object)()
    return lightning(
        under("_method.embedding_model.wrapped_model._model.", q),
        lightly_train={
            "version": "0.9.0",
            "date": datetime.datetime(2025, 7, 1).isoformat(),
            "models": {"model": model, "wrapped_model": model, "embedding_model": model},
            "normalize_args": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
            "license_info": "",
        },
    )


def _solo(q: State, k: State, backbone: str) -> dict[str, Any]:
    state = (
        under(f"{backbone}.", q)
        | linear("classifier", 2048, 4)
        | projector("projector", 2048)
        | under(f"momentum_{backbone}.", k)
        | projector("momentum_projector", 2048)
        | {"queue": torch.randn(2, 16, 32), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    )
    return lightning(state)


@_file(29, "solo-learn", "mocov2plus-imagenet-ep=99.ckpt", key=True)
def solo_learn(q, k):
    return _solo(q, k, "backbone")


@_file(29, "solo-learn before 1.0", "mocov2plus-imagenet100-ep=399.ckpt", key=True)
def solo_learn_older(q, k):
    return _solo(q, k, "encoder")


@_file(29, "solo-learn CIFAR", "mocov2plus-cifar10-ep=999.ckpt", refused=SMALL_STEM)
def solo_learn_cifar(q, k):
    stem = {"conv1.weight": torch.randn(64, 3, 3, 3)}
    return _solo(q | stem, k | stem, "backbone")


@_file(30, "timm", "model.safetensors", save=safetensors)
def timm(q, k):
    return q | linear("fc", 2048, 4)


@_file(30, "timm, training", "checkpoint-99.pth.tar", key=True)
def timm_training(q, k):
    fc = linear("fc", 2048, 4)
    return {
        "epoch": 99,
        "arch": "resnet50",
        "state_dict": under("_orig_mod.", q | fc),
        "optimizer": sgd(q),
        "version": 2,
        "args": argparse.Namespace(model="resnet50", opt="lamb"),
        "amp_scaler": {"scale": 65536.0},
        "state_dict_ema": under("_orig_mod.", k | fc),
        "metric": 78.9,
    }


@_file(30, "timm resnet50c, s, t", "resnet50c.pth", refused=DEEP_STEM)
def timm_deep_stem(q, k):
    return deep_stem(q)


@_file(30, "timm resnet50d", "resnet50d.safetensors", save=safetensors, refused=RESNET_D)
def timm_resnet_d(q, k):
    # An average pooling comes first in a shortcut.
    return {
        re.sub(r"downsample\.(\d)", lambda m: f"downsample.{int(m[1]) + 1}", name): tensor
        for name, tensor in deep_stem(q).items()
    }


@_file(30, "timm resnetaa50", "resnetaa50_a1h.safetensors", save=safetensors, refused=ANTI_ALIASING)
def timm_anti_aliased(q, k):
    return timm(q, k)


@_file(30, "timm seresnet50", "seresnet50.pth", refused=OTHER_LAYERS)
def timm_squeeze_and_excitation(q, k):
    blocks = {name.rpartition(".conv3.")[0] for name in q if ".conv3." in name}
    attention = [linear(f"{block}.se.fc{i}") for block in sorted(blocks) for i in (1, 2)]
    return q | {name: tensor for layer in attention for name, tensor in layer.items()}


@_file(31, "torchvision, supervised", "resnet50.pth", network=R50)
def torchvision(q, k):
    return OrderedDict(q | linear("fc", 2048, 1000))


@_file(
    31,
    "torchvision, segmentation",
    "fcn_resnet50_coco-1167a1af.pth",
    caveat=r"dilate res4 and res5",
)
def torchvision_segmentation(q, k):
    heads = linear("classifier.4") | linear("aux_classifier.4")
    return OrderedDict(under("backbone.", q) | heads)


@_file(31, "torchvision, supervised, 2017", "resnet50_2017.pth", save=torch_legacy)
def torchvision_2017(q, k):
    return OrderedDict(without_trackers(q) | linear("fc", 2048, 4))


@_file(32, "MSRA", "R-50.pkl", network=MSRA, save=pickled_by_python_2, input=MSRA_INPUT)
def msra(q, k):
    head = {"fc1000_w": np.zeros((4, 2048), np.float32), "fc1000_b": np.zeros(4, np.float32)}
    return {"conv1_b": np.zeros(64, np.float32), **caffe2(q), **head}


def _pycls(q: State, stride_in_1x1: bool) -> dict[str, Any]:
    return {
        "epoch": 99,
        "model_state": pycls_names(q) | linear("head.fc", 2048, 4),
        "optimizer_state": sgd(q),
        "cfg": "MODEL:\n  TYPE: resnet\n  DEPTH: 50\n"
        f"RESNET:\n  STRIDE_1X1: {str(stride_in_1x1).lower()}\n  WIDTH_PER_GROUP: 16\n",
    }


@_file(33, "pycls", "R-50-1x64d_dds_8gpu.pyth", input=IMAGENET_BGR)
def pycls(q, k):
    return _pycls(q, stride_in_1x1=False)


@_file(33, "pycls, stride in 1x1", "model.pyth", network=STRIDE_IN_1X1, input=IMAGENET_BGR)
def pycls_stride_in_1x1(q, k):
    return _pycls(q, stride_in_1x1=True)


@_file(34, "moco.tensorflow", "R50-MoCo-v1.npz", save=npz, input=IMAGENET_BGR, key=True)
def moco_tensorflow(q, k):
    return {
        **tensorpack(q),
        **tensorpack(k, "momentum_encoder/"),
        "linear0_128/W:0": np.zeros((2048, 128), np.float32),
        "linear0_128/b:0": np.zeros(128, np.float32),
        "queue:0": np.zeros((32, 128), np.float32),
        "queue_ptr:0": np.array(0, np.int64),
    }


@_file(35, "torch.compile, DistributedDataParallel and two modules", "wrapped.pth")
def wrapped(q, k):
    return {
        "model": under("_orig_mod.module.model.net.", q),
        "optimizer": sgd(q),
        "rng": torch.zeros(16, dtype=torch.uint8),
    }


@_file(35, "FSDP inside the network", "fsdp.pth")
def wrapped_inside(q, k):
    return {
        "model": {
            "module." + re.sub(r"^(layer\d)\.", r"\1._fsdp_wrapped_module.", name): tensor
            for name, tensor in q.items()
        }
    }


@_file(35, "torch.compile inside the network", "compiled.pth", key=True)
def compiled_inside(q, k):
    def compiled(state):
        return {re.sub(r"^(layer\d)\.", r"\1._orig_mod.", n): t for n, t in state.items()}

    state = under("encoder_q._orig_mod.", compiled(q)) | under("encoder_k._orig_mod.", compiled(k))
    return {"state_dict": under("module.", state | queue())}


@_file(35, "AveragedModel and ema_model", "ema.pth")
def averaged(q, k):
    return {"n_averaged": torch.tensor(100), **under("ema_model.module.", q)}


@_file(35, "float16", "half.pth", half=True)
def half(q, k):
    return under("module.", q)


@_file(35, "a training loop of your own", "mine.pth")
def own_training(q, k):
    return {
        "model": under("model.", q),
        "args": argparse.Namespace(data=pathlib.PurePosixPath("images"), lr=np.float64(0.1)),
        "best": np.float32(0.5),
        "optimizer": sgd(q),
    }


@_file(35, "without BatchNorm statistics", "parameters.pth", refused=NO_STATISTICS)
def parameters_only(q, k):
    return {name: t for name, t in q.items() if name.endswith(("weight", "bias"))}


@_file(36, "Hugging Face, ResNetForImageClassification", "model.safetensors", save=safetensors)
def transformers(q, k):
    return under("resnet.", transformers_names(q)) | linear("classifier.1", 2048, 4)


@_file(36, "Hugging Face, ResNetModel", "pytorch_model.bin", network=R18)
def transformers_backbone(q, k):
    return transformers_names(q)
