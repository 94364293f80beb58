"""The number type of mixed precision."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from detectron2.config import CfgNode

#: Name in MOCO.AMP_DTYPE -> number type.
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def bfloat16_pays() -> bool:
    """Return whether this machine multiplies bfloat16 in hardware.

    On a CPU that does not, float32 is faster.
    """
    has_instruction = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.cuda.is_available() or has_instruction()


def amp_dtype(cfg: "CfgNode") -> torch.dtype | None:
    """Return the number type of autocast: MOCO.AMP_DTYPE, or None without SOLVER.AMP.ENABLED."""
    return DTYPES[cfg.MOCO.AMP_DTYPE] if cfg.SOLVER.AMP.ENABLED else None
