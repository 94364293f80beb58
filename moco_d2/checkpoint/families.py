"""The known families of checkpoints: one entry per family, nearly all of it data.

A location is written ``container:prefix``. The container is the dotted path of a dict in the file;
the prefix stands before the backbone's names in it. Neither contains wrappers (WRAPPERS), which may
stand anywhere, any number of times.
"""

import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import msgspec

from moco_d2.checkpoint.dialects import (
    CAFFE2,
    DETECTRON2,
    DIALECTS,
    HAIKU,
    INDEXED,
    PYCLS,
    SIMCLR_V2,
    TENSORPACK,
    TORCHVISION,
    TRANSFORMERS,
    Dialect,
)
from moco_d2.checkpoint.report_values import as_report

# The names come from DistributedDataParallel, torch.compile, FSDP, activation checkpointing,
# averaged models, and modules that only hold another module.
WRAPPERS = frozenset(
    (
        "module",
        "_orig_mod",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "ema_model",
        "model",
        "net",
    )
)


@dataclass(frozen=True)
class Input:
    """The input format in Detectron2's terms: channel order, mean and std of pixels in 0 .. 255."""

    format: str
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]


# torchvision's networks are trained on this input.
IMAGENET = Input("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
IMAGENET_BGR = Input("BGR", IMAGENET.pixel_mean[::-1], IMAGENET.pixel_std[::-1])
# Pixels in [0, 1], not normalized.
UNIT = Input("RGB", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
MSRA = Input("BGR", IMAGENET_BGR.pixel_mean, (1.0, 1.0, 1.0))
# FAIR's ResNeXt in Detectron2's model zoo. MSRA's networks have the std in their weights.
FAIR = IMAGENET_BGR


@dataclass(frozen=True)
class Traits:
    """Properties of a network that its weights do not show.

    Args:
        input: The format of the images that it was trained on.
        stride_in_1x1: Whether a bottleneck's stride is in its first 1x1 convolution.
        caveats: Sentences to read before using the weights.
        certain: Whether the file states its input and where the stride is.
    """

    input: Input = IMAGENET
    stride_in_1x1: bool = False
    caveats: tuple[str, ...] = ()
    certain: bool = False


@dataclass(frozen=True)
class Family:
    """The checkpoint files of one project.

    Attributes:
        name: A short name for the report.
        title: The projects that write these files.
        example: The name of one such file.
        query: Locations of the network that gradients train, the preferred location first.
        key: Locations of its moving average.
        heads: Patterns (fnmatch) of known other tensors below the backbone's prefix.
        companions: Patterns of known other tensors beside the backbone, without wrappers.
        dialects: The dialects of its backbones.
        entries: The keys that the file's dict must have.
        needs: Patterns, each of which must match a name in the backbone's container.
        files: Patterns of file names; None allows any name.
        traits: The traits of its networks.
        configs: The names of the files beside a checkpoint that may describe its network; see
            stated.py.
    """

    name: str
    title: str
    example: str
    query: tuple[str, ...]
    key: tuple[str, ...] = ()
    heads: tuple[str, ...] = ("fc.*",)
    companions: tuple[str, ...] = ()
    dialects: tuple[Dialect, ...] = (TORCHVISION,)
    entries: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    files: tuple[str, ...] | None = None
    traits: Traits = Traits()
    configs: tuple[str, ...] = ()

    def role(self, container: str, prefix: str) -> str | None:
        """Return ``query`` or ``key`` for a location of the family, and None for any other."""
        location = f"{container}:{without_wrappers(prefix)}"
        return "query" if location in self.query else "key" if location in self.key else None

    def owns(self, checkpoint: Mapping[Any, Any], names: list[str], file_name: str) -> bool:
        """Return whether the rest of the file looks like a file of this family.

        Args:
            checkpoint: The file's dict.
            names: All names in the backbone's container, without wrappers.
            file_name: The file's name without its folder.
        """
        return (
            all(entry in checkpoint for entry in self.entries)
            and all(any(fnmatchcase(name, need) for name in names) for need in self.needs)
            and (self.files is None or any(fnmatchcase(file_name, f) for f in self.files))
        )

    def traits_of(self, checkpoint: Mapping[Any, Any], file_name: str, groups: int) -> Traits:
        """Return the traits of this file's network.

        Args:
            checkpoint: The file's dict.
            file_name: The file's name without its folder.
            groups: The number of groups of the network's 3x3 convolutions.
        """
        return self.traits


def input_of(mean: Sequence[float], std: Sequence[float]) -> Input | None:
    """Return mean and std of pixels in 0 .. 255 as an input; None if they are none.

    The channel order follows from the mean, which is largest for red and smallest for blue.
    """
    values = (*mean, *std)
    if (len(mean), len(std)) != (3, 3) or not all(map(math.isfinite, values)) or min(std) <= 0:
        return None
    return Input("BGR" if mean[0] < mean[2] else "RGB", (*mean,), (*std,))  # type: ignore[arg-type]


_SAME_PADDING = (
    "the original pads as TensorFlow's SAME does (asymmetrically where the stride is 2), "
    "Detectron2 and torchvision symmetrically: features shift by half a pixel, which fine-tuning "
    "tolerates"
)


_KEY_WORD = re.compile(
    r"(?:^|[._:/])(?:k|key|momentum|teacher|target|ema)(?=[._:/]|$)", re.IGNORECASE
)


def _config_text(config: Any) -> str:
    return config if isinstance(config, str) else str(as_report(config))


class _BYOLDeepMind(Family):
    def role(self, container: str, prefix: str) -> str | None:
        return super().role(container, re.sub(r"^res_net\d+/", "res_net*/", prefix))


class _OpenSelfSupTraining(Family):
    def owns(self, checkpoint: Mapping[Any, Any], names: list[str], file_name: str) -> bool:
        return super().owns(checkpoint, names, file_name) and any(
            name.startswith(("encoder_q.0.", "online_net.0.")) for name in names
        )


def _numbers_of(key: str, text: str) -> list[float] | None:
    """Return the numbers that a config of the OpenMMLab projects gives to a key; None if it gives
    none, or several different ones.
    """
    found = set(re.findall(rf"\b{key}['\"]?\s*[=:]\s*[\[(]([\d.,\s]{{1,80}})[\])]", text))
    lists = {tuple(float(n) for n in re.findall(r"\d+(?:\.\d*)?", numbers)) for numbers in found}
    return list(lists.pop()) if len(lists) == 1 else None


class _MMSelfSup(Family):
    def traits_of(self, checkpoint: Mapping[Any, Any], file_name: str, groups: int) -> Traits:
        meta = checkpoint["meta"]
        entries = [meta.get(key) for key in ("cfg", "config")] if isinstance(meta, dict) else []
        text = " ".join(map(_config_text, entries))
        mean, std = (_numbers_of(key, text) or [] for key in ("mean", "std"))
        if mean and max(mean) <= 1:  # of pixels in [0, 1]
            mean, std = ([round(255 * value, 6) for value in values] for values in (mean, std))
        pixels = input_of(mean, std)
        if not re.search(r"style['\"]?\s*[=:]\s*['\"]caffe", text):
            return Traits(pixels, certain=True) if pixels else self.traits
        caveat = "its config says style='caffe': stride in the 1x1 convolution, input as Caffe's"
        return Traits(pixels or MSRA, True, (caveat,), certain=pixels is not None)


class _SimCLRsthalles(Family):
    def owns(self, checkpoint: Mapping[Any, Any], names: list[str], file_name: str) -> bool:
        return "l1.weight" in names or "backbone.fc.0.weight" in names


class _VISSL(Family):
    def traits_of(self, checkpoint: Mapping[Any, Any], file_name: str, groups: int) -> Traits:
        return Traits(IMAGENET_BGR) if fnmatchcase(file_name, "*_bgr.torch") else self.traits


class _Caffe2(Family):
    def traits_of(self, checkpoint: Mapping[Any, Any], file_name: str, groups: int) -> Traits:
        if groups == 1:
            return self.traits
        caveat = (
            "a ResNeXt under Caffe2's names is taken as FAIR's X-101-32x8d: BGR, std "
            "57.375 57.12 58.395 and the stride in the 3x3 convolution, unlike MSRA's ResNets"
        )
        return Traits(FAIR, caveats=(*self.traits.caveats, caveat))


class _Pycls(Family):
    def traits_of(self, checkpoint: Mapping[Any, Any], file_name: str, groups: int) -> Traits:
        stated = re.search(
            r"STRIDE_1X1:\s*(true|false)", _config_text(checkpoint.get("cfg")), re.IGNORECASE
        )
        if stated:
            return Traits(IMAGENET_BGR, stride_in_1x1=stated[1].lower() == "true")
        # The 1x1 convolution is pycls' default.
        caveat = "its config does not say where the stride is: the 1x1 convolution is assumed"
        return Traits(IMAGENET_BGR, stride_in_1x1=True, caveats=(caveat,))


class _Preprocessing(msgspec.Struct):
    format: Literal["RGB", "BGR"]
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]


class _Report(msgspec.Struct):
    """The entries of a converter's report that later conversions read."""

    preprocessing: _Preprocessing
    stride_in_1x1: bool = False
    caveats: tuple[str, ...] = ()


_MODEL_ZOO = "Detectron2 Model Zoo"
_ZOO_NAME = re.compile(r"model_final_[\da-f]{6}\.pkl")
# Authors in the files of Detectron2's converter of torchvision's networks, and of MoCo's converter.
_LIKE_TORCHVISION = ("torchvision", "MOCO")


class _Detectron2Weights(Family):
    def traits_of(self, checkpoint: Mapping[Any, Any], file_name: str, groups: int) -> Traits:
        with contextlib.suppress(msgspec.ValidationError):  # anyone may write a report
            report = msgspec.convert(as_report(checkpoint.get("provenance")), _Report)
            pixels = report.preprocessing
            values = (*pixels.pixel_mean, *pixels.pixel_std)
            if all(map(math.isfinite, values)) and all(pixels.pixel_std):
                return Traits(
                    Input(pixels.format, pixels.pixel_mean, pixels.pixel_std),
                    report.stride_in_1x1,
                    report.caveats,
                    certain=True,
                )
        author = checkpoint.get("__author__")
        if isinstance(author, str) and author in _LIKE_TORCHVISION:
            return replace(self.traits, certain=True)
        if (isinstance(author, str) and author == _MODEL_ZOO) or _ZOO_NAME.fullmatch(file_name):
            caveat = (
                "its config is not beside it: read as most of Detectron2's model zoo, with BGR "
                + (
                    "and std 57.375 57.12 58.395 for a ResNeXt"
                    if groups > 1
                    else "and std 1, and the stride in the 1x1 convolution"
                )
                + "; models from SyncBN or from scratch differ, so put its config.yaml beside it"
            )
            return Traits(FAIR if groups > 1 else MSRA, groups == 1, (caveat,))
        caveat = (
            "a Detectron2 file does not state its input format or where the stride is: "
            "torchvision's are assumed, while Detectron2's own models use BGR, std 1 and the "
            "stride in the 1x1 convolution; put the run's config.yaml beside it"
        )
        return Traits(caveats=(caveat,))


class _Wrapped(Family):
    """Any other file, which may hold a complete backbone anywhere."""

    def role(self, container: str, prefix: str) -> str | None:
        return "key" if _KEY_WORD.search(f"{container}:{prefix}") else "query"


_OF_THE_HUB = ("config.json", "preprocessor_config.json")
RUN = ("config.yaml",)  # of Detectron2

# The first family that fits is used.
FAMILIES: tuple[Family, ...] = (
    Family(
        name="moco",
        title="MoCo v1 and v2 (facebookresearch/moco), PCL, and our own pretraining",
        example="moco_v2_800ep_pretrain.pth.tar",
        query=("state_dict:encoder_q.", ":encoder_q."),
        key=("state_dict:encoder_k.", ":encoder_k."),
        companions=("queue", "queue_ptr", "bank"),
    ),
    Family(
        name="moco_v3",
        title="MoCo v3, ResNet",
        example="r-50-1000ep.pth.tar",
        query=("state_dict:base_encoder.",),
        key=("state_dict:momentum_encoder.",),
        companions=("predictor.*",),
        needs=("base_encoder.*",),
    ),
    Family(
        name="simsiam",
        title="SimSiam",
        example="checkpoint_0099.pth.tar",
        query=("state_dict:encoder.",),
        companions=("predictor.*",),
        needs=("predictor.*",),
    ),
    Family(
        name="swav",
        title="SwAV, DeepCluster-v2, SeLa-v2, released and training files",
        example="swav_800ep_pretrain.pth.tar",
        query=(":", "state_dict:"),
        companions=("projection_head.*", "prototypes.*"),
        needs=("prototypes.*",),
    ),
    _BYOLDeepMind(
        name="byol_deepmind",
        title="BYOL of DeepMind, its haiku dicts saved again as plain dicts",
        example="pretrain_res50x1.pkl",
        query=("experiment_state.online:res_net*/~/",),
        key=("experiment_state.target:res_net*/~/",),
        heads=("*/counter", "*/hidden"),
        companions=("projector*", "predictor*", "classifier*"),
        dialects=(HAIKU,),
        traits=Traits(caveats=(_SAME_PADDING,)),
    ),
    Family(
        name="byol_converted",
        title="BYOL of DeepMind through byol-convert or ssl-transfer, recognized by its file name",
        example="pretrain_res50x1.pth.tar",
        query=(":", "state_dict:"),
        files=("pretrain_res50x*.pth.tar", "BYOL.pth"),
        traits=Traits(caveats=(_SAME_PADDING,)),
    ),
    Family(
        name="byol_yaox12",
        title="BYOL of yaox12, training and released files",
        example="resnet50_byol_imagenet2012.pth.tar",
        query=("model:online_network.encoder.", "online_backbone:"),
        key=("model:target_network.encoder.",),
        companions=(  # sic
            *("online_network.projetion.*", "target_network.projetion.*", "predictor.*"),
        ),
        dialects=(INDEXED, TORCHVISION),
    ),
    Family(
        name="byol_lucidrains",
        title="BYOL of lucidrains, the learner",
        example="learner.pt",
        query=(":", ":online_encoder."),
        key=(":target_encoder.",),
        companions=("fc.*", "online_encoder.*", "target_encoder.*", "online_predictor.*"),
        needs=("online_encoder.*",),
    ),
    Family(
        name="simclr_v1",
        title="SimCLR v1 through tonylins' converter, recognized by its file name",
        example="resnet50-1x.pth",
        query=("state_dict:",),
        files=("resnet50-1x.pth", "resnet50-2x.pth", "resnet50-4x.pth"),
        traits=Traits(
            UNIT,
            caveats=(
                "its file name says SimCLR v1, which was trained on pixels in [0, 1], not "
                "normalized",
            ),
        ),
    ),
    Family(
        name="simclr_v2",
        title="SimCLR v2 through Separius' converter, without selective kernels",
        example="r50_1x_sk0.pth",
        query=("resnet:",),
        dialects=(SIMCLR_V2,),
        traits=Traits(UNIT),
    ),
    Family(
        name="openselfsup",
        title="OpenSelfSup, DenseCL and DetCo, released",
        example="densecl_r50_imagenet_200ep.pth",
        query=("state_dict:",),
        entries=("author",),
    ),
    _OpenSelfSupTraining(
        name="openselfsup_training",
        title="OpenSelfSup and DenseCL, training",
        example="epoch_200.pth",
        query=("state_dict:encoder_q.0.", "state_dict:online_net.0.", "state_dict:backbone."),
        key=("state_dict:encoder_k.0.", "state_dict:target_net.0."),
        companions=("encoder_[qk].*", "*_net.*", "queue*", "neck.*", "head.*"),
        entries=("meta",),
    ),
    _MMSelfSup(
        name="mmselfsup",
        title="mmselfsup and mmpretrain, mmdetection's weights, OpenSelfSup's single networks",
        example="mocov2_resnet50_8xb32-coslr-200e_in1k.pth",
        query=("state_dict:backbone.",),
        key=("state_dict:encoder_k.0.", "state_dict:target_net.0."),
        companions=(
            *("encoder_k.*", "target_net.*", "neck.*", "head.*", "queue*"),
            *("*_head.*", "data_preprocessor.*"),
        ),
        entries=("meta",),
    ),
    Family(
        name="lightly_benchmark_dino",
        title="lightly, benchmark of DINO, whose backbone is the teacher",
        example="epoch=99-step=500400.ckpt",
        query=("state_dict:student_backbone.",),
        key=("state_dict:backbone.", "state_dict:teacher_backbone."),
        companions=("*projection_head.*", "online_classifier.*", "criterion.*"),
        needs=("online_classifier.*", "student_backbone.*"),
    ),
    Family(
        name="lightly_benchmark",
        title="lightly, benchmarks",
        example="epoch=99-step=500400.ckpt",
        query=("state_dict:backbone.",),
        key=(
            "state_dict:key_backbone.",
            "state_dict:teacher_backbone.",
            "state_dict:backbone_momentum.",
        ),
        companions=(
            "*projection_head*",
            "*prediction_head*",
            "prototypes.*",
            "queues.*",
            "online_classifier.*",
            "criterion.*",
        ),
        needs=("online_classifier.*",),
    ),
    Family(
        name="lightly_example",
        title="lightly, examples and tutorials",
        example="lightly_moco.pth",
        query=(
            *(":backbone.", "state_dict:backbone."),
            *(":student_backbone.", "state_dict:student_backbone."),
        ),
        key=(
            *(":backbone_momentum.", "state_dict:backbone_momentum."),
            *(":teacher_backbone.", "state_dict:teacher_backbone."),
        ),
        companions=(
            *("*projection_head*", "*prediction_head*", "student_head.*", "teacher_head.*"),
            *("prototypes.*", "queues.*", "smog.*", "criterion.*"),
        ),
        dialects=(INDEXED,),
    ),
    Family(
        name="solo_learn",
        title="solo-learn, today's and before 1.0",
        example="mocov2plus-imagenet100-ep=399.ckpt",
        query=("state_dict:backbone.", "state_dict:encoder."),
        key=("state_dict:momentum_backbone.", "state_dict:momentum_encoder."),
        companions=("*classifier.*", "*projector.*", "predictor.*", "prototypes.*", "queue*"),
        needs=("classifier.*",),
    ),
    _SimCLRsthalles(
        name="simclr_sthalles",
        title="SimCLR of sthalles, today's and older files",
        example="checkpoint_0200.pth.tar",
        query=("state_dict:backbone.", ":features."),
        companions=("l1.*", "l2.*"),
        dialects=(TORCHVISION, INDEXED),
    ),
    Family(
        name="barlow_twins",
        title="Barlow Twins, training",
        example="checkpoint.pth",
        query=("model:backbone.",),
        companions=("projector.*", "bn.*"),
        needs=("projector.*", "bn.*"),
    ),
    Family(
        name="vicreg",
        title="VICReg and VICRegL, training",
        example="model.pth",
        query=("model:backbone.",),
        companions=("projector.*", "maps_projector.*", "classifier.*"),
        needs=("projector.*",),
    ),
    Family(
        name="dino",
        title="DINO, training, ResNet",
        example="dino_resnet50_pretrain_full_checkpoint.pth",
        query=("student:backbone.",),
        key=("teacher:backbone.",),
        companions=("head.*",),
    ),
    Family(
        name="pixpro",
        title="PixPro, training",
        example="pixpro_base_r50_100ep.pth",
        query=("model:encoder.",),
        key=("model:encoder_k.",),
        companions=("projector.*", "projector_k.*", "value_transform.*"),
        needs=("encoder_k.*",),
    ),
    Family(
        name="soco",
        title="SoCo; its neck and head are not converted",
        example="ckpt_epoch_100.pth",
        query=("model:encoder.",),
        key=("model_ema:encoder.",),
        companions=("neck.*", "head.*", "projector.*", "predictor.*"),
        needs=("neck.*",),
    ),
    Family(
        name="pycontrast",
        title="PyContrast: InstDis, MoCo, PIRL, InfoMin",
        example="InfoMin_800.pth",
        query=("model:encoder.",),
        key=("model_ema:encoder.",),
        companions=("head*", "jigsaw*"),
        entries=("contrast",),
    ),
    Family(
        name="moco_bl0",
        title="MoCo of bl0",
        example="ckpt_epoch_200.pth",
        query=("model:",),
        key=("model_ema:",),
        entries=("contrast",),
    ),
    _VISSL(
        name="vissl",
        title="VISSL, training, old and converted files; *_bgr.torch take BGR images",
        example="model_final_checkpoint_phase199.torch",
        query=(
            "classy_state_dict.base_model.model.trunk:_feature_blocks.",
            "classy_state_dict.base_model.model.trunk:base_model._feature_blocks.",
            "model_state_dict:_feature_blocks.",
        ),
        key=("classy_state_dict.loss:moco_encoder.trunk._feature_blocks.",),
        companions=("moco_encoder.heads.*", "queue", "queue_ptr"),
    ),
    Family(
        name="timm",
        title="timm, training; its weights are torchvision's by name",
        example="checkpoint-99.pth.tar",
        query=("state_dict:",),
        key=("state_dict_ema:",),
        entries=("state_dict_ema",),
        configs=_OF_THE_HUB,
    ),
    Family(
        name="transformers",
        title="Hugging Face transformers, ResNet; config.json may stand beside the file",
        example="model.safetensors",
        query=(":resnet.", ":"),
        companions=("classifier.*",),
        dialects=(TRANSFORMERS,),
        configs=_OF_THE_HUB,
    ),
    Family(
        name="torchvision",
        title=(
            "torchvision, PyTorch's ImageNet example, timm's resnet50, and backbones released "
            "under these names (Barlow Twins, VICReg, DINO, lightly-train's export)"
        ),
        example="resnet50-19c8e357.pth",
        query=(":", "state_dict:"),
        companions=("n_averaged",),
        configs=_OF_THE_HUB,
    ),
    Family(
        name="torchvision_segmentation",
        title="torchvision, DeepLabV3 and FCN",
        example="fcn_resnet50_coco-1167a1af.pth",
        query=(":backbone.", "model:backbone."),
        companions=("classifier.*", "aux_classifier.*"),
        needs=("classifier.*", "aux_classifier.*"),
        traits=Traits(
            caveats=(
                "torchvision's segmentation networks dilate res4 and res5 instead of striding, and "
                "no tensor shows it: with strides, the features are not those of the original",
            )
        ),
    ),
    _Caffe2(
        name="msra",
        title="MSRA's networks and FAIR's ResNeXt as Detectron and Detectron2 use them",
        example="R-50.pkl",
        query=(":", "blobs:"),
        heads=("fc1000_*", "pred_*", "conv1_b"),
        dialects=(CAFFE2,),
        traits=Traits(
            MSRA,
            stride_in_1x1=True,
            caveats=(
                "BatchNorm statistics are folded into scale and offset: use FrozenBN, or note that "
                "fine-tuning starts from mean 0 and variance 1",
            ),
        ),
    ),
    _Pycls(
        name="pycls",
        title="pycls; its config says where the stride is",
        example="R-50-1x64d_dds_8gpu.pyth",
        query=("model_state:",),
        heads=("head.fc.*",),
        dialects=(PYCLS,),
    ),
    Family(
        name="moco_tensorflow",
        title="moco.tensorflow (tensorpack)",
        example="MoCo_v2.npz",
        query=(":",),
        key=(":momentum_encoder/",),
        heads=("linear*", "queue:0", "queue_ptr:0"),
        companions=("linear*", "queue:0", "queue_ptr:0", "momentum_encoder/linear*"),
        dialects=(TENSORPACK,),
        traits=Traits(IMAGENET_BGR),
    ),
    _Detectron2Weights(
        name="detectron2",
        configs=RUN,
        title="Detectron2: converted weights, and the backbone of a detector (FPN or C4)",
        example="model_final.pth",
        query=tuple(
            f"{container}:{prefix}"
            for container in ("model", "")
            for prefix in ("", "backbone.", "backbone.bottom_up.")
        ),
        heads=("fc.*", "stem.fc.*"),
        companions=(
            "backbone.fpn_*",
            "backbone.top_block.*",
            "backbone.neck.*",
            "proposal_generator.*",
            "roi_heads.*",
            "sem_seg_head.*",
            "pixel_mean",
            "pixel_std",
        ),
        dialects=(DETECTRON2,),
    ),
    _Wrapped(
        name="other",
        title="any file with a complete ResNet under one prefix, behind any wrappers",
        example="my_model.pth",
        query=(),
        heads=(
            "fc.*",
            "head*",
            "classifier*",
            "linear*",
            "projection*",
            "projector*",
            "predictor*",
        ),
        companions=(
            "*projector*",
            "*projection*",
            "*predictor*",
            "*prediction*",
            "*classifier*",
            "*criterion*",
            "head*",
            "neck*",
            "fc.*",
            "linear*",
            "prototypes*",
            "queue*",
            "bank*",
            "loss*",
            "n_averaged",
        ),
        dialects=DIALECTS,
        configs=_OF_THE_HUB,
        traits=Traits(
            caveats=(
                "the file does not state its input format: RGB with ImageNet's mean and standard "
                "deviation is assumed",
            )
        ),
    ),
)


def without_wrappers(name: str) -> str:
    """Remove wrappers: ``module.encoder_q.net.conv1.weight`` -> ``encoder_q.conv1.weight``."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)
