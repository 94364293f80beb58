"""The settings of every task as data, typed from the paper (sections 4.2 and A), the official
detection configs, and Detectron2's where the paper leaves them to it; not read from configs/.
"""

EVERY_TASK = {
    "INPUT.FORMAT": "RGB",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "TEST.PRECISE_BN.ENABLED": True,
    "TEST.PRECISE_BN.NUM_ITER": 200,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 0.0001,
    "SOLVER.REFERENCE_WORLD_SIZE": 8,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.WARMUP_ITERS": 1000,
    "SOLVER.WARMUP_FACTOR": 0.001,
}
_TWENTY_FOUR = {"SOLVER.MAX_ITER": 24000, "SOLVER.STEPS": (18000, 22000)}
_1X = {"SOLVER.MAX_ITER": 90000, "SOLVER.STEPS": (60000, 80000)}
_2X = {"SOLVER.MAX_ITER": 180000, "SOLVER.STEPS": (120000, 160000)}
_6X = {"SOLVER.MAX_ITER": 540000, "SOLVER.STEPS": (480000, 520000)}


def _fraction(of_images, max_iter, steps):
    return {
        "MOCO.LABEL_FRACTION": of_images,
        "SOLVER.MAX_ITER": max_iter,
        "SOLVER.STEPS": steps,
    }


_VOC = {
    "MODEL.ROI_HEADS.NUM_CLASSES": 20,
    "MODEL.MASK_ON": False,
    "DATASETS.TRAIN": ("voc_2007_trainval", "voc_2012_trainval"),
    "DATASETS.TEST": ("voc_2007_test",),
    "INPUT.MIN_SIZE_TRAIN": tuple(range(480, 801, 32)),
    "INPUT.MIN_SIZE_TEST": 800,
    "SOLVER.WARMUP_ITERS": 100,
}
_COCO = {
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.MASK_ON": True,
    "MODEL.KEYPOINT_ON": False,
    "DATASETS.TRAIN": ("coco_2017_train",),
    "DATASETS.TEST": ("coco_2017_val",),
    "INPUT.MIN_SIZE_TRAIN": tuple(range(640, 801, 32)),
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MAX_SIZE_TEST": 1333,
}
_C4 = {
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.RESNETS.NORM": "naiveSyncBN",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
}
_FPN = {
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.FPN.NORM": "SyncBN",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.NORM": "",
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.0,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.NORM": "",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "TEST.DETECTIONS_PER_IMAGE": 100,
    "DATALOADER.SAMPLER_TRAIN": "TrainingSampler",
}
_4CONV1FC = {
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.NORM": "SyncBN",
    "MODEL.ROI_MASK_HEAD.NORM": "SyncBN",
}
_LVIS = {
    "MODEL.ROI_HEADS.NUM_CLASSES": 1230,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0001,
    "TEST.DETECTIONS_PER_IMAGE": 300,
    "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
    "DATALOADER.REPEAT_THRESHOLD": 0.001,
    "DATASETS.TRAIN": ("lvis_v0.5_train",),
    "DATASETS.TEST": ("lvis_v0.5_val",),
}

DETECTION_TASKS = {
    "voc_C4": _VOC | _C4 | _TWENTY_FOUR,
    "voc07_C4": _VOC
    | _C4
    | {
        "DATASETS.TRAIN": ("voc_2007_trainval",),
        "SOLVER.MAX_ITER": 9000,
        "SOLVER.STEPS": (6750, 8250),
    },
    "coco_C4_1x": _COCO | _C4 | _1X,
    "coco_C4_2x": _COCO | _C4 | _2X,
    "coco_FPN_1x": _COCO | _FPN | _1X,
    "coco_FPN_2x": _COCO | _FPN | _2X,
    "coco_FPN_6x": _COCO | _FPN | _6X,
    "coco_FPN4conv1fc_1x": _COCO | _FPN | _4CONV1FC | _1X,
    "coco_FPN4conv1fc_2x": _COCO | _FPN | _4CONV1FC | _2X,
    "coco_keypoint_FPN_2x": _COCO
    | _FPN
    | _2X
    | {
        "MODEL.ROI_HEADS.NUM_CLASSES": 1,
        "MODEL.MASK_ON": False,
        "MODEL.KEYPOINT_ON": True,
        "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 17,
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.5,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1500,
        "DATASETS.TRAIN": ("keypoints_coco_2017_train",),
        "DATASETS.TEST": ("keypoints_coco_2017_val",),
    },
    "lvis_v0.5_FPN_1x": _COCO | _FPN | _LVIS | _1X,
    "lvis_v0.5_FPN_2x": _COCO | _FPN | _LVIS | _2X,
    "lvis_v1_FPN_1x": _COCO
    | _FPN
    | _LVIS
    | _2X
    | {
        "MODEL.ROI_HEADS.NUM_CLASSES": 1203,
        "DATASETS.TRAIN": ("lvis_v1_train",),
        "DATASETS.TEST": ("lvis_v1_val",),
    },
    "cityscapes_instance_FPN": _COCO
    | _FPN
    | {
        "MODEL.ROI_HEADS.NUM_CLASSES": 8,
        "DATASETS.TRAIN": ("cityscapes_fine_instance_seg_train",),
        "DATASETS.TEST": ("cityscapes_fine_instance_seg_val",),
        "INPUT.MIN_SIZE_TRAIN": tuple(range(800, 1025, 32)),
        "INPUT.MIN_SIZE_TEST": 1024,
        "INPUT.MAX_SIZE_TRAIN": 2048,
        "INPUT.MAX_SIZE_TEST": 2048,
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.MAX_ITER": 24000,
        "SOLVER.STEPS": (18000,),
    },
}
DENSEPOSE_TASKS = {
    "coco_densepose_FPN_s1x": _FPN
    | {
        "MODEL.DENSEPOSE_ON": True,
        "MODEL.ROI_HEADS.NAME": "DensePoseROIHeads",
        "MODEL.ROI_HEADS.NUM_CLASSES": 1,
        "DATASETS.TRAIN": ("densepose_coco_2014_train", "densepose_coco_2014_valminusminival"),
        "DATASETS.TEST": ("densepose_coco_2014_minival",),
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.WARMUP_FACTOR": 0.1,
        "SOLVER.MAX_ITER": 130000,
        "SOLVER.STEPS": (100000, 120000),
    }
}
_DILATED_C5 = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.BACKBONE.NAME": "build_dilated_c5_backbone",
    "MODEL.RESNETS.RES5_DILATION": 2,
    "MODEL.RESNETS.NORM": "naiveSyncBN",
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
}
_SEMANTIC = {
    "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
    "MODEL.BACKBONE.NAME": "build_dilated_resnet_backbone",
    "MODEL.RESNETS.RES5_DILATION": 2,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.SEM_SEG_HEAD.NAME": "FCNHead",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 256,
    "MODEL.SEM_SEG_HEAD.NORM": "SyncBN",
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": 255,
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 1.0,
    "MOCO.RANDOM_SCALE": (0.5, 2.0),
    "INPUT.CROP.ENABLED": True,
    "INPUT.CROP.TYPE": "absolute",
    "INPUT.RANDOM_FLIP": "horizontal",
    "INPUT.MIN_SIZE_TEST": 0,
}
OTHER_TASKS = {
    "voc_dilated_C5": _VOC | _DILATED_C5 | _TWENTY_FOUR,
    "voc_semantic": _SEMANTIC
    | {
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 21,
        "INPUT.CROP.SIZE": [513, 513],
        "SOLVER.BASE_LR": 0.003,
        "SOLVER.MAX_ITER": 30000,
        "SOLVER.STEPS": (21000, 27000),
        "DATASETS.TRAIN": ("voc_2012_sem_seg_train_aug",),
        "DATASETS.TEST": ("voc_2012_sem_seg_val",),
    },
    "cityscapes_semantic": _SEMANTIC
    | {
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 19,
        "INPUT.CROP.SIZE": [769, 769],
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.MAX_ITER": 90000,
        "SOLVER.STEPS": (63000, 81000),
        "DATASETS.TRAIN": ("cityscapes_fine_sem_seg_train",),
        "DATASETS.TEST": ("cityscapes_fine_sem_seg_val",),
    },
}
# Tasks of our own: a fraction of the images with a length that follows its square root, and a
# frozen backbone.
OWN_TASKS = {
    "voc_C4_10pct": DETECTION_TASKS["voc_C4"] | _fraction(0.1, 7590, (5692, 6957)),
    "voc_C4_1pct": DETECTION_TASKS["voc_C4"] | _fraction(0.01, 2400, (1800, 2200)),
    "coco_FPN_1x_10pct": DETECTION_TASKS["coco_FPN_1x"] | _fraction(0.1, 28458, (18972, 25296)),
    "coco_FPN_1x_1pct": DETECTION_TASKS["coco_FPN_1x"] | _fraction(0.01, 9000, (6000, 8000)),
    "coco_FPN_1x_frozen": DETECTION_TASKS["coco_FPN_1x"] | {"MODEL.BACKBONE.FREEZE_AT": 5},
    "voc_dilated_C5_frozen": OTHER_TASKS["voc_dilated_C5"] | {"MODEL.BACKBONE.FREEZE_AT": 5},
}
# Model and jitter of Detectron2's ViTDet; schedule of Li et al. (arXiv 2111.11429).
_VITDET = {
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.MASK_ON": True,
    "MODEL.BACKBONE.NAME": "build_vit_simple_fpn_backbone",
    "MODEL.FPN.NORM": "LN",
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.RPN.CONV_DIMS": [-1, -1],
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.NORM": "LN",
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 256,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.NORM": "LN",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "MOCO.VIT.DEPTH": 12,
    "MOCO.VIT.PATCH_SIZE": 16,
    "MOCO.VIT.WINDOW_SIZE": 14,
    "MOCO.VIT.GLOBAL_BLOCKS": 4,
    "MOCO.VIT.RELATIVE_POSITIONS": True,
    "MOCO.VIT.LAYER_DECAY": 1.0,
    "MOCO.VIT.PRETRAIN_SIZE": 224,
    "MOCO.VIT.PRETRAIN_CLASS_TOKEN": True,
    "MOCO.RANDOM_SCALE": (0.1, 2.0),
    "INPUT.CROP.ENABLED": True,
    "INPUT.CROP.TYPE": "absolute",
    "INPUT.RANDOM_FLIP": "horizontal",
    "DATASETS.TRAIN": ("coco_2017_train",),
    "DATASETS.TEST": ("coco_2017_val",),
    "MOCO.OPTIMIZER": "AdamW",
    "SOLVER.IMS_PER_BATCH": 64,
    "SOLVER.BASE_LR": 8e-5,
    "SOLVER.WEIGHT_DECAY": 0.1,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
    "SOLVER.AMP.ENABLED": True,
    "SOLVER.STEPS": (),
    "SOLVER.WARMUP_ITERS": round(0.25 * 118000 / 64),
    "SOLVER.MAX_ITER": 25 * 118000 // 64 // 6 * 6,
}


def _vitdet(dim, heads, side, drop_path, epochs=25, depth=12):
    return _VITDET | {
        "MOCO.VIT.DEPTH": depth,
        "SOLVER.MAX_ITER": epochs * 118000 // 64 // 6 * 6,
        "MOCO.VIT.EMBED_DIM": dim,
        "MOCO.VIT.HEADS": heads,
        "MOCO.VIT.DROP_PATH": drop_path,
        "MOCO.VIT.IMAGE_SIZE": side,
        "INPUT.CROP.SIZE": [side, side],
        "INPUT.MIN_SIZE_TEST": side,
        "INPUT.MAX_SIZE_TEST": side,
    }


_LVIS_VITDET = {
    "DATASETS.TRAIN": ("lvis_v1_train",),
    "DATASETS.TEST": ("lvis_v1_val",),
    "MODEL.ROI_HEADS.NUM_CLASSES": 1203,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0001,
    "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
    "DATALOADER.REPEAT_THRESHOLD": 0.001,
    "TEST.DETECTIONS_PER_IMAGE": 300,
    "SOLVER.MAX_ITER": 100 * 100000 // 64 // 6 * 6,
    "SOLVER.WARMUP_ITERS": round(0.25 * 100000 / 64),
}
_RESNET_LSJ = _vitdet(768, 12, 1024, 0.1) | {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.RESNETS.DEPTH": 50,
}
VITDET_TASKS = {
    **{f"coco_vitdet_Ti_{epochs}ep": _vitdet(192, 3, 640, 0.0, epochs) for epochs in (25, 50, 100)},
    **{f"coco_vitdet_S_{epochs}ep": _vitdet(384, 6, 1024, 0.1, epochs) for epochs in (25, 50, 100)},
    **{
        f"coco_vitdet_B_{epochs}ep": _vitdet(768, 12, 1024, 0.1, epochs)
        for epochs in (25, 50, 100, 200, 400)
    },
    **{
        f"coco_vitdet_L_{epochs}ep": _vitdet(1024, 16, 1024, 0.3, epochs, depth=24)
        for epochs in (25, 50, 100)
    },
    "coco_FPN_lsj_25ep": _RESNET_LSJ,
    "coco_FPN_lsj_100ep": _RESNET_LSJ | {"SOLVER.MAX_ITER": 100 * 118000 // 64 // 6 * 6},
    "lvis_v1_vitdet_B_100ep": _vitdet(768, 12, 1024, 0.1) | _LVIS_VITDET,
    "lvis_v1_vitdet_L_100ep": _vitdet(1024, 16, 1024, 0.3, depth=24) | _LVIS_VITDET,
}
TASKS = DETECTION_TASKS | DENSEPOSE_TASKS | OTHER_TASKS | OWN_TASKS | VITDET_TASKS

# MODEL.WEIGHTS of every initialization that differs in nothing else from the others of its task.
MATCHED_INITIALIZATIONS = {
    "random": "random://",
    "supervised": "torchvision://resnet50",
    "moco": "moco://v1_200ep",
    "moco_v2_200ep": "moco://v2_200ep",
    "moco_v2_800ep": "moco://v2_800ep",
    "moco_ig1b": "weights/moco_IG1B.pth",
    "moco_in14m": "weights/moco_IN14M.pth",
    "moco_yfcc100m": "weights/moco_YFCC100M.pth",
    "end_to_end": "weights/end_to_end.pth",
    "memory_bank": "weights/memory_bank.pth",
    "supervised_vit": "timm://deit_base_patch16_224",
    "supervised_in21k_vit": "weights/supervised_IN21K_vit_b.pth",
    "mocov3_vit": "mocov3://vit_b_300ep",
    "mae_vit": "mae://vit_b",
    "dino_vit": "dino://vit_b16",
    "beit_vit": "weights/beit_vit_b.pth",
}
# And those that are not matched: everything in which they differ.
UNMATCHED_INITIALIZATIONS = {
    "supervised_msra": {
        "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
        "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
        "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
        "MODEL.RESNETS.STRIDE_IN_1X1": True,
        "INPUT.FORMAT": "BGR",
    },
    "supervised_frozen_bn": {
        "MODEL.WEIGHTS": "torchvision://resnet50",
        "MODEL.RESNETS.NORM": "FrozenBN",
        "MODEL.FPN.NORM": "",
    },
}
