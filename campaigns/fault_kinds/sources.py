"""Folders and shards with more or less than the images that a person means, and checkpoints of
networks that a ResNet's tensors do not tell.
"""

import io
import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from support.toy_data import CLASSES, make_class_folders

from fault_kinds.case import Kind, Outcome, check
from fault_kinds.jobs import Job, no_traceback
from fault_kinds.machine import one_sentence
from fault_kinds.workloads import Pretraining
from moco_d2.checkpoint.mapping import Architecture, build_torchvision

PER_CLASS = 8


def _images(folder: Path) -> int:
    return sum(1 for path in folder.rglob("*.png") if not path.is_symlink())


def _clutter(folder: Path) -> int:
    """Put files and folders of other programs beside and into the classes."""
    images = _images(folder)
    one = next(folder.rglob("0.png"))
    for name in ("@eaDir", "__MACOSX", ".ipynb_checkpoints", "$RECYCLE.BIN"):
        for parent in (folder, folder / CLASSES[0]):
            (parent / name).mkdir()
            shutil.copy(one, parent / name / "0.png")
    (folder / CLASSES[0] / "._0.png").write_bytes(b"\0\5\26\7")
    (folder / CLASSES[1] / "Thumbs.db").write_bytes(b"\0" * 100)
    (folder / "README.txt").write_text("images")
    return images


def _linked(folder: Path) -> int:
    """Move half of a class elsewhere, and link it back, with a loop."""
    images = _images(folder)
    elsewhere = folder.with_name("elsewhere")
    elsewhere.mkdir()
    for file in sorted((folder / CLASSES[0]).glob("*.png"))[::2]:
        file.rename(elsewhere / file.name)
    (folder / CLASSES[0] / "more").symlink_to(elsewhere)
    (elsewhere / "again").symlink_to(folder)
    return images


def _other_suffixes(folder: Path) -> int:
    """Give images other suffixes that Pillow reads."""
    images = _images(folder)
    for file, suffix in zip(sorted(folder.rglob("*.png")), (".GIF", ".jfif", ".PPM"), strict=False):
        format = {".GIF": "GIF", ".jfif": "JPEG", ".PPM": "PPM"}[suffix]
        Image.open(file).convert("RGB").save(file.with_suffix(suffix), format=format)
        file.unlink()
    return images


def _splits(folder: Path) -> None:
    for name in ("train", "val"):
        shutil.copytree(folder, folder.with_name("split") / name)
    shutil.rmtree(folder)
    folder.with_name("split").rename(folder)


def _splits_of_years(folder: Path) -> None:
    _splits(folder)
    (folder / "train").rename(folder / "train2017")
    (folder / "val").rename(folder / "val2017")


#: Name -> a change of two class folders. It returns the number of images that remain, or None if
#: the folder must be refused.
FOLDERS: dict[str, Callable[[Path], int | None]] = {
    "files of other programs": _clutter,
    "linked folders": _linked,
    "other suffixes": _other_suffixes,
    "train beside val": _splits,
    "train2017 beside val2017": _splits_of_years,
}


def _pretrain(settings: dict[str, Any], folder: Path) -> Job:
    workload = Pretraining(
        "source", **{"SOLVER.MAX_ITER": 1, "SOLVER.CHECKPOINT_PERIOD": 0}, **settings
    )
    out = folder / "out"
    words = [*workload.words(out)]
    return Job(workload.tool, words, out.with_suffix(".log"), before=workload.before)


def _all_or_none(settings: dict[str, Any], folder: Path, images: int | None, named: str) -> str:
    """Pretrain on `images` images, or check that the run is refused and leaves nothing."""
    job = _pretrain(settings, folder)
    if images is None:
        sentence = one_sentence(job, named)
        check(not (folder / "out").exists(), "a refused run left a folder")
        return f"refused: {sentence[:120]}"
    check(job.wait() == 0, f"refused: {job.output()[-300:]}")
    no_traceback(job.output())
    check(f"{images} images; " in job.output(), f"it does not train on {images} images")
    return f"{images} images"


def folders(rng: random.Random, folder: Path, i: int) -> Outcome:
    """Pretrain on a folder with more than images of two classes."""
    name = list(FOLDERS)[i % len(FOLDERS)]
    root = make_class_folders(folder / "images", PER_CLASS, seed=rng.randrange(100))
    images = FOLDERS[name](root)
    said = _all_or_none({"DATASETS.TRAIN": f"('{root}',)"}, folder, images, "splits")
    return Outcome(f"{name}: {said}", 1, {said.split(":")[0].lstrip("0123456789 "): 1})


def held_out(rng: random.Random, folder: Path, i: int) -> Outcome:
    """Test kNN on images that are searched in, as copies of names, links or hard links."""
    root = make_class_folders(folder / "images", PER_CLASS)
    test = make_class_folders(folder / "test", 4, seed=1)
    image = rng.choice(sorted(root.rglob("*.png")))
    file = test / image.parent.name / "link.png"
    kind = ("symbolic link", "hard link", "whole folder")[i % 3]
    if kind == "symbolic link":
        file.symlink_to(image)
    elif kind == "hard link":
        os.link(image, file)
    else:
        test = root
    settings = {
        "DATASETS.TRAIN": f"('{root}',)",
        "MOCO.KNN.TRAIN": root,
        "MOCO.KNN.TEST": test,
        "MOCO.KNN.NEIGHBOURS": 4,
    }
    said = _all_or_none(settings, folder, None, "MOCO.KNN.TEST")
    return Outcome(f"{kind}: {said}", 1, {"refused": 1})


def _member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


#: Name -> the members' names of the images; None for a tar of tars.
SHARDS: dict[str, Callable[[int], str] | None] = {
    "plain names": lambda i: f"{i:05d}.png",
    "names with a second dot": lambda i: f"image.{i}.png",
    "names with a date": lambda i: f"2024.01.{i:02d}.png",
    "folders with dots": lambda i: f"v1.2/class.a/{i}.png",
    "capital suffixes": lambda i: f"{i}.PNG",
    "a tar of tars": None,
}


def shards(rng: random.Random, folder: Path, i: int) -> Outcome:
    """Pretrain on a shard whose members have unusual names."""
    name = list(SHARDS)[i % len(SHARDS)]
    files = sorted(make_class_folders(folder / "images", PER_CLASS).rglob("*.png"))
    name_of, images = SHARDS[name], 2 * PER_CLASS if SHARDS[name] else None
    with tarfile.open(folder / "shard-0.tar", "w") as tar:
        if name_of is None:
            for inner in range(3):
                buffer = io.BytesIO()
                with tarfile.open(fileobj=buffer, mode="w") as class_tar:
                    _member(class_tar, "0.png", files[inner].read_bytes())
                _member(tar, f"n0144076{inner}.tar", buffer.getvalue())
        else:
            for number, file in enumerate(files):
                _member(tar, name_of(number), file.read_bytes())
    settings = {"DATASETS.TRAIN": f"('shards:{folder}/shard-0.tar',)"}
    said = _all_or_none(settings, folder, images, "tar")
    return Outcome(f"{name}: {said}", 1, {said.split(":")[0].lstrip("0123456789 "): 1})


Tensors = dict[str, Any]


def _named(name: str) -> Callable[[Path, Tensors], Path]:
    def write(folder: Path, tensors: Tensors) -> Path:
        torch.save(tensors, folder / name)
        return folder / name

    return write


def _described(folder: Path, tensors: Tensors) -> Path:
    (folder / "config.json").write_text(json.dumps({"architecture": "resnetaa50"}))
    return _named("model.pth")(folder, tensors)


def _changed(change: Callable[[Tensors], object]) -> Callable[[Path, Tensors], Path]:
    def write(folder: Path, tensors: Tensors) -> Path:
        change(tensors)
        return _named("model.pth")(folder, tensors)

    return write


def _cast(dtype: torch.dtype) -> Callable[[Path, Tensors], Path]:
    def change(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                tensors[name] = tensor.to(dtype)

    return _changed(change)


def _channels(count: int) -> Callable[[Path, Tensors], Path]:
    return _changed(lambda t: t.update({"conv1.weight": torch.ones(64, count, 7, 7)}))


#: Name -> writes a checkpoint that must not be converted.
CHECKPOINTS: dict[str, Callable[[Path, Tensors], Path]] = {
    "blurred by its name": _named("resnetblur18-x.pth"),
    "blurred by its config": _described,
    "attention among the layers": _changed(
        lambda t: t.update({"layer1.0.se.fc1.weight": torch.ones(4, 64, 1, 1)})
    ),
    "a negative variance": _changed(lambda t: t["bn1.running_var"].fill_(-1)),
    "a weight beyond float32": _changed(
        lambda t: t.update({"conv1.weight": torch.ones(64, 3, 7, 7).double() * 1e300})
    ),
    "an overflowing network": _changed(
        lambda t: [t[n].mul_(1e30) for n in t if n.endswith("conv1.weight")]
    ),
    "thirteen channels": _channels(13),
    "one channel": _channels(1),
    "two tensors of one name": _changed(
        lambda t: t.update({"layer2._orig_mod.0.conv1.weight": t["layer2.0.conv1.weight"].clone()})
    ),
    **{
        f"numbers of {dtype}": _cast(dtype)
        for dtype in (torch.float8_e4m3fn, torch.float8_e5m2)
    },
}  # fmt: skip


def checkpoints(rng: random.Random, folder: Path, i: int) -> Outcome:
    """Convert a checkpoint of another network, or with impossible values."""
    name = list(CHECKPOINTS)[i % len(CHECKPOINTS)]
    (folder / "in").mkdir()
    path = CHECKPOINTS[name](folder / "in", dict(build_torchvision(Architecture(18)).state_dict()))
    job = Job("convert.py", [str(path), str(folder / "out.pth")], folder / "log")
    sentence = one_sentence(job, path.name)
    check(not (folder / "out.pth").exists(), "a refused conversion left a file")
    return Outcome(f"{name}: {sentence[:120]}", 1, {"refused": 1})


_COMMON = "is refused with one sentence before anything is written"
KINDS = (
    Kind(
        "folder of images",
        "A folder gives the images that a person means: files of other programs are passed over, "
        f"linked folders and all readable formats are read, and a folder of splits {_COMMON}.",
        3 * len(FOLDERS),
        folders,
    ),
    Kind(
        "kNN on seen images",
        f"A kNN evaluation of images that are searched in {_COMMON}, also if they are links.",
        9,
        held_out,
    ),
    Kind(
        "names in shards",
        f"A shard gives all of its images, whatever their names; a tar of tars {_COMMON}.",
        2 * len(SHARDS),
        shards,
    ),
    Kind(
        "checkpoint of another network",
        f"A checkpoint whose name, config, tensors or values are not those of a ResNet {_COMMON}.",
        2 * len(CHECKPOINTS),
        checkpoints,
    ),
)
