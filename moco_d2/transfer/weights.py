"""Checks of the value of MODEL.WEIGHTS, and of whether all its tensors arrived in the model."""

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

from moco_d2.checkpoint.hub_names import SCHEME, parse
from moco_d2.checkpoint.io import load_checkpoint, read_provenance
from moco_d2.checkpoint.published import PUBLISHED
from moco_d2.checkpoint.weights_by_name import CATALOG
from moco_d2.errors import UserError, closest
from moco_d2.files import CHECKPOINTS, no_file, sha256

RANDOM = "random://"
# Prefixes of names whose files are compared with their published hash; see
# checkpoint/weights_by_name.py. What the hub serves is recorded with its commit and sha256; see
# checkpoint/hub.py.
_BY_NAME = (*CATALOG.schemes, SCHEME)
# The address that ``detectron2://`` stands for, as in
# ``detectron2://ImageNetPretrained/MSRA/R-50.pkl``.
_MODEL_ZOO = "https://dl.fbaipublicfiles.com/detectron2/"

#: Endings of a detector's constants from the config, which only some versions of Detectron2 save.
CONSTANTS = ("pixel_mean", "pixel_std")

# Endings of tensors of a backbone that no pretraining supplies.
_NOT_PRETRAINED = ("num_batches_tracked", "attn.rel_pos_h", "attn.rel_pos_w")

_LONGEST = 150  # maximum number of characters of an address in an error message


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """Return this process's temporary folder, which is removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="moco_d2_")


def register_path_handlers() -> None:
    """Make Detectron2's PathManager accept ``random://`` (random initialization). Idempotent."""
    from detectron2.utils.file_io import PathManager
    from iopath.common.file_io import PathHandler

    class RandomInitializationHandler(PathHandler):
        """Gives an empty checkpoint, with which every parameter keeps its random initial value."""

        def _get_supported_prefixes(self) -> list[str]:
            # Without the slashes, because Detectron2's main splits and joins the name without them.
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
    """Counts which tensors of the pretrained ResNet came from the weight file.

    Attributes:
        expected: Number of tensors of the ResNet in the detector (backbone, and res5 in a C4 head).
        missing: Names of the tensors that did not arrive.
        beyond: Names of tensors of the detector's other parts that came from the weight file, too.
    """

    expected: int
    missing: tuple[str, ...]
    beyond: tuple[str, ...] = ()

    @property
    def loaded(self) -> int:
        """Return the number of tensors that arrived."""
        return self.expected - len(self.missing)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model itself if it is wrapped for several processes."""
    return getattr(model, "module", model)


def pretrained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a detector that a pretrained backbone supplies, by name.

    They are the ResNet (under the backbone or an FPN's ``bottom_up``) and the blocks of res5 in a
    C4 head, or the ViT (under a pyramid's ``net``) without the relative positions, which begin at
    zero. BatchNorm's batch counters are left out, because nothing depends on them.
    """
    prefixes = []
    for name, module in model.named_children():
        if name == "backbone":
            inner = next((part for part in ("bottom_up", "net") if hasattr(module, part)), "")
            prefixes.append(f"backbone.{inner}." if inner else "backbone.")
        if name == "roi_heads" and hasattr(module, "res5"):
            prefixes += [
                f"roi_heads.res5.{block}."
                for block, _ in module.get_submodule("res5").named_children()
                if block != "norm"
            ]
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(tuple(prefixes)) and not name.endswith(_NOT_PRETRAINED)
    }


CONVERT = "convert it: tools/convert.py"  # the fix for weights that cannot be read
# The errors that Detectron2, fvcore and torch raise for a file that they cannot read.
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
    """Turn the errors that Detectron2 raises for an unreadable file into one sentence.

    Args:
        source: The user's name of the file.
        advice: The fix that the error names.

    Raises:
        UserError: If the file cannot be read, for example because it is not converted.
    """
    try:
        yield
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"Detectron2 cannot load {source} ({reason}); {advice}") from error


class measure_coverage:  # noqa: N801  a context manager reads as a verb
    """Measure which tensors are filled while the context is open, by any loader.

    Every tensor is first set to NaN. A tensor that is still NaN at the end did not arrive and gets
    its initial value back. This is independent of file formats, and it cannot count a tensor that
    is in the file but was not loaded.

    Examples:
    ::
        with measure_coverage(model) as coverage:
            checkpointer.load(path)
        coverage.result.missing
    """

    def __init__(self, model: nn.Module, *, backbone_only: bool = False):
        """
        Args:
            model: The detector.
            backbone_only: Whether all tensors but those of the pretrained ResNet get their initial
                values back, also if they arrived.
        """
        self._pretrained = pretrained_tensors(model)
        self._tensors = {
            name: tensor
            for name, tensor in model.state_dict().items()
            if tensor.is_floating_point() and not name.endswith(CONSTANTS)
        }
        self._backbone_only = backbone_only
        self.result: Coverage

    def __enter__(self) -> "measure_coverage":
        self._initial = {name: tensor.clone() for name, tensor in self._tensors.items()}
        for tensor in self._tensors.values():
            tensor.fill_(float("nan"))
        return self

    def __exit__(self, *exception: object) -> None:
        absent = [name for name, tensor in self._tensors.items() if torch.isnan(tensor).any()]
        beyond = [
            name
            for name in self._tensors.keys() - self._pretrained.keys()
            if not torch.isnan(self._tensors[name]).all()
        ]
        for name in {*absent, *(beyond if self._backbone_only else ())}:
            self._tensors[name].copy_(self._initial[name])
        missing = tuple(name for name in absent if name in self._pretrained)
        self.result = Coverage(len(self._pretrained), missing, tuple(sorted(beyond)))


def check_weights_name(weights: str) -> None:
    """Refuse weights that Detectron2's PathManager would fetch from an address: a change of the
    file at that address would go unnoticed.

    Accepted are ``random://``, names of published weights (their sha256 is checked), names on the
    Hugging Face hub (see checkpoint/hub.py) and local files.

    Raises:
        UserError: If `weights` is an address, or a wrong name on the hub.
    """
    if weights != RANDOM and re.fullmatch(r"\s*random:/*\s*", weights, re.IGNORECASE):
        raise UserError(f"MODEL.WEIGHTS is {weights!r}: write {RANDOM} for random initialization")
    if weights.startswith(SCHEME):
        parse(weights)
    address = re.match(r"[A-Za-z][\w+.-]*:/", weights)
    if not address or weights == RANDOM or weights.startswith(_BY_NAME):
        return
    plain = re.sub(r"[?#].*", "", weights)
    if published := _published_at(plain):
        raise UserError(
            f"MODEL.WEIGHTS {weights:.{_LONGEST}} is an address: set MODEL.WEIGHTS {published}, "
            "which fetches, checks and converts this file"
        )
    names = [entry.name for entry in PUBLISHED]
    scheme = address[0].partition(":")[0]
    if closest(scheme, {name.partition(":")[0] for name in names}):
        raise UserError(
            f"MODEL.WEIGHTS {weights:.{_LONGEST}} is not a name of published weights; "
            + (closest(plain, names) or f"the names are {', '.join(names)}")
        )
    source = "it"
    convert = "; convert a file that is not in Detectron2's format with tools/convert.py first"
    if weights.startswith("detectron2://"):
        source, convert = plain.replace("detectron2://", _MODEL_ZOO)[:_LONGEST], ""
    name = plain.rstrip("/").rpartition("/")[2]
    raise UserError(
        f"MODEL.WEIGHTS {weights:.{_LONGEST}} is an address: fetch {source} yourself, check its "
        f"sha256, and set MODEL.WEIGHTS weights/{name:.60}{convert}"
    )


def _published_at(address: str) -> str | None:
    """Return the name of the published weights at an address; None if there are none."""
    bare = _without_scheme(address)
    return next((entry.name for entry in PUBLISHED if _without_scheme(entry.url) == bare), None)


def _without_scheme(address: str) -> str:
    return re.sub(r"^https?:/+", "", address)


def check_weights_file(weights: str) -> None:
    """Refuse a MODEL.WEIGHTS that cannot be loaded, before anything is written.

    Raises:
        UserError: If it is empty, an address, or a file that does not exist.
    """
    check_weights_name(weights)
    if not weights.strip():
        raise UserError(
            f"MODEL.WEIGHTS is empty: set it to {RANDOM} for random initialization, to a converted "
            "file, or to a name of published weights (moco://v2_800ep)"
        )
    if "://" not in weights and not Path(weights).is_file():
        if reason := _no_file(weights):
            raise UserError(f"MODEL.WEIGHTS {weights!r} {reason}")
        raise UserError(
            f"MODEL.WEIGHTS {weights} does not exist: make it with tools/convert.py CHECKPOINT "
            f"{weights}, or set MODEL.WEIGHTS to a converted file"
        )


def _no_file(weights: str) -> str | None:
    """Return why a path is no file, and what to do; None if there is nothing at it."""
    path = Path(weights)
    if weights != weights.strip():
        return "begins or ends with a space; write it without"
    if path.is_dir():
        return no_file(path, CHECKPOINTS, "file of weights")
    if path.is_symlink():
        return f"is a link to {path.readlink()}, where no file is; correct the link, or name a file"
    return None


def describe_weights(weights: str) -> dict[str, Any] | None:
    """Return file name, sha256 and provenance of a weight file for the run record; None for random
    initialization.
    """
    if weights == RANDOM:
        return None
    path = _local_file(weights)
    return {"file": path.name, "sha256": sha256(path), "provenance": read_provenance(path)}


def tensor_names(weights: str) -> list[str]:
    """Return the names of the tensors in a weight file; none for random initialization."""
    if weights == RANDOM:
        return []
    content = load_checkpoint(_local_file(weights))
    model = content.get("model", content)
    return [name for name in model if isinstance(name, str)] if isinstance(model, dict) else []


def _local_file(weights: str) -> Path:
    """Return the local file of MODEL.WEIGHTS. One process per machine fetches it if necessary, and
    its failure is raised in all processes.
    """
    import detectron2.checkpoint  # noqa: F401  its import registers the names
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
            f"MODEL.WEIGHTS {weights} is not a file; set it to a converted file, or to a name of "
            "published weights (moco://v2_800ep, torchvision://resnet50)"
        )
    return path
