"""Steps and evaluations of fine-tuning on a CUDA device that is not there.

Proposals, sampling and NMS depend on values, so these are computed, and the networks are small.
"""

import itertools
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from support.rehearsal.device import rehearsal
from support.toy_data import SLIM_DETECTOR
from support.transfer.dataset_files import make_datasets

from moco_d2.config.load import load_config
from moco_d2.transfer.trainer import Trainer

RECIPES = {
    "Faster R-CNN C4": "voc_C4_random.yaml",
    "Mask R-CNN FPN": "coco_FPN_1x_random.yaml",
    "Faster R-CNN dilated C5": "voc_dilated_C5_random.yaml",
    "FCN": "voc_semantic_random.yaml",
}
_SETTINGS = {
    "MODEL.DEVICE": "cuda",
    "SEED": 1,
    "SOLVER.AMP.ENABLED": True,
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "INPUT.CROP.SIZE": [65, 65],
    "INPUT.MAX_SIZE_TEST": 128,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 16,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 16,
    "TEST.DETECTIONS_PER_IMAGE": 5,
}


def count(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the counts of a step and of an evaluation of each recipe."""
    make_datasets(folder)
    counts = {}
    for name, config in RECIPES.items():
        out = folder / "fine_tuning" / Path(config).stem
        words = [*SLIM_DETECTOR, *(str(word) for pair in _SETTINGS.items() for word in pair)]
        cfg = load_config(config, [*words, "OUTPUT_DIR", str(out)])
        with rehearsal(values=True) as counted:
            torch.manual_seed(cfg.SEED)
            trainer = Trainer(cfg)
            trainer.model.train()
            trainer.iter = trainer.start_iter = 0
            with EventStorage(0):
                counted.reset()
                trainer._trainer.run_step()
                counts[f"{name}, step"] = counted.summary()
            trainer._trainer.close()
            loader = trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])
            images = [batch[0] for batch in itertools.islice(loader, 2)]
            trainer.model.eval()
            counted.reset()
            with torch.no_grad():
                trainer.model(images)
            counts[f"{name}, evaluation"] = counted.summary()
    return counts
