"""The networks of the demo, and how a CPU pretrains and fine-tunes each within minutes."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

#: The row whose labels are the classes to detect; only demo-long has it.
SAME_CLASSES = "supervised_same_classes"
#: Images of a pretraining step.
PRETRAIN_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of the demo. All its runs share one image size and one schedule.

    Attributes:
        title: What the report calls it.
        method: What the report calls its self-supervised pretraining.
        rows: Pretrained row -> the pretext, and the list of scenes.LABELS whose labels it has. All
            pretrainings have the same images. The self-supervised one, the first, uses no label.
        has_queue: Whether the negatives come from a queue, not from the batch.
        recipe: Config of the pretrainings.
        pretraining: Config keys and values of the pretrainings.
        detector: Config keys and values of all tasks.
        tasks: Task -> its own config keys and values.
    """

    title: str
    method: str
    rows: Mapping[str, tuple[str, str]]
    has_queue: bool
    recipe: str
    pretraining: Mapping[str, Any]
    detector: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, Any]]

    def chance(self, queue: int) -> tuple[str, float]:
        """Return the loss of guessing, as a formula and as a number.

        Args:
            queue: Queue size K of a network that has one.
        """
        if self.has_queue:
            return "ln(K+1)", math.log(queue + 1)
        # MoCo v3 sums both directions, and multiplies each by twice the temperature.
        temperature = self.pretraining["MOCO.TEMPERATURE"]
        return f"4 x {temperature} x ln({PRETRAIN_BATCH})", 4 * temperature * math.log(
            PRETRAIN_BATCH
        )


_AUGMENTATION = {"MOCO.AUGMENTATION.CROP_SCALE": "(0.4, 1.0)"}
_FEW_PROPOSALS = {
    "SOLVER.REFERENCE_WORLD_SIZE": 0,
    "SOLVER.IMS_PER_BATCH": 4,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 100,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 100,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 100,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "TEST.DETECTIONS_PER_IMAGE": 10,
    "DATALOADER.NUM_WORKERS": 0,
}
_SMALL_MASK_HEAD = {"MODEL.ROI_MASK_HEAD.CONV_DIM": 64}
_SMALL_PYRAMID = {
    **_SMALL_MASK_HEAD,
    "MODEL.FPN.OUT_CHANNELS": 64,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 256,
}
# The rate was chosen on scenes of another seed, with one run each of random and MoCo's weights: of
# 0.005, 0.01, 0.02 and 0.04, both learned most at 0.01 (coco_C4_1x, 100 steps, full width).
_SMALL_C4 = {
    "MODEL.BACKBONE.NAME": "build_basic_resnet",
    "SOLVER.BASE_LR": 0.01,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ANCHOR_GENERATOR.SIZES": "[[24, 36, 50]]",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 2,
}
_RESNET = Network(
    title="ResNet-18 of half the width",
    method="MoCo",
    rows={
        "moco": ("moco", "shapes"),
        "supervised": ("supervised", "shapes"),
        SAME_CLASSES: ("supervised", "textures"),
    },
    has_queue=True,
    recipe="moco_v2_R50_200ep.yaml",
    pretraining={
        "MOCO.ENCODER.ARCH": "resnet18",
        "MOCO.ENCODER.WIDTH_FACTOR": 0.5,
        **_AUGMENTATION,
        "MOCO.AUGMENTATION.SIZE": 32,
        "MOCO.AUGMENTATION.BLUR_SIGMA": "(0.1, 0.8)",
        # The paper's 0.03 at batch 256, scaled linearly.
        "SOLVER.BASE_LR": 0.0075,
        "MOCO.BN_SPLITS": 4,
    },
    detector={
        **_FEW_PROPOSALS,
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 32,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 32,
        "INPUT.MIN_SIZE_TRAIN": "(72,)",
        "INPUT.MIN_SIZE_TEST": 72,
        "TEST.PRECISE_BN.NUM_ITER": 5,
    },
    tasks={
        "voc_C4": _SMALL_C4,
        "coco_C4_1x": {**_SMALL_C4, **_SMALL_MASK_HEAD},
        "coco_FPN_1x": {
            **_SMALL_PYRAMID,
            "MODEL.BACKBONE.NAME": "build_basic_resnet_fpn",
            # The heads are random in every run and have no norm. In so few steps, they need a
            # larger rate than linear scaling gives. It was chosen on scenes of another seed.
            "SOLVER.BASE_LR": 0.04,
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64,
            "MODEL.ANCHOR_GENERATOR.SIZES": "[[8], [16], [32], [48], [64]]",
        },
    },
)
# These settings were chosen with single runs of random and MoCo v3's weights on the demo's scenes.
_VIT = Network(
    title="ViT-Ti",
    method="MoCo v3",
    rows={"mocov3_vit": ("mocov3", "shapes"), "supervised_vit": ("supervised", "shapes")},
    has_queue=False,
    recipe="moco_v3_ViT_S_300ep.yaml",
    pretraining={
        "MOCO.ENCODER.ARCH": "vit_tiny",
        "MOCO.ENCODER.DIM": 128,
        "MOCO.ENCODER.MLP_DIM": 512,
        **_AUGMENTATION,
        "MOCO.AUGMENTATION.SIZE": 64,
        "MOCO.AUGMENTATION.BLUR_SIGMA": "(0.1, 1.6)",
        "MOCO.TEMPERATURE": 0.2,
        "MOCO.WARMUP_EPOCHS": 1,
        # At 0.0015 without a warm-up, nothing was learned.
        "SOLVER.BASE_LR": 0.0005,
        "SOLVER.AMP.ENABLED": False,  # 16 patches an image are slower with it on a CPU
    },
    detector={
        **_FEW_PROPOSALS,
        "MOCO.VIT.IMAGE_SIZE": 192,
        "MOCO.VIT.PRETRAIN_SIZE": 64,
        "MOCO.VIT.WINDOW_SIZE": 12,
        "MOCO.RANDOM_SCALE": "(0.9, 1.1)",
        "INPUT.CROP.SIZE": "[192, 192]",
        "INPUT.MIN_SIZE_TEST": 192,
        "INPUT.MAX_SIZE_TEST": 192,
    },
    tasks={
        "coco_vitdet_Ti_25ep": {
            **_SMALL_PYRAMID,
            "SOLVER.BASE_LR": 0.0007,
            # Objects are 50 to 110 pixels wide. With the whole pyramid, boxes of this size come
            # from the map of the smallest stride, whose layers are random and learn for long.
            "MODEL.RPN.IN_FEATURES": "['p4']",
            "MODEL.ROI_HEADS.IN_FEATURES": "['p4']",
            "MODEL.ANCHOR_GENERATOR.SIZES": "[[56, 72, 88, 108]]",
            "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 16,
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
            "MODEL.ROI_BOX_HEAD.NUM_CONV": 1,
            "MODEL.ROI_BOX_HEAD.CONV_DIM": 64,
            "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
        },
    },
)
#: Value of Settings.network -> the network.
NETWORKS = {"resnet18": _RESNET, "vit_tiny": _VIT}
