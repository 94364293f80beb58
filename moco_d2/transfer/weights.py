"""What MODEL.WEIGHTS may say, and whether all of it arrived in the model."""

import contextlib
import dataclasses
import functools
import pickle
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moco_d2.checkpoint.catalog import PUBLISHED
from moco_d2.checkpoint.io import read_provenance
from moco_d2.errors import UserError, closest
from moco_d2.files import sha256

RANDOM = "random://"
# Names whose files are held against the sha256 they were published with; see checkpoint/catalog.py.
_PUBLISHED = ("moco://", "torchvision://")
# What is left of Detectron2's own names, ``detectron2://ImageNetPretrained/MSRA/R-50.pkl``, as an
# address.
_MODEL_ZOO = "https://dl.fbaipublicfiles.com/detectron2/"

_LONGEST = 150  # characters of an address in an error


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """Return this process's temporary folder, which is made when it is needed for the first time
    and removed when the process ends.
    """
    return tempfile.TemporaryDirectory(prefix="moco_d2_")


def register_path_handlers() -> None:
    """Teach Detectron2's PathManager ``random://``, random initialization. Idempotent."""
    from detectron2.utils.file_io import PathManager
    from iopath.common.file_io import PathHandler

    class RandomInitializationHandler(PathHandler):
        """An empty checkpoint: every parameter keeps its random initial value."""

        def _get_supported_prefixes(self) -> list[str]:
            # Without the slashes: today's main takes the name apart and together, which loses them.
            return [RANDOM.rstrip("/")]

        def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
            file = Path(_scratch().name) / "random.pth"
            torch.save({"model": {}}, file)
            return str(file)

        def _open(self, path: str, mode: str = "r", **kwargs: Any) -> Any:
            return Path(self._get_local_path(path)).open(mode)

    PathManager.register_handler(RandomInitializationHandler(), allow_override=True)


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How many of the tensors that pretraining could supply came from the weight file.

    Attributes:
        expected: tensors of the ResNet in the detector: backbone, and res5 in a C4 head.
        missing: names of those that did not arrive.
    """

    expected: int
    missing: tuple[str, ...]

    @property
    def loaded(self) -> int:
        """Number of tensors that arrived."""
        return self.expected - len(self.missing)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, where it is wrapped for several processes."""
    return getattr(model, "module", model)


def pretrained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a detector that a pretrained ResNet supplies, by name.

    The ResNet itself, under the backbone or under an FPN's ``bottom_up``, and the blocks of a C4
    head's res5. BatchNorm's batch counters are left out: nothing depends on them.
    """
    prefixes = []
    for name, module in model.named_children():
        if name == "backbone":
            prefixes.append("backbone.bottom_up." if hasattr(module, "bottom_up") else "backbone.")
        if name == "roi_heads" and hasattr(module, "res5"):
            prefixes += [
                f"roi_heads.res5.{block}."
                for block, _ in module.get_submodule("res5").named_children()
                if block != "norm"
            ]
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(tuple(prefixes)) and not name.endswith("num_batches_tracked")
    }


# What Detectron2, fvcore and torch raise for a file that is not theirs.
_UNREADABLE = (
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,  # OverflowError
    AttributeError,
    AssertionError,
    RuntimeError,
    EOFError,
    pickle.UnpicklingError,
)


@contextlib.contextmanager
def loading(source: str, advice: str) -> Iterator[None]:
    """Turn what Detectron2 raises for a file it cannot read into a sentence.

    Args:
        source: what is loaded, as the user knows it.
        advice: what to do instead.

    Raises:
        UserError: the file cannot be read, as happens with one that is not converted.
    """
    try:
        yield
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"Detectron2 cannot load {source} ({reason}); {advice}") from error


class measure_coverage:  # noqa: N801  a context manager reads as a verb
    """Measure which tensors a loading step fills, whatever does the loading.

    Every tensor that should arrive is set to NaN first; one that is still NaN afterwards did not
    arrive, and gets its initial value back. This needs no knowledge of file formats and cannot
    mistake "found" for "loaded".

    Examples:
    ::
        with measure_coverage(model) as coverage:
            checkpointer.load(path)
        coverage.result.missing
    """

    def __init__(self, model: nn.Module):
        self._tensors = pretrained_tensors(model)
        self.result: Coverage

    def __enter__(self) -> "measure_coverage":
        self._initial = {name: tensor.clone() for name, tensor in self._tensors.items()}
        for tensor in self._tensors.values():
            tensor.fill_(float("nan"))
        return self

    def __exit__(self, *exception: object) -> None:
        missing = []
        for name, tensor in self._tensors.items():
            if torch.isnan(tensor).any():
                missing.append(name)
                tensor.copy_(self._initial[name])
        self.result = Coverage(len(self._tensors), tuple(missing))


def check_weights_name(weights: str) -> None:
    """Refuse weights that would be fetched from an address, by Detectron2's PathManager: nobody
    would notice other weights there tomorrow.

    Accepted are random://, published weights by name, which are held against their sha256, and
    files of this machine.

    Raises:
        UserError: `weights` is an address.
    """
    address = re.match(r"[A-Za-z][\w+.-]*:/", weights)
    if not address or weights == RANDOM or weights.startswith(_PUBLISHED):
        return
    plain = re.sub(r"[?#].*", "", weights)
    if published := _published_at(plain):
        raise UserError(
            f"MODEL.WEIGHTS {weights:.{_LONGEST}} is an address: write MODEL.WEIGHTS {published}, "
            "which fetches this file, checks and converts it"
        )
    names = [entry.name for entry in PUBLISHED]
    scheme = address[0].partition(":")[0]
    if closest(scheme, {name.partition(":")[0] for name in names}):
        raise UserError(
            f"MODEL.WEIGHTS {weights:.{_LONGEST}} is no name of published weights; "
            + (closest(plain, names) or f"there are {', '.join(names)}")
        )
    source = "it"
    convert = "; a checkpoint that is not in Detectron2's form goes through tools/convert.py first"
    if weights.startswith("detectron2://"):
        source, convert = plain.replace("detectron2://", _MODEL_ZOO)[:_LONGEST], ""
    name = plain.rstrip("/").rpartition("/")[2]
    raise UserError(
        f"MODEL.WEIGHTS {weights:.{_LONGEST}} is an address: fetch {source} yourself, check its "
        f"sha256, and set MODEL.WEIGHTS weights/{name:.60}{convert}"
    )


def _published_at(address: str) -> str | None:
    """The name of the published weights that their authors serve at an address, if it is one."""
    found = _without_scheme(address)
    return next((entry.name for entry in PUBLISHED if _without_scheme(entry.url) == found), None)


def _without_scheme(address: str) -> str:
    return re.sub(r"^https?:/+", "", address)


def check_weights_file(weights: str) -> None:
    """Refuse a MODEL.WEIGHTS that cannot be loaded, before anything is written.

    Raises:
        UserError: empty, an address, or no such file.
    """
    check_weights_name(weights)
    if not weights:
        raise UserError(
            f"MODEL.WEIGHTS is empty: write MODEL.WEIGHTS {RANDOM} for random initialization, a "
            "converted file, or published weights by name (moco://v2_800ep)"
        )
    if "://" not in weights and not Path(weights).is_file():
        raise UserError(
            f"MODEL.WEIGHTS {weights} does not exist: make it with tools/convert.py CHECKPOINT "
            f"{weights}, or set MODEL.WEIGHTS to a converted file"
        )


def describe_weights(weights: str) -> dict[str, Any] | None:
    """File name, sha256 and provenance of a weight file for the run record; None for random
    initialization.
    """
    if weights == RANDOM:
        return None
    path = _local_file(weights)
    return {"file": path.name, "sha256": sha256(path), "provenance": read_provenance(path)}


def _local_file(weights: str) -> Path:
    """The file behind MODEL.WEIGHTS; what has to be fetched is fetched by one process a machine,
    and its failure is everyone's.
    """
    from detectron2.utils import comm
    from detectron2.utils.file_io import PathManager

    check_weights_name(weights)
    failure = None
    if comm.get_local_rank() == 0:
        try:
            PathManager.get_local_path(weights)
        except UserError as error:
            failure = str(error)
        except OSError as error:
            failure = (
                f"cannot fetch MODEL.WEIGHTS {weights}: {error}; fetch it elsewhere and set "
                "MODEL.WEIGHTS to the file"
            )
    failures = [failure for failure in comm.all_gather(failure) if failure]
    if failures:
        raise UserError(failures[0])
    path = Path(PathManager.get_local_path(weights))
    if not path.is_file():
        raise UserError(
            f"MODEL.WEIGHTS {weights} leads to no file; name a converted file, or published "
            "weights as in moco://v2_800ep and torchvision://resnet50"
        )
    return path
