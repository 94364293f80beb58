"""The paper's FCN-16s head for semantic segmentation (appendix A.5), for Detectron2's
SemanticSegmentor.

Shapes: N images of H x W pixels, padded to one size; K classes; h = ceil(H / stride), w likewise.
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

CONVOLUTIONS = 2  # extra 3x3 convolutions, and their dilation: paper, appendix A.5
DILATION = 6
_CLASSIFIER_STD = 0.01  # not in the paper; of DeepLab, whose code the authors adapted


@SEM_SEG_HEADS_REGISTRY.register()
class FCNHead(nn.Module):
    """Dilated 3x3 convolutions with norm and ReLU, a 1x1 classifier, and bilinear interpolation to
    the pixels.

    Detectron2's SemSegFPNHead interpolates by a factor, which leads from 513 pixels to 528.
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
            input_shape: of the backbone's features.
            in_feature: the one that is read.
            conv_dim: channels of the 3x3 convolutions.
            norm: theirs, as for detectron2.layers.get_norm.
            ignore_value: label of pixels that are not trained on.
            loss_weight: factor of the loss.
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
            UserError: MODEL.SEM_SEG_HEAD.IN_FEATURES is not one feature of the backbone.
        """
        head = cfg.MODEL.SEM_SEG_HEAD
        features = list(head.IN_FEATURES)
        if len(features) != 1 or features[0] not in input_shape:
            raise UserError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {features}, and FCNHead reads one feature of "
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
            features: of the backbone.
            targets: (N, H, W) labels, used in training.

        Returns:
            in training, None and ``{"loss_sem_seg"}``; else logits (N, K, h * stride, w * stride)
            and an empty dict. The images are the logits' top left part, which SemanticSegmentor
            cuts out.
        """
        logits = self.layers(features)
        if self.training:
            if targets is None:
                raise ValueError("training needs targets")
            return None, self.losses(logits, targets)
        return to_pixels(logits, self.stride), {}

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Logits (N, K, h, w)."""
        return self.classifier(self.convs(features[self.in_feature]))

    def losses(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Mean cross-entropy over the pixels that are not ignored; 0 where all are.

        Args:
            logits: (N, K, h, w).
            targets: (N, H, W).
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
    """Bilinear interpolation of what a convolutional network computes, to its input's pixels.

    With the symmetric padding of a ResNet, cell i looks at pixel i * stride, whatever the size of
    the image. So a pixel is given what lies at its own place: for a crop of 16 k + 1 pixels, as the
    paper's 513 and 769 are, this is interpolation with aligned corners, as in DeepLab, and
    evaluation at another size has the same geometry. Pixels behind the last cell have its value.

    Args:
        grid: (N, K, h, w).
        size: H and W of the images; None: the largest with that many cells.

    Returns:
        (N, K, H, W), 32-bit.
    """
    cells = grid.shape[-2:]
    height, width = size or (cells[0] * stride, cells[1] * stride)
    last_row, last_column = ((n - 1) * stride for n in cells)
    pixels = F.interpolate(
        grid.float(),  # in 16 bits, the sums would be of 16 bits
        (last_row + 1, last_column + 1),
        mode="bilinear",
        align_corners=True,
    )
    behind = (0, width - last_column - 1, 0, height - last_row - 1)
    return F.pad(pixels, behind, mode="replicate") if any(behind) else pixels
