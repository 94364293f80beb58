"""Converted files in stock models, loaded by stock `DefaultTrainer`: every tensor arrives."""

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from PIL import Image
from support.checkpoint.families import FILES, File
from support.checkpoint.outcomes import outcome
from support.checkpoint.reference import (
    NARROW,
    R18,
    R50,
    Network,
    as_detectron2,
    config,
    forget_networks,
)
from support.toy_data import CLASSES, SIDE, make_coco

import moco_d2  # noqa: F401  registers heads

IMAGES = 2
_FPN = {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 8,
}
_ROI_HEADS = {
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 8,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
}
# Settings of Detectron2's own configs for the kind of model, with narrow heads.
MODELS = {
    "C4": {
        "MODEL.RESNETS.OUT_FEATURES": ["res4"],
        "MODEL.ROI_HEADS.NAME": "Res5ROIHeads",
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    },
    "FPN": {
        **_FPN,
        **_ROI_HEADS,
        "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
        "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
        "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    },
    "DC5": {
        **_ROI_HEADS,
        "MODEL.RESNETS.OUT_FEATURES": ["res5"],
        "MODEL.RESNETS.RES5_DILATION": 2,
        "MODEL.RPN.IN_FEATURES": ["res5"],
        "MODEL.ROI_HEADS.IN_FEATURES": ["res5"],
    },
    "segmentation": {
        **_FPN,
        "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(CLASSES),
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 8,
        "MODEL.SEM_SEG_HEAD.NORM": "",
    },
}
# Stock Detectron2 has no res5 head of BasicBlocks; ours has, with one more BatchNorm.
BASIC_C4 = {**MODELS["C4"], "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm"}
_WHERE = {"C4": "backbone.", "DC5": "backbone.", "FPN": "backbone.bottom_up."}
_WHERE["segmentation"] = _WHERE["FPN"]

CONVERTED = [file for file in FILES if file.refused is None]
# One of each row and network: files of a row give the same weights. Two real networks are enough.
LOADED = [
    file
    for i, file in enumerate(CONVERTED)
    if (file.row, file.network) not in {(f.row, f.network) for f in CONVERTED[:i]}
    if file.network != R50 or file.row in (1, 20)
]


def _cases() -> list:
    return [
        pytest.param(model, file, id=f"{model}-{file.id}")
        for model in MODELS
        for file in sorted(LOADED, key=lambda file: repr(file.network))  # one network at a time
        if _can_be_built(model, file.network)
    ]


def _can_be_built(model: str, network: Network) -> bool:
    # Detectron2's BasicBlocks have no dilation.
    return network.depth != R18.depth or model != "DC5"


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Names of a detection set and of a semantic segmentation set."""
    root = make_coco(tmp_path_factory.mktemp("coco"), images=IMAGES)
    register_coco_instances("families_coco", {}, str(root / "train.json"), str(root / "images"))
    Image.fromarray(np.eye(SIDE, dtype=np.uint8)).save(root / "labels.png")
    labeled = [
        {
            "file_name": str(root / "images" / f"train{i}.jpg"),
            "sem_seg_file_name": str(root / "labels.png"),
            "height": SIDE,
            "width": SIDE,
        }
        for i in range(IMAGES)
    ]
    DatasetCatalog.register("families_sem_seg", lambda: labeled)
    MetadataCatalog.get("families_sem_seg").set(stuff_classes=list(CLASSES), ignore_label=255)
    yield {"detection": "families_coco", "segmentation": "families_sem_seg"}
    forget_networks()
    for name in ("families_coco", "families_sem_seg"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(scope="module")
def trainer(datasets, tmp_path_factory):
    """Function: model, network -> a stock DefaultTrainer; the one before is kept, and no other."""
    trainers: dict[tuple[str, Network], DefaultTrainer] = {}

    def build(model: str, network: Network) -> DefaultTrainer:
        if (model, network) not in trainers:
            trainers.clear()
            cfg = config(network)
            settings = {
                **(BASIC_C4 if (model, network) == ("C4", R18) else MODELS[model]),
                "DATASETS.TRAIN": (datasets.get(model, datasets["detection"]),),
                "DATASETS.TEST": (),
                "DATALOADER.NUM_WORKERS": 0,
                "INPUT.MIN_SIZE_TRAIN": (SIDE,),
                "MODEL.MASK_ON": False,
                "MODEL.ROI_HEADS.NUM_CLASSES": len(CLASSES),
                "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 4,
                "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
                "SOLVER.IMS_PER_BATCH": IMAGES,
                "SOLVER.BASE_LR": 1e-4,
                "SOLVER.WARMUP_ITERS": 0,
                "SOLVER.MAX_ITER": 1,
                "OUTPUT_DIR": str(tmp_path_factory.mktemp("trainer")),
            }
            cfg.merge_from_list([word for pair in settings.items() for word in pair])
            trainers[model, network] = DefaultTrainer(cfg)
        return trainers[model, network]

    return build


def _load(model: str, trainer: DefaultTrainer, file: File) -> dict[str, torch.Tensor]:
    """The backbone after ``resume_or_load`` with this file in ``MODEL.WEIGHTS``."""
    backbone = _backbone_tensors(model, trainer.model)
    for tensor in backbone.values():
        tensor.fill_(1)  # what does not arrive shows
    trainer.cfg.defrost()
    trainer.cfg.MODEL.WEIGHTS = str(outcome(file).weights)
    trainer.resume_or_load(resume=False)
    return backbone


def _backbone_tensors(model: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Detectron2's name of the backbone tensor -> tensor, wherever the model has it."""
    prefixes = [_WHERE[model]] + (["roi_heads."] if model == "C4" else [])
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in module.state_dict().items()
        for prefix in prefixes
        if name.removeprefix(prefix).startswith(("stem.", "res2.", "res3.", "res4.", "res5."))
        if not name.endswith("num_batches_tracked") and "res5.norm." not in name
    }


@pytest.mark.parametrize(("model", "file"), _cases())
def test_every_tensor_arrives(model, file, trainer):
    expected = as_detectron2(file.query)
    arrived = _load(model, trainer(model, file.network), file)
    assert arrived.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(arrived[name], expected[name])] == []


@pytest.mark.parametrize("model", MODELS)
def test_the_model_trains(model, trainer):
    """A step of `DefaultTrainer.train` from converted weights."""
    file = next(file for file in CONVERTED if file.network == NARROW)
    chosen = trainer(model, NARROW)
    before = as_detectron2(file.query)["res4.0.conv2.weight"]
    after = _load(model, chosen, file)["res4.0.conv2.weight"]
    chosen.train()
    assert np.isfinite(chosen.storage.latest()["total_loss"][0])
    step = (after - before).norm() / before.norm()
    assert 0 < step < 0.1  # from there, not from elsewhere


def test_the_network_of_msra_is_what_detectron2_itself_reads(tmp_path):
    """Its reader knows this one family."""
    (file,) = (file for file in FILES if file.row == 32)
    states = []
    for weights in (file.write(tmp_path), outcome(file).weights):
        cfg = config(file.network)
        cfg.MODEL.RESNETS.NORM = "FrozenBN"
        backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3))
        DetectionCheckpointer(backbone).load(str(weights))
        states.append(backbone.state_dict())
    read, converted = states
    assert [name for name in read if not torch.equal(read[name], converted[name])] == []


def test_every_row_that_can_be_converted_is_loaded():
    assert {file.row for file in LOADED} == {file.row for file in CONVERTED}
