"""A finished detector: the model of a config, with every tensor from MODEL.WEIGHTS."""

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from moco_d2.errors import UserError
from moco_d2.files import CHECKPOINTS, is_folder, no_file
from moco_d2.transfer.checkpointing import WeightsCheckpointer
from moco_d2.transfer.weights import RANDOM, check_weights_name, loading

_NAMED_TENSORS = 3  # maximum number of tensor names in an error message


def load_detector(cfg: CfgNode) -> nn.Module:
    """Return the model on MODEL.DEVICE in evaluation mode.

    Raises:
        UserError: If MODEL.WEIGHTS is missing, an address or unreadable, or lacks a tensor of the
            model. A backbone that was not fine-tuned lacks tensors.
    """
    weights = cfg.MODEL.WEIGHTS
    if weights in ("", RANDOM):
        raise UserError(
            f"MODEL.WEIGHTS {weights!r} is not a finished detector; set it to the model_final.pth "
            "of a run"
        )
    check_weights_name(weights)
    if "://" not in weights and not Path(weights).is_file():
        reason = "does not exist; set it to the model_final.pth of a run"
        if is_folder(weights):
            reason = no_file(weights, CHECKPOINTS, "file of weights")
        raise UserError(f"MODEL.WEIGHTS {weights} {reason}")
    model = build_model(cfg)
    checkpointer = _Checkpointer(model)
    with loading(f"MODEL.WEIGHTS {weights}", "set it to the model_final.pth of a run"):
        checkpointer.load(weights)
    missing = checkpointer.missing
    if missing:
        raise UserError(
            f"MODEL.WEIGHTS {weights} is not this config's detector: {len(missing)} of "
            f"its {len(model.state_dict())} tensors are missing or have another shape "
            f"({', '.join(missing[:_NAMED_TENSORS])}); use the config of the run, and its "
            "model_final.pth"
        )
    return model.eval()


class _Checkpointer(WeightsCheckpointer):
    """Stores the names of the tensors that did not arrive, which Detectron2 only logs."""

    missing: tuple[str, ...] = ()

    def _load_model(self, checkpoint: Any) -> Any:
        incompatible = super()._load_model(checkpoint)
        wrong = [name for name, *_ in incompatible.incorrect_shapes]
        self.missing = tuple(sorted({*incompatible.missing_keys, *wrong}))
        return incompatible
