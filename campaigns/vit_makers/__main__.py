"""Write the files of campaigns/vit_files.py with the code of timm, lightly, transformers,
torchvision and open_clip.

It runs in an environment of its own, which needs these libraries and nothing of this project. The
networks are small and random, and no weights are downloaded. Beside a plain ViT's file lies
`expected.pt`: an image, and the features of the library's own blocks for its patches, without its
class token.

    python campaigns/vit_makers FOLDER
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before the libraries are imported

import torch
from made import MAKERS

for _module in ("timm_files", "layouts", "other_libraries"):  # each adds its makers
    importlib.import_module(_module)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    packages = {"open_clip": "open_clip_torch", "layout": "timm"}
    index = []
    for number, maker in enumerate(MAKERS, 1):
        torch.manual_seed(number)
        place = folder / f"{number:02}"
        place.mkdir(parents=True)
        name, expected = maker.make(place)
        if expected is not None:
            torch.save(expected, place / "expected.pt")
        index.append({
            "library": maker.library,
            "version": importlib.metadata.version(packages.get(maker.library, maker.library)),
            "class": maker.of, "title": maker.title, "file": name, "arguments": maker.arguments,
        })  # fmt: skip
        print(f"{number} {maker.library} {maker.of}", file=sys.stderr)
    (folder / "index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    main()
