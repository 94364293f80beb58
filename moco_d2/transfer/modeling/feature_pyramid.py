"""The simple feature pyramid on the last map of a ViT (Li et al., arXiv 2203.16527, section 3)."""

import math

from detectron2.layers import Conv2d, get_norm
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

SCALES = (4.0, 2.0, 1.0, 0.5)  # of the levels, relative to the map (section 3)


class SimpleFeaturePyramid(Backbone):
    """Maps images (N, 3, H, W) to ``{"p2": ..., "p6": ...}`` of strides 4 to 64, for patches of 16.

    Its tensors are named as in Detectron2 main: ``net.*`` and ``simfp_2.*`` to ``simfp_5.*``.
    """

    def __init__(
        self,
        net: Backbone,
        *,
        in_feature: str,
        out_channels: int,
        scale_factors: tuple[float, ...] = SCALES,
        top_block: LastLevelMaxPool | None = None,
        norm: str = "LN",
        square_pad: int = 0,
    ):
        """
        Args:
            net: The ViT.
            in_feature: The feature of `net` that is read.
            out_channels: Number of channels of each level.
            scale_factors: Scale of each level relative to the feature, from SCALES.
            top_block: Makes one more level from the last one.
            norm: Name of the norm for detectron2.layers.get_norm.
            square_pad: Side in pixels of the square to which images are padded; 0 for none.
        """
        super().__init__()
        shape = net.output_shape()[in_feature]
        self.net = net
        self.in_feature = in_feature
        self.top_block = top_block
        self._square_pad = square_pad
        self._levels: dict[str, str] = {}  # name of the feature -> name of the module
        self._out_feature_strides: dict[str, int] = {}
        for scale in scale_factors:
            stride = int(shape.stride / scale)
            level = int(math.log2(stride))
            self.add_module(f"simfp_{level}", _level(shape.channels, out_channels, scale, norm))
            self._levels[f"p{level}"] = f"simfp_{level}"
            self._out_feature_strides[f"p{level}"] = stride
        self._last_stride = stride
        if top_block is not None:
            self._out_feature_strides[f"p{level + 1}"] = 2 * stride
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)

    @property
    def size_divisibility(self) -> int:
        """Return the number of pixels to whose multiple images are padded.

        With the side of the square here, v0.6, which cannot pad to a square, pads smaller images to
        it, too.
        """
        return self._square_pad or self._last_stride

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the levels, ``{"p2": (N, C, H / 4, W / 4), ...}``, of images (N, 3, H, W)."""
        feature = self.net(images)[self.in_feature]
        levels = {name: getattr(self, module)(feature) for name, module in self._levels.items()}
        if self.top_block is not None:
            (levels[self._out_features[-1]],) = self.top_block(levels[[*levels][-1]])
        return levels


def _level(dim: int, channels: int, scale: float, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    if scale == 4:
        layers = [
            nn.ConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2),
            get_norm(norm, dim // 2) or nn.Identity(),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 2, dim // 4, kernel_size=2, stride=2),
        ]
        dim //= 4
    elif scale == 2:
        layers = [nn.ConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2)]
        dim //= 2
    elif scale == 0.5:
        layers = [nn.MaxPool2d(kernel_size=2, stride=2)]
    for kernel, before in ((1, dim), (3, channels)):
        layers.append(
            Conv2d(
                before,
                channels,
                kernel_size=kernel,
                padding=kernel // 2,
                bias=not norm,
                norm=get_norm(norm, channels),
            )
        )
    return nn.Sequential(*layers)
