"""Files of strangers through every door: nothing in them is run, unfolded or written elsewhere.

What belongs to one module is tested beside it: pickles (checkpoint/test_hostile.py), records
(benchmark/test_hostile_records.py), YAML (config/test_safe_yaml.py), XML
(transfer/evaluation/test_voc_evaluation.py).
"""

import ast
import contextlib
import io
import os
import pickle
import re
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.paths import ROOT

from moco_d2 import untrusted_images
from moco_d2.benchmark.records import files as records
from moco_d2.benchmark.runs import suite_values
from moco_d2.checkpoint import archive, pickle_stubs, recognition, tensor_dicts, unpickling
from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.checkpoint.pickle_stubs import allowed_names
from moco_d2.cli import run_command
from moco_d2.config import literals, safe_yaml, shard_patterns
from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.pretrain.data import decompression, sharded_stream, sources, tar_members
from moco_d2.pretrain.data.samples import read_shard
from moco_d2.pretrain.data.shards import count_images
from moco_d2.records import metrics_json
from moco_d2.transfer.checkpointing import WeightsCheckpointer
from moco_d2.transfer.data import mask_checks, voc_annotations
from moco_d2.transfer.inference.detector import load_detector
from moco_d2.transfer.inference.export import export_detector
from moco_d2.transfer.inference.predict import Predictor
from moco_d2.transfer.weights import describe_weights


class Runs:
    """Its pickle runs a command."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


DOORS = {
    "weights": lambda cfg, folder: WeightsCheckpointer(torch.nn.Linear(1, 1)).load(
        cfg.MODEL.WEIGHTS, checkpointables=[]
    ),
    "record": lambda cfg, folder: describe_weights(cfg.MODEL.WEIGHTS),
    "evaluation": lambda cfg, folder: load_detector(cfg),
    "prediction": lambda cfg, folder: Predictor(cfg),
    "export": lambda cfg, folder: export_detector(cfg, folder / "out.pth"),
}


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".pyth", ".pt", ".bin"])
def test_weights_of_a_stranger_run_nothing(tmp_path, suffix, monkeypatch):
    # The variable that switches torch's own protection off, set by some cluster's start-up file.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    file, marker = tmp_path / f"weights{suffix}", tmp_path / "ran"
    content = {"model": {"a": torch.zeros(1)}, "__author__": "x", "trap": Runs(marker)}
    if suffix == ".pkl":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file)
    cfg = load_config("voc_C4_random.yaml", ["MODEL.WEIGHTS", str(file), "MODEL.DEVICE", "cpu"])
    for name, door in DOORS.items():
        if name != "weights":  # what is asked here is not how a ResNet-50 is built
            monkeypatch.setattr(
                "moco_d2.transfer.inference.detector.build_model", lambda cfg: torch.nn.Linear(1, 1)
            )
        with pytest.raises(UserError, match=f"weights{suffix}"):
            door(cfg, tmp_path)
        assert not marker.exists(), name
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name]


def test_members_of_a_shard_stay_in_it(tmp_path):
    """Names that lead elsewhere, links and devices: read as bytes, or passed over."""
    outside = tmp_path / "outside"
    outside.mkdir()
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    shard = tmp_path / "in" / "a.tar"
    shard.parent.mkdir()
    with tarfile.open(shard, "w") as tar:
        for name in ("../outside/a.png", f"{outside}/b.png", "c.png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture.getvalue())
            tar.addfile(member, io.BytesIO(picture.getvalue()))
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE)):
            member = tarfile.TarInfo(f"link{number}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    assert count_images(str(shard)).images == 3
    images = list(read_shard(str(shard)))
    assert {image.content for image in images} == {picture.getvalue()}
    assert len(images) == 3
    assert not list(outside.iterdir())
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.tar", "in", "outside"]


def test_members_of_a_zip_stay_in_it(tmp_path):
    """Weights are read where they lie; no archive is ever unpacked."""
    folder = tmp_path / "in"
    folder.mkdir()
    torch.save({"model": {"a": torch.zeros(1)}}, folder / "w.pth")
    np.savez(folder / "w.npz", a=np.zeros(1))
    for file in (folder / "w.pth", folder / "w.npz"):
        with zipfile.ZipFile(file, "a") as archive:
            content = archive.read(archive.namelist()[-1])
            for name in ("../escaped.npy", f"{tmp_path}/escaped.npy"):
                archive.writestr(name, content)
        with contextlib.suppress(UserError):  # refused, or read as numbers under an odd name
            load_checkpoint(file)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "w.npz", "w.pth"]


def test_an_error_is_text_on_a_terminal_whatever_a_file_is_called(capsys):
    """Names of files and tensors are in errors, and a terminal obeys what is in them."""

    def fail():
        raise UserError("no file \x1b]0;owned\x07\x1b[2Jx\u202ey; check the path")

    with pytest.raises(SystemExit):
        run_command(fail)
    said = capsys.readouterr().err
    assert said == "error: no file ?]0;owned??[2Jx?y; check the path\n"


# What would let a file decide what is run. A line that needs one of them is no oversight if it is
# listed here, with its file.
FORBIDDEN = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "torch.load",  # also its restricted way: checkpoint/io.py
    "subprocess.getoutput",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.load_all",
    "yaml.safe_load",  # has no limits; safe_yaml.load_yaml
    "expand_urls",  # webdataset's: neither; shard_patterns.expand
    "ElementTree.parse",
    "ElementTree.fromstring",
}
ALLOWED = {
    ("moco_d2/checkpoint/unpickling.py", "pickle.Unpickler"),  # the one that imports nothing
    # Between a process and the interpreter that it has started itself.
    ("moco_d2/plugin/cityscapes_pool.py", "pickle.load"),
    ("moco_d2/plugin/cityscapes_pool.py", "pickle.loads"),
}


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _forbidden(file: Path) -> set[tuple[str, str]]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        name = _name(node)
        if name in FORBIDDEN:
            found.add((str(file.relative_to(ROOT)), name))
        if not isinstance(node, ast.Call):
            continue
        name, given = _name(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if given.get("shell", "False") != "False":
            found.add((str(file.relative_to(ROOT)), "shell"))
        if name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
            found.add((str(file.relative_to(ROOT)), name))
        if name == "yaml.load" and given.get("Loader") != "_LOADER":
            found.add((str(file.relative_to(ROOT)), name))
        if name.endswith(".merge_from_file") and given.get("allow_unsafe") != "False":
            found.add((str(file.relative_to(ROOT)), name))
        # Pillow would try every format that it knows: test_untrusted_images.py.
        if name in ("Image.open", "PIL.Image.open") and given.get("formats") != "FORMATS":
            found.add((str(file.relative_to(ROOT)), name))
        if name.endswith((".extractall", ".load_yaml_with_base")):  # the latter fetches, too
            found.add((str(file.relative_to(ROOT)), name))
    return found


def test_no_code_of_ours_has_what_lets_a_file_run():
    files = [f for folder in ("moco_d2", "tools") for f in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    assert set().union(*map(_forbidden, files)) == ALLOWED


def test_the_search_finds_what_it_is_for(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "a.py"
    file.write_text(
        "eval(x); torch.load(f); cfg.merge_from_file(f); subprocess.run(x, shell=True)\n"
        "yaml.load(f, Loader=yaml.Loader); np.load(f, allow_pickle=True); tar.extractall()\n"
        "cfg.merge_from_file(f, allow_unsafe=False)\n"
        "Image.open(f); Image.open(f, formats=FORMATS)\n"
        "class A(pickle.Unpickler): pass\n"
        "yaml.safe_load(f); CfgNode.load_yaml_with_base(f); expand_urls(x)\n"
    )
    found = {name for _, name in _forbidden(file)}
    assert found == {
        *("eval", "torch.load", "cfg.merge_from_file", "shell", "yaml.load", "np.load"),
        *("tar.extractall", "pickle.Unpickler", "yaml.safe_load", "expand_urls"),
        "Image.open",
        "CfgNode.load_yaml_with_base",
    }


# ---- the page says what the code does ------------------------------------------------------------

PAGE = (ROOT / "docs" / "reliability_untrusted.md").read_text()


def bounds() -> list[tuple[str, str, str]]:
    """Reader, what is bounded, and the value in the code: the rows of the page's table."""
    rows: list[tuple[str, str, Any]] = [
        ("checkpoints", "bytes of the unpacked content",
         f"{archive.MOST_EXPANSION} times the file, or {archive.SMALL >> 20} MiB if that is more"),
        ("checkpoints", "entries of an archive", archive.MOST_MEMBERS),
        ("checkpoints", "opcodes of a pickle", unpickling.MOST_OPCODES),
        ("checkpoints", "keys of its dicts that are neither text nor short numbers",
         unpickling.MOST_ODD_KEYS),
        ("checkpoints", "levels of nested tuples", unpickling.DEEPEST_TUPLE),
        ("converter", "tensors", tensor_dicts.MOST_TENSORS),
        ("converter", "networks", recognition.MOST_NETWORKS),
        ("converter", "characters of a tensor's name", tensor_dicts.LONGEST_NAME),
        ("images", "formats", ", ".join(untrusted_images.FORMATS)),
        ("images", "pixels", untrusted_images.MAX_PIXELS),
        ("images", "bytes of the file", untrusted_images.MAX_FILE_BYTES),
        ("images", "scans of a JPEG", untrusted_images.MAX_SCANS),
        ("images", "EXIF segments of a JPEG", untrusted_images.MAX_EXIF),
        ("images", "strips or tiles of a TIFF", untrusted_images.MAX_STRIPS),
        ("COCO annotations", "pixels of a mask or an image", untrusted_images.MAX_PIXELS),
        ("COCO annotations", "reach of a polygon, in longer sides of its image",
         mask_checks.MAX_REACH),
        ("COCO annotations", "pixels of a polygon's outline", mask_checks.MAX_OUTLINE),
        ("VOC annotations", "bytes of an annotation", voc_annotations.MOST_BYTES_OF_ONE),
        ("VOC annotations", "bytes of a split", voc_annotations.MOST_BYTES),
        ("tar shards", "bytes of an image", untrusted_images.MAX_FILE_BYTES),
        ("tar shards", "bytes of a label", tar_members.MAX_LABEL_BYTES),
        ("tar shards", "bytes of the global headers", tar_members.MAX_EXTRA_BYTES),
        ("tar shards", "unpacked bytes per byte of a compressed shard (small shards: in all)",
         f"{decompression.MAX_EXPANSION} ({decompression.SMALL >> 20} MiB)"),
        ("tar shards", "bytes of images that a worker shuffles together",
         sharded_stream.MAX_BLOCK_BYTES),
        ("tar shards", "shards of a pattern", shard_patterns.MOST_SHARDS),
        ("lists of images", "characters of a line", sources.MAX_LINE),
        ("configs and suites", "bytes, with all bases", safe_yaml.MOST_BYTES),
        ("configs and suites", "values, with expanded aliases", safe_yaml.MOST_VALUES),
        ("configs and suites", "levels", literals.DEEPEST),
        ("configs and suites", "characters of a value", literals.LONGEST),
        ("configs and suites", "keys that are not text", safe_yaml.MOST_ODD_KEYS),
        ("configs", "files", safe_yaml.MOST_FILES),
        ("configs", "bases in a chain", safe_yaml.DEEPEST_BASE),
        ("suites", "runs", suite_values.MOST_RUNS),
        ("records", "bytes", records.MOST_BYTES),
        ("records", "values", records.MOST_VALUES),
        ("records", "levels", records.MOST_LEVELS),
        ("logs", "characters of a line", metrics_json.LONGEST_LINE),
    ]  # fmt: skip
    return [(a, b, f"{v:,}" if isinstance(v, int) else str(v)) for a, b, v in rows]


def test_the_page_has_the_bounds_of_the_code():
    table = PAGE.partition("### Bounds")[2].partition("###")[0]
    rows = [tuple(c.strip() for c in r.split("|")[1:-1]) for r in table.splitlines() if "|" in r]
    assert rows[2:] == bounds()


def test_the_page_lists_what_a_pickle_may_name():
    listed = PAGE.partition("### What a pickle may name")[2].partition("###")[0]
    assert (
        tuple(sorted(re.findall(r"`([\w.]+)`", listed.partition("|---|---|")[2])))
        == allowed_names()
    )
    # Whatever they stand for belongs to this package, or is plain.
    for name, value in pickle_stubs.TABLE.items():
        owner = value if isinstance(value, type) else type(value)
        plain = owner in (torch.dtype, str)
        assert plain or owner.__module__ == "moco_d2.checkpoint.pickle_stubs", name
