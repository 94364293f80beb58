"""The table of published checkpoints: names, addresses, hashes and networks.

weights_by_name.py fetches and converts them.
"""

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from moco_d2.checkpoint.families import IMAGENET
from moco_d2.checkpoint.mapping import Architecture, detectron2_settings
from moco_d2.checkpoint.vit.mapping import ViT
from moco_d2.errors import UserError

# Address of a folder that holds the files under their own names, e.g. https://example.org/weights.
MIRROR_VARIABLE = "MOCO_D2_MIRROR"

_RESNET50 = Architecture(50)
_SIZES = {size: (width, depth, heads) for size, width, depth, heads in (
    ("ti", 192, 12, 3), ("s", 384, 12, 6), ("b", 768, 12, 12), ("l", 1024, 24, 16),
    ("h", 1280, 32, 16),
)}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A checkpoint as its authors published it.

    Args:
        name: ``scheme://short_name``.
        url: The authors' address.
        algorithm: The algorithm of the published hash, ``md5`` or ``sha256``.
        hash: The published first hexadecimal digits of the hash; "" if the authors publish none.
            Then only the sha256 that a record has tells whether two runs used the same file.
        network: What its authors have trained.
    """

    name: str
    url: str
    algorithm: str
    hash: str
    network: Architecture | ViT = _RESNET50

    @property
    def file(self) -> str:
        """Return the authors' file name."""
        return self.url.rpartition("/")[2]

    @property
    def settings(self) -> dict[str, Any]:
        """Return the keys of Detectron2's config that the weights need, with ImageNet's pixels."""
        if isinstance(self.network, ViT):
            return self.network.settings(IMAGENET)
        return detectron2_settings(self.network)

    @property
    def address(self) -> str:
        """Return the address to download from: the mirror's if it is set, else the authors'.

        Raises:
            UserError: If the mirror is no http address.
        """
        mirror = os.environ.get(MIRROR_VARIABLE, "")
        if not mirror:
            return self.url
        if urlsplit(mirror).scheme not in ("http", "https"):
            raise UserError(
                f"{MIRROR_VARIABLE} {mirror} is not an http or https address; set it to the "
                f"address of a folder that holds {self.file}, or unset it"
            )
        return f"{mirror.rstrip('/')}/{self.file}"


def _moco(name: str, md5: str) -> Published:
    # Addresses and md5: README of the official MoCo code.
    folder = f"https://dl.fbaipublicfiles.com/moco/moco_checkpoints/moco_{name}"
    return Published(f"moco://{name}", f"{folder}/moco_{name}_pretrain.pth.tar", "md5", md5)


def _torchvision(file: str, network: Architecture) -> Published:
    # torchvision puts the sha256 into the file name.
    name, _, sha = file.removesuffix(".pth").rpartition("-")
    url = f"https://download.pytorch.org/models/{file}"
    return Published(f"torchvision://{name}", url, "sha256", sha, network)


def _fair(
    name: str, path: str, network: Architecture | ViT, digits: str = "", algorithm: str = "sha256"
) -> Published:
    return Published(name, f"https://dl.fbaipublicfiles.com/{path}", algorithm, digits, network)


def _vit(size: str, patch: int = 16, *, heads: int = 0, side: int = 224, extra: int = 1) -> ViT:
    width, depth, usual = _SIZES[size]
    return ViT(width, depth, heads or usual, patch, side // patch, extra)


def _moco_v3(name: str, network: Architecture | ViT) -> Published:
    # Addresses: CONFIG.md of facebookresearch/moco-v3, which gives no hashes.
    stem = name.replace("r50", "r-50").replace("_", "-")
    return _fair(f"mocov3://{name}", f"moco-v3/{stem}/{stem}.pth.tar", network)


def _mae(name: str, size: str, network: ViT, md5: str) -> Published:
    # Addresses and md5: README of facebookresearch/mae.
    path = f"mae/pretrain/mae_pretrain_vit_{size}.pth"
    return _fair(f"mae://{name}", path, network, md5, "md5")


def _dino(name: str, stem: str, network: Architecture | ViT) -> Published:
    # Addresses: the hubconf of facebookresearch/dino, which gives no hashes.
    return _fair(f"dino://{name}", f"dino/{stem}/{stem}.pth", network)


def _dinov2(name: str, stem: str, network: ViT) -> Published:
    # Addresses: README of facebookresearch/dinov2, which gives no hashes.
    return _fair(f"dinov2://{name}", f"dinov2/{stem}/{stem}_pretrain.pth", network)


def _deit(size: str, network: ViT, sha256: str) -> Published:
    # Supervised on ImageNet-1K. The models of facebookresearch/deit have the sha256 in file names.
    name = f"deit_{size}_patch16_224"
    return _fair(f"timm://{name}", f"deit/{name}-{sha256}.pth", network, sha256)


def _deit3(size: str, network: ViT) -> Published:
    # Supervised on ImageNet-1K. Addresses: the models v2 of facebookresearch/deit, without hashes.
    name = f"timm://deit3_{size}_patch16_224"
    return _fair(name, f"deit/deit_3_{size}_224_1k.pth", network)


# The torchvision weights are IMAGENET1K_V1: a simple recipe close to the original papers', and the
# supervised baseline of MoCo's time. IMAGENET1K_V2 is a later, longer, more regularized recipe.
PUBLISHED = (
    _moco("v1_200ep", "b251726a"),
    _moco("v2_200ep", "59fd9945"),
    _moco("v2_800ep", "a04e12f8"),
    _torchvision("resnet18-f37072fd.pth", Architecture(18)),
    _torchvision("resnet34-b627a593.pth", Architecture(34)),
    _torchvision("resnet50-0676ba61.pth", Architecture(50)),
    _torchvision("resnet101-63fe2227.pth", Architecture(101)),
    _torchvision("resnet152-394f9c45.pth", Architecture(152)),
    _torchvision("resnext50_32x4d-7cdf4587.pth", Architecture(50, 4, 32)),
    _torchvision("resnext101_32x8d-8ba56ff5.pth", Architecture(101, 8, 32)),
    _torchvision("wide_resnet50_2-95faca4d.pth", Architecture(50, 128)),
    _torchvision("wide_resnet101_2-32ee1156.pth", Architecture(101, 128)),
    _moco_v3("r50_100ep", _RESNET50),
    _moco_v3("r50_300ep", _RESNET50),
    _moco_v3("r50_1000ep", _RESNET50),
    _moco_v3("vit_s_300ep", _vit("s", heads=12)),
    _moco_v3("vit_b_300ep", _vit("b")),
    _mae("vit_b", "base", _vit("b"), "8cad7c"),
    _mae("vit_l", "large", _vit("l"), "b8b06e"),
    _mae("vit_h", "huge", _vit("h", 14), "9bdbb0"),
    _dino("r50", "dino_resnet50_pretrain", _RESNET50),
    _dino("vit_s16", "dino_deitsmall16_pretrain", _vit("s")),
    _dino("vit_s8", "dino_deitsmall8_pretrain", _vit("s", 8)),
    _dino("vit_b16", "dino_vitbase16_pretrain", _vit("b")),
    _dino("vit_b8", "dino_vitbase8_pretrain", _vit("b", 8)),
    _dinov2("vit_s14", "dinov2_vits14", _vit("s", 14, side=518)),
    _dinov2("vit_b14", "dinov2_vitb14", _vit("b", 14, side=518)),
    _dinov2("vit_l14", "dinov2_vitl14", _vit("l", 14, side=518)),
    _deit("tiny", _vit("ti"), "a1311bcf"),
    _deit("small", _vit("s"), "cd65a155"),
    _deit("base", _vit("b"), "b5f2ef4d"),
    _deit3("small", _vit("s", extra=0)),
    _deit3("base", _vit("b", extra=0)),
    _deit3("large", _vit("l", extra=0)),
)
