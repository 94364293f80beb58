"""The C4 head of the paper: conv5 on each region, then one more BatchNorm (section 4.2 and the
official train_net.py).
"""

from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import Conv2d, get_norm
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import Res5ROIHeads
from torch import nn

from moco_d2.errors import UserError
from moco_d2.resnet import BASIC_DEPTHS, basic_stage, conv_to_one_cell


class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """Res5ROIHeads with a norm layer between res5 and the pooling, for boxes and masks.

    The parameters of the norm are ``roi_heads.res5.norm.*``. The parameters of res5 keep
    Detectron2's names (``roi_heads.res5.0.conv1.weight``). A wrapper module would rename them, and
    pretrained weights of res5 would silently not be loaded.

    Unlike Detectron2's head, it also builds the BasicBlock res5 of ResNet-18 and 34.
    """

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        resnets = cfg.MODEL.RESNETS
        if resnets.DEPTH in BASIC_DEPTHS:
            res5, channels = nn.Sequential(*basic_stage(resnets, 3)), resnets.RES2_OUT_CHANNELS * 8
        else:
            res5, channels = super()._build_res5_block(cfg)
        for layer in res5.modules():
            if type(layer) is Conv2d:
                layer.__class__ = _RegionConv
        res5.add_module("norm", get_norm(resnets.NORM, channels))
        return res5, channels


class _RegionConv(Conv2d):
    """Detectron2's convolution, which skips the products with padding of
    conv_to_one_cell.

    Small poolers (MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 2) make maps of one cell.
    """

    def _get_name(self) -> str:
        return "Conv2d"  # _is_same compares texts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cell = conv_to_one_cell(self, x)
        if cell is None:
            return super().forward(x)
        return cell if self.norm is None else self.norm(cell)


def _register(head: type, registry: Any) -> None:
    """Register a head, and let a program define the same head again under its name.

    The official train_net.py does, and Detectron2's registry would refuse it with a traceback that
    names no cause.

    Raises:
        UserError: If a program has defined another head of this name; also later, when one does.
    """
    name = head.__name__
    if name in registry:
        _check_same(registry.get(name), head)
        registry._obj_map[name] = head
    else:
        registry.register(head)
    register = registry._do_register

    def register_another(other_name: str, other: Any) -> None:
        if other_name == name:
            _check_same(other, head)
        else:
            register(other_name, other)

    registry._do_register = register_another


def _check_same(other: Any, head: type) -> None:
    if not _is_same(other, head):
        raise UserError(
            f"{other.__module__} defines a head {head.__name__} that differs from the one of "
            "moco_d2: give it another name, or leave it out"
        )


def _is_same(other: Any, head: type) -> bool:
    """Return whether a class differs from its base class in the same layers as `head`."""
    if not isinstance(other, type) or other.__bases__ != head.__bases__:
        return False
    if {key for key in vars(other) if not key.startswith("__")} != {"_build_res5_block"}:
        return False
    cfg = get_cfg()
    cfg.MODEL.RESNETS.NORM = "BN"
    blocks = []
    with torch.device("meta"):
        for of in (other, head):
            # The first official version has a method of the object, without an initialized one.
            build = vars(of)["_build_res5_block"]
            target: Any = of if isinstance(build, classmethod) else object.__new__(of)
            try:
                blocks.append(str(target._build_res5_block(cfg)))
            except (TypeError, AttributeError, KeyError):
                return False
    return blocks[0] == blocks[1]


_register(Res5ROIHeadsExtraNorm, ROI_HEADS_REGISTRY)
