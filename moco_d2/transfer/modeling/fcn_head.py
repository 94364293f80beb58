"""The paper's FCN-16s head for semantic segmentation (appendix A.5), for Detectron2's
SemanticSegmentor.

Shapes: N images of H x W pixels, padded to one size; K classes; h = ceil(H / stride) and
w = ceil(W / stride).
"""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from moco_d2.errors import UserError

CONVOLUTIONS = 2  # number of extra 3x3 convolutions (paper, appendix A.5)
DILATION = 6  # dilation of these convolutions (paper, appendix A.5)
_CLASSIFIER_STD = 0.01  # not in the paper; taken from DeepLab, whose code the authors adapted


@SEM_SEG_HEADS_REGISTRY.register()
class FCNHead(nn.Module):
    """Dilated 3x3 convolutions with norm and ReLU, a 1x1 classifier, and bilinear interpolation to
    the pixels.

    Detectron2's SemSegFPNHead interpolates by a fixed factor, which turns 513 pixels into 528.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        in_feature: str,
        num_classes: int,
        conv_dim: int,
        norm: str,
        ignore_value: int,
        loss_weight: float = 1.0,
    ):
        """
        Args:
            input_shape: Shapes of the backbone's features.
            in_feature: Name of the feature that the head reads.
            num_classes: Number of classes, K.
            conv_dim: Number of channels of the 3x3 convolutions.
            norm: Name of their norm for detectron2.layers.get_norm.
            ignore_value: Label of pixels that the loss ignores.
            loss_weight: Factor of the loss.
        """
        super().__init__()
        self.in_feature = in_feature
        self.stride = input_shape[in_feature].stride
        self.ignore_value = ignore_value  # SemanticSegmentor pads labels with it
        self.loss_weight = loss_weight
        channels = input_shape[in_feature].channels
        self.convs = nn.Sequential()
        for _ in range(CONVOLUTIONS):
            conv = Conv2d(
                channels,
                conv_dim,
                kernel_size=3,
                padding=DILATION,
                dilation=DILATION,
                bias=not norm,
                norm=get_norm(norm, conv_dim),
                activation=F.relu,
            )
            weight_init.c2_msra_fill(conv)
            self.convs.append(conv)
            channels = conv_dim
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)
        nn.init.normal_(self.classifier.weight, std=_CLASSIFIER_STD)
        if self.classifier.bias is not None:
            nn.init.zeros_(self.classifier.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """
        Raises:
            UserError: If MODEL.SEM_SEG_HEAD.IN_FEATURES is not one feature of the backbone.
        """
        head = cfg.MODEL.SEM_SEG_HEAD
        features = list(head.IN_FEATURES)
        if len(features) != 1 or features[0] not in input_shape:
            raise UserError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {features}, but FCNHead reads one feature of "
                f"the backbone: set it to one of {sorted(input_shape)}"
            )
        return {
            "input_shape": input_shape,
            "in_feature": features[0],
            "num_classes": head.NUM_CLASSES,
            "conv_dim": head.CONVS_DIM,
            "norm": head.NORM,
            "ignore_value": head.IGNORE_VALUE,
            "loss_weight": head.LOSS_WEIGHT,
        }

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """
        Args:
            features: Features of the backbone.
            targets: Labels (N, H, W), which training needs.

        Returns:
            In training, None and ``{"loss_sem_seg"}``. Otherwise, logits (N, K, h * stride,
            w * stride) and an empty dict; SemanticSegmentor crops the logits to the image size.
        """
        logits = self.layers(features)
        if self.training:
            if targets is None:
                raise ValueError("training needs targets")
            return None, self.losses(logits, targets)
        return to_pixels(logits, self.stride), {}

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Return logits (N, K, h, w)."""
        return self.classifier(self.convs(features[self.in_feature]))

    def losses(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the mean cross-entropy over all pixels that are not ignored; 0 if all are ignored.

        Args:
            logits: Logits (N, K, h, w).
            targets: Labels (N, H, W).
        """
        height, width = targets.shape[-2:]
        total = F.cross_entropy(
            to_pixels(logits, self.stride, (height, width)),
            targets,
            ignore_index=self.ignore_value,
            reduction="sum",
        )
        count = torch.count_nonzero(targets != self.ignore_value).clamp(min=1)
        return {"loss_sem_seg": self.loss_weight * total / count}


def to_pixels(grid: Tensor, stride: int, size: tuple[int, int] | None = None) -> Tensor:
    """Interpolate the output of a convolutional network bilinearly to the pixels of its input.

    With the symmetric padding of a ResNet, cell i is centered on pixel i * stride for any image
    size. The interpolation keeps this geometry in training and evaluation. For a crop of 16 k + 1
    pixels, such as the paper's 513 and 769, it is interpolation with aligned corners, as in
    DeepLab. Pixels beyond the last cell get its value.

    Args:
        grid: The output (N, K, h, w).
        stride: Distance of neighboring cells in pixels.
        size: H and W of the images; None stands for h * stride and w * stride.

    Returns:
        Values (N, K, H, W) in 32 bits.
    """
    cells = grid.shape[-2:]
    height, width = size or (cells[0] * stride, cells[1] * stride)
    last_row, last_column = ((n - 1) * stride for n in cells)
    pixels = F.interpolate(
        grid.float(),  # interpolation in 16 bits would round each sum to 16 bits
        (last_row + 1, last_column + 1),
        mode="bilinear",
        align_corners=True,
    )
    padding = (0, width - last_column - 1, 0, height - last_row - 1)
    return F.pad(pixels, padding, mode="replicate") if any(padding) else pixels
