"""Rehearse scenes, and print their counts as JSON; process.py starts this under its stubs.

python -m support.rehearsal pretraining ...
"""

import contextlib
import gc
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import moco_d2  # noqa: F401  Detectron2 needs our patches before it is imported

if __name__ == "__main__":
    counts: dict[str, Any] = {}
    with contextlib.redirect_stdout(sys.stderr):
        modules = [importlib.import_module(f"support.rehearsal.{scene}") for scene in sys.argv[1:]]
        gc.freeze()  # collections between steps need not look at what is imported
        for module in modules:
            counts |= module.count(Path(os.environ["DETECTRON2_DATASETS"]))
    print(json.dumps(counts))
