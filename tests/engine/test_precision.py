import torch
from detectron2.config import get_cfg

from moco_d2.engine.precision import DTYPES, amp_dtype


def test_the_number_type_is_one_key_for_pretraining_and_fine_tuning():
    cfg = get_cfg()
    assert amp_dtype(cfg) is None
    cfg.SOLVER.AMP.ENABLED = True
    assert amp_dtype(cfg) is torch.bfloat16
    cfg.MOCO.AMP_DTYPE = "float16"
    assert amp_dtype(cfg) is torch.float16
    assert {getattr(torch, name) for name in DTYPES} == set(DTYPES.values())
