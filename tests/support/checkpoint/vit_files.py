"""The files of results/campaigns/vit_files.json: each as another library has written it.

Their layouts are kept without the values, so that a test makes them again without the libraries.
"""

import contextlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from safetensors.torch import save_file
from support.checkpoint.vits import State
from support.paths import ROOT
from support.transfer.mains_vit import mains_vit
from torch import Tensor, nn

from moco_d2.checkpoint.convert import settings_for
from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.checkpoint.mapping import without_values
from moco_d2.transfer.modeling import vit

RESULT = ROOT / "results" / "campaigns" / "vit_files.json"
INTRODUCTION = """
## Vision transformers

These files are written by the code of the libraries, with small networks of random values, and in
the layouts of the official projects around timm's network of the same names. Each converted one is
loaded by Detectron2's checkpointer into this package's ViT, which is the one for release 0.6, and
into that of Detectron2's main. Every tensor arrives in both but the relative positions, which begin
at zero. The last two columns have the largest relative difference between the features of the
library's own blocks for the patches of an image, without the class token, and those of the two
ViTs. `campaigns/vit_files.py` makes the files; the versions are {versions}.

| file of | recognized as | outcome | v0.6 | main |
|---|---|---|--:|--:|
"""


def layout_of(content: Any) -> Any:
    """Return a checkpoint with the shape of each tensor in its place, as JSON.

    Tensors of several blocks have one entry if their shapes are the same.
    """
    if isinstance(content, Tensor):
        dtype = str(content.dtype).removeprefix("torch.")
        return {"shape": list(content.shape)} | ({} if dtype == "float32" else {"dtype": dtype})
    if not isinstance(content, Mapping):
        return content if isinstance(content, str | int | float) else None
    layout = {str(name): layout_of(value) for name, value in content.items()}
    for name in [name for name in layout if re.search(r"\.0\.", name)]:
        if name not in layout:
            continue  # it is in another entry
        at = name.index(".0.")
        numbered = [name]
        while (next_name := f"{name[:at]}.{len(numbered)}.{name[at + 3 :]}") in layout:
            numbered.append(next_name)
        if len(numbered) > 1 and all(layout[other] == layout[name] for other in numbered):
            first = layout[name]
            for other in numbered:
                del layout[other]
            layout[f"{name[:at]}.#.{name[at + 3 :]}"] = {"times": len(numbered), **first}
    return layout


def rebuilt(layout: Any, generator: torch.Generator, name: str = "") -> Any:
    """Return a checkpoint of this layout, with random values."""
    if not isinstance(layout, dict):
        return layout
    if "shape" in layout:
        dtype = getattr(torch, layout.get("dtype", "float32"))
        shape = layout["shape"]
        if not dtype.is_floating_point:
            return torch.zeros(shape, dtype=dtype)
        std = math.prod(shape[1:]) ** -0.5 if len(shape) > 1 and 0 not in shape else 0.1
        mean = len(shape) == 1 and name.endswith(("weight", "gamma", "lambda1"))
        most = 3**0.5 * std
        return torch.empty(shape).uniform_(mean - most, mean + most, generator=generator)
    content = {}
    for key, value in layout.items():
        names = [key]
        if isinstance(value, dict) and "times" in value:
            names = [key.replace("#", str(i)) for i in range(value["times"])]
        content |= {full: rebuilt(value, generator, full) for full in names}
    return content


def write_again(file: Mapping[str, Any], folder: Path) -> Path:
    """Write a file of the result with random values, and what lies beside it."""
    content = rebuilt(file["layout"], torch.Generator().manual_seed(0))
    path = folder / file["file"]
    if path.suffix == ".safetensors":
        save_file(content, path, content.pop("__metadata__", None))
    else:
        torch.save(content, path)
    for name, text in file["beside"].items():
        (folder / name).write_text(json.dumps(text))
    return path


def arrived(
    vit_class: type,
    report: dict[str, Any],
    weights: Path,
    side: int,
    *,
    random_values: bool = False,
) -> nn.Module:
    """Load converted weights as Detectron2 does into a ViT, with attention over the whole image.

    Args:
        vit_class: The class of the ViT.
        report: The report of the conversion.
        weights: The converted weights.
        side: Side of the images in pixels.
        random_values: Whether the ViT begins with its own values. To draw them takes longer than to
            load the others, so it begins with NaN otherwise.

    Raises:
        AssertionError: If a tensor of the file does not arrive, or one of the ViT has none.
    """
    settings = settings_for(report)
    more = {} if vit_class is vit.ViT else {"out_feature": vit.OUTPUT, "norm_layer": _norm}
    with contextlib.nullcontext() if random_values else without_values():
        network = vit_class(
            img_size=side,
            patch_size=settings["MOCO.VIT.PATCH_SIZE"],
            embed_dim=settings["MOCO.VIT.EMBED_DIM"],
            depth=settings["MOCO.VIT.DEPTH"],
            num_heads=settings["MOCO.VIT.HEADS"],
            use_rel_pos=True,
            pretrain_img_size=settings["MOCO.VIT.PRETRAIN_SIZE"],
            pretrain_use_cls_token=settings["MOCO.VIT.PRETRAIN_CLASS_TOKEN"],
            **more,
        )
    detector = nn.ModuleDict({"backbone": nn.ModuleDict({"net": network})}).eval()
    if not random_values:
        detector.to_empty(device="cpu")
        for tensor in detector.state_dict().values():
            tensor.fill_(math.nan)
    DetectionCheckpointer(detector).load(str(weights))
    written, state = load_checkpoint(weights)["model"], detector.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in written.items())
    assert {name.rsplit(".", 1)[1] for name in state.keys() - written.keys()} == {
        "rel_pos_h",
        "rel_pos_w",
    }
    return network


def _norm(width: int) -> nn.Module:
    return nn.LayerNorm(width, eps=vit.EPS)


@torch.inference_mode()
def differences(report: dict[str, Any], weights: Path, expected: State) -> dict[str, float | None]:
    """Return the largest relative difference of the features of v0.6's and of main's ViT.

    Args:
        report: The report of the conversion.
        weights: The converted weights.
        expected: `image`, (1, 3, H, H), and `features`, (1, C, h, h).
    """
    with mains_vit() as module:
        classes = {"v0.6": vit.ViT, "main": module and module.ViT}
        found: dict[str, float | None] = {}
        for name, vit_class in classes.items():
            if vit_class is None:
                found[name] = None
                continue
            side = expected["image"].shape[-1]
            network = arrived(vit_class, report, weights, side, random_values=True)
            features = network(expected["image"])[vit.OUTPUT]
            difference = (features - expected["features"]).abs().max()
            found[name] = float(difference / expected["features"].abs().max())
        return found


def section(result: Mapping[str, Any]) -> str:
    """Return the part of docs/checkpoint_table.md about ViTs."""
    versions = {file["library"]: file["version"] for file in result["files"]}
    versions = {library: of for library, of in versions.items() if library != "layout"}
    text = ", ".join(f"{library} {version}" for library, version in versions.items())
    return INTRODUCTION.format(versions=text) + "".join(map(_row, result["files"]))


def _row(file: Mapping[str, Any]) -> str:
    library = "layout of" if file["library"] == "layout" else file["library"]
    title = f"{library} {file['class']}, {file['title']} (`{file['file']}`)"
    outcome = file["outcome"]
    if "refused" in outcome:
        cells = ("-", f"refused: {outcome['refused']}", "-", "-")
    else:
        prefix = f", `{outcome['prefix']}`" if outcome["prefix"] else ""
        flags = "".join(f" with `--{key} {value}`" for key, value in file["arguments"].items())
        cells = (
            outcome["family"] + prefix,
            f"converted{flags}, {outcome['tensors']} tensors",
            *(f"{outcome[of]:.1e}" for of in ("v0.6", "main")),
        )
    return f"| {title} | " + " | ".join(cells) + " |\n"
