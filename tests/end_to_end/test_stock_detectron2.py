"""Detectron2's own code runs our configs, with DETECTRON2_ENV_MODULE=moco_d2 and nothing else."""

import os
import subprocess
import sys

from support.toy_data import SLIM_DETECTOR, make_voc

# What Detectron2's tools/train_net.py does, without a line of ours.
STOCK = """
import sys
from detectron2.config import get_cfg
from detectron2.data.datasets import register_pascal_voc
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.evaluation import PascalVOCDetectionEvaluator

config, root, out, *overrides = sys.argv[1:]
for split in ("trainval", "test"):
    register_pascal_voc(f"toy_{split}", root, split, 2007, ["dark", "light"])
cfg = get_cfg()
cfg.merge_from_file(config)
cfg.merge_from_list(["DATASETS.TRAIN", ("toy_trainval",), "DATASETS.TEST", ("toy_test",),
                     "OUTPUT_DIR", out, "MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN"])
cfg.merge_from_list(overrides)

class Trainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg, name):
        return PascalVOCDetectionEvaluator(name)

trainer = Trainer(cfg)
trainer.resume_or_load(resume=False)
trainer.train()
assert "AP50" in trainer._last_eval_results["bbox"]

import numpy as np
cfg.MODEL.WEIGHTS = out + "/model_final.pth"
found = DefaultPredictor(cfg)(np.zeros((64, 64, 3), np.uint8))
assert hasattr(found["instances"], "pred_boxes")
assert "moco_d2" in sys.modules
print("heads:", type(trainer._trainer.model.roi_heads).__name__)
"""


def test_stock_trainer_and_predictor_run_our_config(tmp_path):
    from moco_d2.config.load import find_config

    root = make_voc(tmp_path / "VOC2007")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            STOCK,
            find_config("voc_C4_random.yaml"),
            root,
            tmp_path / "out",
            *SLIM_DETECTOR,
        ],
        env={**os.environ, "DETECTRON2_ENV_MODULE": "moco_d2", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("heads: Res5ROIHeadsExtraNorm")
