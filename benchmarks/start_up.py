#!/usr/bin/env python3
"""Time imports, every tool's --help, and the first step of each training, in new processes.

First steps are compared with that of a script of stock Detectron2, by CPU time up to the end of the
step. The networks and images are so small that starting takes nearly all of it.

python benchmarks/start_up.py
"""

import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from fine_tuning import TASK, overrides
from harness import COMPILED, check, finish, parser, ratio, take_turns

ROOT = Path(__file__).parents[1]


# The end of the first step ends the process, in stock Detectron2 and in our tools.
_FIRST_STEP = """
import moco_d2  # supplies what Detectron2 lacks without its compiled operators
import os, runpy, sys
from detectron2.engine.train_loop import TrainerBase
TrainerBase.after_step = lambda self: os._exit(0)
"""
_STOCK = (
    _FIRST_STEP
    + """
from detectron2.config import get_cfg
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup
args = default_argument_parser().parse_args()
register_coco_instances("scenes", {}, *args.opts[:2])
cfg = get_cfg()
cfg.merge_from_list(args.opts[2:])
default_setup(cfg, args)
trainer = DefaultTrainer(cfg)
trainer.resume_or_load(resume=False)
trainer.train()
"""
)
_TOOL = _FIRST_STEP + "del sys.argv[0]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
# Mask R-CNN FPN, as in Detectron2's configs.
_FPN = [
    *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.MASK_ON", "True"),
    *("MODEL.RESNETS.OUT_FEATURES", "['res2', 'res3', 'res4', 'res5']"),
    *("MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64], [128], [256], [512]]"),
    *("MODEL.RPN.IN_FEATURES", "['p2', 'p3', 'p4', 'p5', 'p6']"),
    *("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
    *("MODEL.ROI_HEADS.IN_FEATURES", "['p2', 'p3', 'p4', 'p5']"),
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", "2"),
    *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead", "MODEL.ROI_MASK_HEAD.NUM_CONV", "4"),
    *("MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.WEIGHTS", ""),
]


def first_steps(folder: Path) -> dict[str, Callable[[], None]]:
    """Return the actions that start a training and end after its first step."""
    from moco_d2.demo import scenes

    data, out = folder / "data", folder / "out"
    scenes.write_dataset(
        data,
        seed=0,
        pretrain_images=16,
        knn_test_images=9,
        detection_train=8,
        detection_test=2,
    )
    words = overrides(data, out, side=64, images=2, depth=18)
    words[words.index("DATALOADER.NUM_WORKERS") + 1] = "0"
    ours = dict(zip(words[::2], words[1::2], strict=True))
    stock = [*_FPN, "DATASETS.TRAIN", "('scenes',)", "DATASETS.TEST", "()"]
    for key, value in ours.items():
        if not key.startswith("DATASETS") and key != "SOLVER.REFERENCE_WORLD_SIZE":
            stock += [key, value]
    coco = data / "coco"
    files = [str(coco / "annotations" / "train.json"), str(coco / "images" / "train")]
    pretraining = [
        *("--config-file", "moco_v2_R50_200ep.yaml", "DATASETS.TRAIN", f"('{data / 'pretrain'}',)"),
        *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "MOCO.ENCODER.ARCH", "resnet18"),
        *("MOCO.AUGMENTATION.SIZE", "32", "MOCO.DICTIONARY.SIZE", "64", "SOLVER.MAX_ITER", "2"),
        *("MOCO.EPOCHS", "0", "MOCO.REFERENCE_BATCH", "0", "SOLVER.IMS_PER_BATCH", "8"),
        *("OUTPUT_DIR", str(out)),
    ]
    probe = [
        *("random", "--arch", "resnet18", "--data", str(data / "pretrain"), "--size", "32"),
        *("--val", str(data / "pretrain_test"), "--output", str(out), "--workers", "0"),
        *("--batch-size", "8", "--device", "cpu"),
    ]
    actions = {
        "stock": process("-c", _STOCK, *files, *stock),
        "tools/train_net.py": process(
            "-c", _TOOL, "tools/train_net.py", "--config", TASK, "--force", *words
        ),
        "tools/pretrain.py": process("-c", _TOOL, "tools/pretrain.py", *pretraining),
        "tools/linear_eval.py": process("-c", _TOOL, "tools/linear_eval.py", *probe),
    }

    def in_new_folder(action: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            shutil.rmtree(out, ignore_errors=True)
            action()

        return run

    return {name: in_new_folder(action) for name, action in actions.items()}


def cpu_of_children() -> float:
    """Return the CPU time of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def process(*words: str) -> Callable[[], None]:
    """Return an action that runs python with these arguments."""
    return lambda: subprocess.run(
        [sys.executable, *words], check=True, capture_output=True, cwd=ROOT, env=COMPILED
    )


def main() -> None:
    """Measure and print."""
    args = parser(__doc__, repeats=9).parse_args()
    tools = sorted(path.name for path in (ROOT / "tools").glob("*.py"))
    imports = take_turns(
        {
            "detectron2": process("-c", "import detectron2"),
            "both": process("-c", "import moco_d2, detectron2"),
            "alone": process("-c", "import moco_d2"),
            "python": process("-c", ""),
        },
        1 if args.small else 3 * args.repeats,  # their ratio is near its limit
        clock=cpu_of_children,
    )
    helps = take_turns(
        {name: process(f"tools/{name}", "--help") for name in tools},
        1 if args.small else args.repeats,
    )
    with tempfile.TemporaryDirectory() as folder:
        steps = take_turns(
            first_steps(Path(folder)), 1 if args.small else args.repeats, clock=cpu_of_children
        )
    median = {name: statistics.median(values) for name, values in {**imports, **helps}.items()}
    finish(
        args,
        title="Start-up: imports, --help and first steps, in new processes",
        checks=[
            check(
                "import moco_d2, detectron2 / import detectron2, CPU time",
                ratio(imports["both"], imports["detectron2"]),
                at_most=1.05,
            ),
            check("import detectron2, CPU time", median["detectron2"], unit="s"),
            check(
                "import moco_d2 alone, without Python's start, CPU time",
                median["alone"] - median["python"],
                unit="s",
            ),
            *(
                check(
                    f"{name}, CPU time to the end of the first step / stock Detectron2's",
                    ratio(steps[name], steps["stock"]),
                    at_most=1.2,
                )
                for name in steps
                if name != "stock"
            ),
            check(
                "stock Detectron2, CPU time to the end of the first step",
                statistics.median(steps["stock"]),
                unit="s",
            ),
            *(check(f"tools/{name} --help", median[name], unit="s", at_most=1.0) for name in tools),
        ],
    )


if __name__ == "__main__":
    main()
