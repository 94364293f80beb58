"""The only file that knows about versions.

Detectron2 v0.6 (2021) and its current main branch both have the version "0.6". Therefore features
are detected, and versions never compared. No installed file is changed. A patch is applied only if
a feature is missing, so main and builds with compiled operators are left as they are.

Stock v0.6 lacks these features:

* ``detectron2._C``: v0.6 imports its compiled operators without a guard (deform_conv,
  rotated_boxes, roi_align_rotated), so `import detectron2.layers` fails.
* ``COCOeval_opt``: It is compiled, too. hotcoco or faster-coco-eval replaces it.
* ``PIL.Image.LINEAR``: It was removed in Pillow 10, so detectron2.data.transforms fails to import.
* ``numpy.str, int, float, ...``: They were removed in NumPy 1.24, so VOC annotations,
  SemSegEvaluator and the LVIS package fail. ``numpy.in1d`` was removed in NumPy 2.4, so the
  Cityscapes package fails.
* Several CPU processes: DefaultTrainer passes a GPU index to each, which torch refuses.
* The optimizer in checkpoints: v0.6 leaves it out, so a resumed run loses its momentum (#4110).
* ``LN`` in get_norm, and the ViT: ours take their places (layer_norm.py, transfer/modeling/vit.py).

Main lacks one feature outside Meta:

* Cityscapes' scripts: It imports ``deeplearning.projects.cityscapesApi.cityscapesscripts``, an
  internal package of Meta (#5436).
"""

import contextlib
import datetime
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any


class _MissingOperators(types.ModuleType):
    """Placeholder for ``detectron2._C``, which raises an error when an operator is used."""

    # Detectron2's environment report calls these functions of the extension.
    get_compiler_version = staticmethod(lambda: "none: compiled operators are absent")
    get_cuda_version = staticmethod(lambda: "none")
    has_cuda = staticmethod(lambda: False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotImplementedError(
            f"detectron2._C.{name} is a compiled operator, but this Detectron2 was installed "
            "without its C++ sources. Deformable convolution, rotated boxes and rotated RoIAlign "
            "need a Detectron2 built from source: install one (docs/install.md, 'Into an "
            "environment with your own Detectron2')."
        )


def _fastest_coco_eval(truth: Any, detections: Any, task: str) -> Any:
    from moco_d2.plugin.evaluators import fastest_coco_eval

    return fastest_coco_eval(truth, detections, task)


class _FastEval(types.ModuleType):
    """Placeholder for detectron2.evaluation.fast_eval_api; it imports an evaluator at first use."""

    def __getattr__(self, name: str) -> Any:
        if name != "COCOeval_opt":
            raise AttributeError(name)
        return _fastest_coco_eval


def _imports_compiled_operators_unguarded(detectron2_dir: Path) -> bool:
    source = detectron2_dir / "layers" / "rotated_boxes.py"
    # Only an import without indentation: one inside try or if is guarded.
    return source.is_file() and bool(
        re.search(r"^from detectron2 import _C\b", source.read_text(), re.MULTILINE)
    )


def _supply_compiled_operator_placeholder() -> None:
    import detectron2

    package_dir = Path(detectron2.__path__[0])
    extension = importlib.machinery.PathFinder.find_spec("detectron2._C", detectron2.__path__)
    if extension is not None or "detectron2._C" in sys.modules:
        return
    # Without this module, main evaluates with pycocotools.
    sys.modules.setdefault(
        "detectron2.evaluation.fast_eval_api", _FastEval("detectron2.evaluation.fast_eval_api")
    )
    if _imports_compiled_operators_unguarded(package_dir):
        placeholder = _MissingOperators("detectron2._C")
        sys.modules["detectron2._C"] = placeholder
        _supply(detectron2, "_C", placeholder)


#: What this process has supplied, as ``PIL.Image.LINEAR``.
SUPPLIED: list[str] = []
LAYER_NORM = "detectron2.layers.get_norm of LN"  # only models with this norm need it


def _supply(module: types.ModuleType, name: str, value: Any) -> None:
    setattr(module, name, value)
    SUPPLIED.append(f"{module.__name__}.{name}")


def _supply_pillow_names() -> None:
    from PIL import Image

    if not hasattr(Image, "LINEAR"):
        _supply(Image, "LINEAR", Image.Resampling.BILINEAR.value)


def _supply_numpy_names() -> None:
    import numpy as np

    for alias in (bool, int, float, complex, object, str):
        if alias.__name__ not in np.__dict__:
            _supply(np, alias.__name__, alias)
    if not hasattr(np, "in1d"):
        _supply(np, "in1d", lambda *args, **kwargs: np.isin(*args, **kwargs).ravel())


_METAS_PACKAGE = "deeplearning.projects.cityscapesApi"


class _MetasCityscapes(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Importer of ``deeplearning.projects.cityscapesApi.cityscapesscripts``. It gives the modules
    of the public package, and empty packages for the parents.
    """

    def __init__(self) -> None:
        self._specs: dict[str, Any] = {}

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        public = fullname.removeprefix(f"{_METAS_PACKAGE}.")
        if public == fullname:
            if not f"{_METAS_PACKAGE}.".startswith(f"{fullname}."):
                return None
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        if importlib.util.find_spec(public) is None:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        public = spec.name.removeprefix(f"{_METAS_PACKAGE}.")
        if public == spec.name:
            return None  # an empty package
        # One module under two names, so a patch of one is a patch of the other.
        module = importlib.import_module(public)
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        # The import system has replaced the spec of the public module by Meta's. Restore it.
        if module.__spec__ is not None:
            module.__spec__ = self._specs.pop(module.__spec__.name, module.__spec__)


def _supply_cityscapes_scripts() -> None:
    import detectron2

    source = Path(detectron2.__path__[0]) / "data" / "datasets" / "cityscapes.py"
    if not source.is_file() or _METAS_PACKAGE not in source.read_text():
        return
    if importlib.util.find_spec(_METAS_PACKAGE.partition(".")[0]) is None:
        # In first place, because the path finders would import the children a second time.
        sys.meta_path.insert(0, _MetasCityscapes())


def apply(after_import: Callable[[str, Callable[[], None]], None] | None = None) -> None:
    """Supply the features that the installed Detectron2 lacks with the installed torch, NumPy and
    Pillow. Idempotent.

    Args:
        after_import: Function that calls a patch after the import of a module
            (after_import.after_import). With None, Pillow is imported for its patch.
    """
    if after_import is None:
        _supply_pillow_names()
    else:
        after_import("PIL.Image", _supply_pillow_names)
    _supply_numpy_names()
    _supply_compiled_operator_placeholder()
    _supply_cityscapes_scripts()


def let_cpu_processes_share_a_model() -> None:
    """Make DefaultTrainer work in several CPU processes, to which it would pass GPU indices."""
    from detectron2.engine import defaults

    original = defaults.create_ddp_model

    @functools.wraps(original)
    def create_ddp_model(model: Any, **kwargs: Any) -> Any:
        if next(model.parameters()).device.type == "cpu":
            kwargs.setdefault("device_ids", None)
        return original(model, **kwargs)

    defaults.create_ddp_model = create_ddp_model


def supply_layer_norm() -> None:
    """Make detectron2.layers.get_norm know ``LN``, also where it has been imported by its name."""
    from detectron2.layers import batch_norm

    if hasattr(batch_norm, "LayerNorm"):
        return
    from moco_d2.plugin.layer_norm import ChannelLayerNorm

    original = batch_norm.get_norm

    @functools.wraps(original)
    def get_norm(norm: Any, out_channels: int) -> Any:
        return original(ChannelLayerNorm if norm == "LN" else norm, out_channels)

    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get("get_norm") is original:
            module.get_norm = get_norm  # type: ignore[attr-defined]
    SUPPLIED.append(LAYER_NORM)


def installed_vit() -> tuple[Any, Any] | None:
    """Return Detectron2's own ViT and SimpleFeaturePyramid; None if it lacks them, or timm, which
    they import when they are built.
    """
    try:
        vit = importlib.import_module("detectron2.modeling.backbone.vit")
        importlib.import_module("timm.models.layers")
    except ImportError:
        return None
    return vit.ViT, vit.SimpleFeaturePyramid


def look_up_config_keys_directly() -> None:
    """Make Detectron2's set-up read keys of a CfgNode from the node itself.

    It dumps the config to YAML and parses it again for each of the few keys that it asks for, which
    takes 0.15 s each. Another Detectron2 without this function is left as it is.
    """
    from detectron2.config import CfgNode
    from detectron2.engine import defaults

    original = getattr(defaults, "_try_get_key", None)
    if original is None:
        return

    @functools.wraps(original)
    def look_up(cfg: Any, *keys: str, default: Any = None) -> Any:
        if not isinstance(cfg, CfgNode):
            return original(cfg, *keys, default=default)
        for key in keys:
            with contextlib.suppress(AttributeError):
                return functools.reduce(getattr, key.split("."), cfg)
        return default

    defaults._try_get_key = look_up


def has_compiled_operators() -> bool:
    """Return whether Detectron2 has its C++ operators; the paper's models need none."""
    try:
        module = importlib.import_module("detectron2._C")
    except ImportError:
        return False
    return not isinstance(module, _MissingOperators)


def checkpoints_hold_the_optimizer(trainer_class: type) -> bool:
    """Return whether Detectron2's DefaultTrainer saves the optimizer state. Main does; v0.6 does
    not (#4110).
    """
    return "state_dict" in trainer_class.__dict__


def set_label_reader(evaluator: Any, read: Callable[[str, Any], Any]) -> None:
    """Make main's SemSegEvaluator read label files with `read`, because its own reader fails with
    NumPy 2. v0.6 has no such attribute and opens the files itself.

    Both versions also divide the mIoU differently: main by the number of classes in the ground
    truth, v0.6 by the number of classes in the ground truth or the predictions.
    """
    if hasattr(evaluator, "sem_seg_loading_fn"):
        evaluator.sem_seg_loading_fn = read


def set_local_process_group(ranks_per_machine: int) -> None:
    """Set the ranks of this machine in Detectron2's comm, if torchrun created the process group.

    main has a function for it. In v0.6, only launch() sets the private variable.
    """
    import torch.distributed as dist
    from detectron2.utils import comm

    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(ranks_per_machine)
        return
    machine = dist.get_rank() // ranks_per_machine
    for i in range(dist.get_world_size() // ranks_per_machine):
        group = dist.new_group(range(i * ranks_per_machine, (i + 1) * ranks_per_machine))
        if i == machine:
            comm._LOCAL_PROCESS_GROUP = group


def set_timeout_of_gloo_group(timeout: datetime.timedelta) -> None:
    """Set the timeout of the gloo group in which Detectron2's comm gathers objects beside NCCL.

    Without this, the group keeps torch's half an hour. Another Detectron2 without this private
    function is left as it is.
    """
    import torch.distributed as dist
    from detectron2.utils import comm

    original = getattr(comm, "_get_global_gloo_group", None)
    if original is None or dist.get_backend() == "gloo":
        return

    @functools.lru_cache
    def group() -> Any:
        return dist.new_group(backend="gloo", timeout=timeout)

    comm._get_global_gloo_group = group
