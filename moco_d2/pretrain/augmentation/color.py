"""Changes of colors and places whose factors are tensors, one an image.

Each is a chain of operations on whole tensors, without choices that depend on values, so a compiler
makes one pass over memory of it. The definitions are torchvision's.

Legend: N batch, H, W size of a view; planes are red, green and blue in [0, 1], each (N, H, W).
"""

import math

import torch
import torch.nn.functional as F

Planes = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

_TINY = 1e-8  # far less than the chroma that a byte can have
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


def blend_matrices(factors: torch.Tensor) -> torch.Tensor:
    """Return what `blend` does to (red, green, blue, 1), for factors (..., 3): (..., 4, 4).

    The last column is the flat part, still without the mean.
    """
    own, gray, flat = factors.unbind(dim=-1)
    mixed = torch.stack([gray * weight for weight in _LUMINANCE], dim=-1)
    row = torch.cat([mixed, flat[..., None]], dim=-1)
    rows = F.pad(row[..., None, :].expand(*row.shape[:-1], 3, 4), (0, 0, 0, 1))
    return rows + torch.diag_embed(torch.stack([own, own, own, torch.ones_like(own)], dim=-1))


def rotate_hue(planes: Planes, shift: torch.Tensor, *, in_place: bool = False) -> Planes:
    """Turn the hue by `shift` (N,), in sixths of the color circle.

    Args:
        planes: The colors.
        shift: By how much.
        in_place: Whether `planes` get the result.
    """
    red, green, blue = planes
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - torch.minimum(torch.minimum(red, green), blue)
    scale = chroma.clamp(min=_TINY)  # where it is 0, so are the differences
    shift = shift[:, None, None]
    hue = torch.where(
        green == high,
        torch.addcdiv(shift + 2, blue - red, scale),
        torch.addcdiv(shift + 4, red - green, scale),
    )
    hue = torch.where(red == high, torch.addcdiv(shift, green - blue, scale), hue)
    low = torch.sub(high, chroma, alpha=2)

    def plane(out: torch.Tensor, sector: int) -> torch.Tensor:
        # Distance on the circle, between 1 and 2, to where this color is highest.
        far = (hue + sector).remainder_(6).sub_(3).abs_().clamp_(1, 2)
        return torch.addcmul(low, chroma, far, out=out if in_place else None)

    return plane(red, 0), plane(green, 4), plane(blue, 2)


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
