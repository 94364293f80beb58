"""Examines what a machine has for the commands of this package. It reads; it writes nothing."""

import contextlib
import dataclasses
import importlib
import importlib.util
import os
import shutil
from collections.abc import Collection, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from moco_d2.config.load import load_config, packaged_parts
from moco_d2.errors import UserError, printable
from moco_d2.records.environment import cpu_name, versions

# What all commands need, and how it is installed.
_NEEDED = {
    "torch": "uv pip install torch torchvision",
    "torchvision": "uv pip install torch torchvision",
    "detectron2": "uv pip install '.[detectron2]', or install a Detectron2 of your own",
    "pycocotools": "uv pip install pycocotools",
    "cv2": "uv pip install opencv-python",
}
# What single tasks and keys need: module -> extra and use.
_OPTIONAL = {
    "cityscapesscripts": ("cityscapes", "Cityscapes"),
    "huggingface_hub": ("hub", "weights named hf://USER/REPO"),
    "wandb": ("wandb", "MOCO.TRACKERS wandb"),
    "mlflow": ("mlflow", "MOCO.TRACKERS mlflow"),
    "trackio": ("trackio", "MOCO.TRACKERS trackio"),
}
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_LITTLE_SPACE_GB = 10  # a few checkpoints with the state of their optimizer


@dataclasses.dataclass
class Report:
    """What was found.

    Attributes:
        found: Lines about what the machine has, by title.
        missing: What all commands need and the machine lacks, each with its fix.
        advice: What some commands need, each with its fix.
    """

    found: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    advice: list[str] = dataclasses.field(default_factory=list)

    def text(self) -> str:
        """Return the report as lines of text."""
        width = max((len(title) for title, _ in self.found), default=0)
        lines = [f"{title:<{width}}  {value}" for title, value in self.found]
        lines += [f"missing: {item}" for item in self.missing]
        lines += [f"note: {item}" for item in self.advice]
        if not self.missing:
            lines.append("every command can run here")
        return "\n".join(map(printable, lines))


def examine() -> Report:
    """Examine the Python packages, the devices, the datasets and the space of this machine."""
    report = Report()
    installed = versions("pycocotools", "faster-coco-eval", "hotcoco", "opencv-python")
    report.found.append(("versions", ", ".join(f"{name} {v}" for name, v in installed.items())))
    usable = {name for name, fix in _NEEDED.items() if _imports(name, fix, report)}
    report.missing += _unmet_requirements(already=usable ^ _NEEDED.keys())
    _examine_extras(report)
    if "detectron2" in usable:
        _examine_detectron2(report)
    if "torch" in usable:
        _examine_devices(report)
    if {"torch", "detectron2"} <= usable:
        _examine_datasets(report)
        _examine_weights(report)
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    report.found.append(("disk", f"{free:.0f} GB free in this folder"))
    if free < _LITTLE_SPACE_GB:
        report.advice.append(f"{free:.0f} GB are little; set OUTPUT_DIR to a larger disk")
    return report


def _imports(name: str, fix: str, report: Report) -> bool:
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken installation may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        report.missing.append(f"{name} ({reason}); {fix}")
        return False
    return True


def _unmet_requirements(already: Collection[str]) -> list[str]:
    """Return what the installed package requires and the environment lacks, each with its fix.

    Args:
        already: Packages that are named otherwise.
    """
    unmet = []
    try:
        from packaging.requirements import Requirement

        texts = metadata.requires("moco_d2") or []
    except (ImportError, metadata.PackageNotFoundError):  # a checkout that is not installed
        return []
    for requirement in map(Requirement, texts):
        if requirement.name in already or not _is_for_all(requirement.marker):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            unmet.append(f"{requirement.name}; uv pip install '{requirement}'")
        else:
            if not requirement.specifier.contains(version, prereleases=True):
                unmet.append(f"{requirement}, not {version}; uv pip install '{requirement}'")
    return unmet


def _is_for_all(marker: Any) -> bool:
    return marker is None or marker.evaluate({"extra": ""})


def _examine_extras(report: Report) -> None:
    """Tell which extras are installed."""
    there = {name for name in _OPTIONAL if importlib.util.find_spec(name) is not None}
    extras = [extra for name, (extra, _) in _OPTIONAL.items() if name in there]
    report.found.append(("extras", ", ".join(extras) or "none"))
    uses = [f"{use} ({extra})" for name, (extra, use) in _OPTIONAL.items() if name not in there]
    if uses:
        report.advice.append(f"extras not installed: {', '.join(uses)}; uv pip install '.[EXTRA]'")


def _examine_weights(report: Report) -> None:
    """Tell which weights that have names are in the cache, so that they need no network."""
    from moco_d2.checkpoint.cache import CACHE_VARIABLE, cache_folder
    from moco_d2.checkpoint.published import PUBLISHED

    folder = cache_folder()
    names = [entry.name for entry in PUBLISHED if (folder / entry.file).is_file()]
    hub = folder / "hub"
    names += sorted(f"hf://{path.parent.relative_to(hub)}" for path in hub.glob("*/*/*/"))
    report.found.append(("weights", f"in {folder}: {', '.join(dict.fromkeys(names)) or 'none'}"))
    if not names:
        report.advice.append(
            f"no published weights are in the cache: they are fetched when a run first names them; "
            f"{CACHE_VARIABLE} names another cache (docs/weights.md)"
        )


def _examine_detectron2(report: Report) -> None:
    import detectron2

    from moco_d2.plugin.compat import has_compiled_operators

    operators = "with" if has_compiled_operators() else "without"
    place = Path(detectron2.__file__).parent
    about = f"{detectron2.__version__} {operators} compiled operators, {place}"
    report.found.append(("Detectron2", about))
    if operators == "without":
        report.advice.append(
            "no compiled operators: the packaged tasks need none; deformable convolution and "
            "rotated boxes need a Detectron2 built from source (docs/install.md)"
        )


def _examine_devices(report: Report) -> None:
    import torch

    report.found.append(("CPU", f"{os.cpu_count()} x {cpu_name()}"))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        device = torch.cuda.get_device_properties(index)
        memory = device.total_memory / 2**30
        about = f"{device.name}, {memory:.0f} GiB, compute capability {device.major}.{device.minor}"
        report.found.append((f"GPU {index}", about))
    if not count:
        built = torch.version.cuda
        reason = f"torch is built for CUDA {built}" if built else "torch is built without CUDA"
        report.found.append(("GPUs", f"none that torch can use ({reason}); commands use the CPU"))
        if _NVIDIA_DRIVER.exists():
            report.advice.append(
                "this machine has an NVIDIA driver, but torch finds no GPU: install a torch that "
                "is built for a CUDA version of this driver (nvidia-smi prints the newest one)"
            )


def _examine_datasets(report: Report) -> None:
    """Tell which registered datasets of the packaged tasks are in the folder of datasets."""
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    names = sorted(set(_datasets_of_tasks()))
    found = [name for name in names if _is_there(name)]
    lacking = [name for name in names if name not in found]
    report.found.append(("datasets", f"in {root.absolute()}: {', '.join(found) or 'none'}"))
    if lacking:
        report.advice.append(
            f"not found: {', '.join(lacking)}; set DETECTRON2_DATASETS to the folder that holds "
            "VOC2007/, coco/, lvis/ or cityscapes/, or give your own data as voc:FOLDER:SPLIT or "
            "coco:FILE.json:IMAGES"
        )


def _datasets_of_tasks() -> Iterable[str]:
    for file in packaged_parts("task").values():
        with contextlib.suppress(UserError):  # DensePose's configs need its project
            datasets = load_config(file).DATASETS
            yield from (*datasets.TRAIN, *datasets.TEST)


def _is_there(name: str) -> bool:
    """Return whether the files of a registered dataset exist; False if it is not registered."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    if name not in DatasetCatalog.list():
        return False
    metadata = MetadataCatalog.get(name)
    keys = ("json_file", "image_root", "dirname", "image_dir", "gt_dir")
    places = [metadata.get(key) for key in keys if metadata.get(key)]
    return bool(places) and all(Path(place).exists() for place in places)
