"""Changes of colors and places whose factors are tensors, one an image.

Each is a chain of operations on whole tensors, without choices that depend on values, so a compiler
makes one pass over memory of it. The definitions are torchvision's.

Legend: N batch, H, W size of a view; planes are red, green and blue in [0, 1], each (N, H, W).
"""

import math

import torch
import torch.nn.functional as F

Planes = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

_LUMINANCE = (0.299, 0.587, 0.114)  # torchvision's weights, of ITU-R BT.601


def luminance(planes: Planes) -> torch.Tensor:
    """Return the gray value of each pixel, (N, H, W)."""
    red, *others = planes
    gray = red * _LUMINANCE[0]
    for plane, weight in zip(others, _LUMINANCE[1:], strict=True):
        gray = gray.add_(plane, alpha=weight)
    return gray


def blend(planes: Planes, factors: torch.Tensor, mean: torch.Tensor) -> Planes:
    """Return own x color + gray x luminance + flat x mean, cut to [0, 1].

    Brightness, contrast, saturation and grayscale are such blends.

    Args:
        planes: The colors.
        factors: (own, gray, flat) of each image, (N, 3).
        mean: The value that contrast keeps, (N, 1, 1).
    """
    own, gray, flat = factors[..., None, None].unbind(dim=1)
    added = torch.addcmul(flat * mean, luminance(planes), gray)
    red, green, blue = (torch.addcmul(added, plane, own).clamp_(0, 1) for plane in planes)
    return red, green, blue


def rotate_hue(planes: Planes, shift: torch.Tensor) -> Planes:
    """Turn the hue by `shift` (N,), in sixths of the color circle."""
    red, green, blue = planes
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - torch.minimum(torch.minimum(red, green), blue)
    scale = torch.where(chroma > 0, chroma, 1)
    hue = torch.where(green == high, 2 + (blue - red) / scale, 4 + (red - green) / scale)
    hue = torch.where(red == high, (green - blue) / scale, hue) + shift[:, None, None]

    def plane(sector: int) -> torch.Tensor:
        at = (hue + sector).remainder(6)
        return high - chroma * torch.minimum(at, 4 - at).clamp(0, 1)

    return plane(5), plane(3), plane(1)


def blur_taps(sigma: torch.Tensor, reach: int) -> torch.Tensor:
    """Return Gaussian weights (N, 2 reach + 1) of sum 1; those of sigma 0 leave an image alone."""
    at = torch.arange(-reach, reach + 1)
    return torch.where(
        sigma[:, None] > 0,
        F.softmax(-0.5 * (at / sigma[:, None].clamp(min=1e-6)) ** 2, dim=1),
        (at == 0).float(),
    )


def blur(images: torch.Tensor, taps: list[float]) -> torch.Tensor:
    """Blur images (N, 3, H, W) in both directions. The border is repeated, as in Pillow."""
    reach = len(taps) // 2
    for pad, dim in (((reach, reach, 0, 0), 3), ((0, 0, reach, reach), 2)):
        side = images.shape[dim]
        padded = F.pad(images, pad, mode="replicate")
        images = padded.narrow(dim, 0, side) * taps[0]
        for i, tap in enumerate(taps[1:], start=1):
            images.add_(padded.narrow(dim, i, side), alpha=tap)
    return images


def tap_matrices(side: int, reach: int) -> torch.Tensor:
    """Return 0 and 1, (2 reach + 1, side, side): which pixel a tap takes for a pixel.

    Weighted with taps, the sum is the matrix that blurs as `blur` does.
    """
    at = torch.arange(side) + torch.arange(-reach, reach + 1)[:, None]
    return F.one_hot(at.clamp(0, side - 1), side).float()


def reach_of(sigma: float) -> int:
    """Return how many pixels to each side a blur looks: three standard deviations."""
    return math.ceil(3 * sigma)
