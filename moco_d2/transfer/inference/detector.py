"""A finished detector: the model of a config, filled from MODEL.WEIGHTS to the last tensor."""

from pathlib import Path
from typing import Any

from detectron2.modeling import build_model
from torch import nn

from moco_d2.errors import UserError
from moco_d2.transfer.checkpointing import WeightsCheckpointer
from moco_d2.transfer.weights import RANDOM, check_weights_name, loading

_NAMED_TENSORS = 3  # in an error


def load_detector(cfg: Any) -> nn.Module:
    """The model on MODEL.DEVICE, in evaluation mode.

    Raises:
        UserError: MODEL.WEIGHTS is absent, an address, unreadable, or lacks a tensor of this model,
            as a backbone that has not been fine-tuned does.
    """
    weights = cfg.MODEL.WEIGHTS
    if weights in ("", RANDOM):
        raise UserError(
            f"MODEL.WEIGHTS {weights!r} is no finished detector; give a run's model_final.pth"
        )
    check_weights_name(weights)
    if "://" not in weights and not Path(weights).is_file():
        raise UserError(f"MODEL.WEIGHTS {weights} does not exist; give a run's model_final.pth")
    model = build_model(cfg)
    checkpointer = _Checkpointer(model)
    with loading(f"MODEL.WEIGHTS {weights}", "give a finished detector, model_final.pth"):
        checkpointer.load(weights)
    missing = checkpointer.missing
    if missing:
        raise UserError(
            f"MODEL.WEIGHTS {weights} is not this config's detector: {len(missing)} of "
            f"its {len(model.state_dict())} tensors are not in it, or of another shape "
            f"({', '.join(missing[:_NAMED_TENSORS])}); give the config that the run was made with, "
            "and its model_final.pth"
        )
    return model.eval()


class _Checkpointer(WeightsCheckpointer):
    """Keeps what Detectron2 only logs: the tensors that did not arrive."""

    missing: tuple[str, ...] = ()

    def _load_model(self, checkpoint: Any) -> Any:
        incompatible = super()._load_model(checkpoint)
        wrong = [name for name, *_ in incompatible.incorrect_shapes]
        self.missing = tuple(sorted({*incompatible.missing_keys, *wrong}))
        return incompatible
