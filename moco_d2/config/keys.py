"""Every key that we add to Detectron2's config, and every key of Detectron2 whose value we check.

This table is the only description of a key. It defines ``cfg.MOCO``, checks the values of a config
when the config is loaded, and is rendered as docs/config.md (documentation.py).
"""

import dataclasses
from typing import TYPE_CHECKING, Any

from moco_d2.config.kinds import Boolean, Choice, Kind, Names, Number, Numbers, Switch, Text

if TYPE_CHECKING:
    from detectron2.config import CfgNode

#: The page that lists the keys, for error messages.
PAGE = "docs/config.md"

_COUNT = Number("[1, inf)", integer=True)
_COUNT_OR_0 = Number("[0, inf)", integer=True)
_POSITIVE = Number("(0, inf)")
_NOT_NEGATIVE = Number("[0, inf)")
_MOMENTUM = Number("[0, 1)")
_FRACTION = Number("[0, 1]")

_OURS = "our choice"
_OFFICIAL = "main_moco.py"  # in facebookresearch/moco; its defaults are the recipe v1
_OFFICIAL_V3 = "main_moco.py of facebookresearch/moco-v3"
_DEMO = "the authors' CIFAR-10 demo"
_DETECTRON2 = "Detectron2"
_VITDET = "Detectron2's ViTDet-B"


@dataclasses.dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        name: The key with its sections, e.g. ``MOCO.DATA.SHARE``.
        default: The value if no config sets the key; None for a key of Detectron2, which has its
            own default.
        allowed: The values that the key accepts.
        meaning: Whole sentences about what the key does.
        source: The source of the default.
    """

    name: str
    default: Any
    allowed: Kind
    meaning: str
    source: str = _OURS


@dataclasses.dataclass(frozen=True)
class Group:
    """Keys that belong together.

    Attributes:
        title: The heading of the section in docs/config.md.
        keys: The keys.
    """

    title: str
    keys: tuple[Key, ...]


MOCO_GROUPS = (
    Group(
        "Pretraining and fine-tuning",
        (
            Key(
                "MOCO.AMP_DTYPE",
                "bfloat16",
                Choice("bfloat16", "float16"),
                "This is the number type of autocast when `SOLVER.AMP.ENABLED` is True. "
                "With `float16` the gradients are scaled, as it needs.",
            ),
            Key(
                "MOCO.ACCUMULATION",
                1,
                _COUNT,
                "A step consists of this many forward and backward passes. Each pass sees "
                "`SOLVER.IMS_PER_BATCH / ACCUMULATION` images over all processes. BatchNorm and "
                "the negatives of `EndToEnd` use the images of one pass. The optimizer, the key "
                "encoder and the dictionary are updated once per step, with the keys of all "
                "passes. With `MOCO.PRETEXT mocov3` only the backbone works in passes: heads and "
                "loss see the whole batch.",
            ),
            Key(
                "MOCO.INPUT.RANGE",
                (),
                Numbers(Number("(-inf, inf)"), pair=True, optional=True, different=True),
                "These two values of a 16-bit, 32-bit or float gray image become black and white, "
                "with 256 equal steps between them. Values outside become black or white. With "
                "`()`, the range is that of unsigned 16-bit values, `(0, 65535)`; a run is refused "
                "if its images use less than a quarter of it (12-bit values need `(0, 4095)`) or "
                "have float values. 8-bit images are not changed. Detectron2's own commands do "
                "not read this key.",
            ),
        ),
    ),
    Group(
        "Trackers",
        (
            Key(
                "MOCO.TRACKERS",
                (),
                Names("wandb", "mlflow", "trackio"),
                "The main process also writes the metrics, with the config and the name of the "
                "run, to these trackers, which then store or send them as their own settings say. "
                "Each is an extra: `pip install 'moco_d2[wandb]'`. Only the command line may name "
                "them. A resumed run continues its run in the tracker.",
            ),
        ),
    ),
    Group(
        "Fine-tuning",
        (
            Key(
                "MOCO.TASK",
                "",
                Text(),
                "This is the name of the task in run records and tables, such as `voc_C4`. The "
                "files in `configs/task` set it.",
            ),
            Key(
                "MOCO.TUNED",
                "",
                Text(),
                "This is the rule that chose `SOLVER.BASE_LR`, as text. The key `tune` of a suite "
                "sets it. Runs with the same rule are matched, whatever their learning rates. The "
                "value `trial` belongs to a run that the rule compares; tables leave it out.",
            ),
            Key(
                "MOCO.LABEL_FRACTION",
                1.0,
                Number("(0, 1]"),
                "Fine-tuning sees this fraction of the training images that have labels: always "
                "the same ones, drawn by the hashes of their names, and a small fraction is part "
                "of each larger one. The tasks `..._1pct` and `..._10pct` set it.",
            ),
            Key(
                "MOCO.BACKBONE_ONLY",
                False,
                Boolean(),
                "Only the pretrained backbone is taken from `MODEL.WEIGHTS`. If the file is a "
                "finished detector, its other parts begin with their initial values.",
            ),
            Key(
                "MOCO.VOC_EVALUATION",
                "compatible",
                Choice("compatible", "exact"),
                "`compatible` gives Detectron2's numbers bit for bit, as in the paper: scores are "
                "rounded to 3 decimals and boxes to 0.1 pixels. `exact` rounds nothing, and the "
                "result does not depend on the order of the images or on the number of processes.",
                _DETECTRON2,
            ),
            Key(
                "MOCO.RANDOM_SCALE",
                (),
                Numbers(_POSITIVE, pair=True, optional=True),
                "Semantic segmentation scales each training image by a random ratio between these "
                "two before `INPUT.CROP`. In detection the ratio is relative to `INPUT.CROP.SIZE`, "
                "into which the image fits with ratio 1 (large-scale jitter). With `()`, "
                "`INPUT.MIN_SIZE_TRAIN` is used.",
            ),
            Key(
                "MOCO.VAL_LOSS",
                0,
                _COUNT_OR_0,
                "Every this many iterations and at the end, the detector's losses on validation "
                "images are logged as `val_loss/...`. With 0 they are not computed. They do not "
                "change the training, and no checkpoint is chosen by them.",
            ),
            Key(
                "MOCO.VAL_LOSS_DATA",
                (),
                Names(),
                "These are the datasets of the validation loss. With `()` they are "
                "`DATASETS.TEST`.",
            ),
            Key(
                "MOCO.VAL_LOSS_IMAGES",
                500,
                _COUNT_OR_0,
                "The validation loss is computed on this many images with objects, spread evenly "
                "over the datasets; with 0 on all.",
            ),
            Key(
                "MOCO.DRAW_SCORE",
                0.5,
                _FRACTION,
                "`--predict` draws the detections whose score is at least this.",
            ),
        ),
    ),
    Group(
        "Fine-tuning: ViT",
        (
            Key(
                "MOCO.OPTIMIZER",
                "SGD",
                Choice("SGD", "AdamW"),
                "Fine-tuning uses this optimizer. `AdamW` has torch's momenta, and no weight decay "
                "of absolute positions. `SOLVER.LR_SCHEDULER_NAME` `WarmupCosineLR` lowers the "
                "rate to 0 along half a period.",
                _DETECTRON2,
            ),
            Key(
                "MOCO.VIT.LAYER_DECAY",
                1.0,
                Number("(0, 1]"),
                "`AdamW` multiplies the learning rate of a ViT's last block by this, that of the "
                "block before it by its square, and so on down to the patches and positions. With "
                "1.0 all have the same rate.",
            ),
            Key(
                "MOCO.VIT.EMBED_DIM",
                768,
                _COUNT,
                "The backbone `build_vit_simple_fpn_backbone` has this many channels: 192 in "
                "ViT-Ti, 384 in ViT-S, 768 in ViT-B, 1024 in ViT-L.",
                _VITDET,
            ),
            Key("MOCO.VIT.DEPTH", 12, _COUNT, "The ViT has this many blocks.", _VITDET),
            Key(
                "MOCO.VIT.HEADS",
                12,
                _COUNT,
                "Each block has this many attention heads. The shapes of the tensors do not show "
                "it: MoCo v3's `vit_small` has 12.",
                _VITDET,
            ),
            Key(
                "MOCO.VIT.PATCH_SIZE",
                16,
                _COUNT,
                "This is the side of a patch in pixels, a power of two.",
                _VITDET,
            ),
            Key(
                "MOCO.VIT.PRETRAIN_SIZE",
                224,
                _COUNT,
                "This is the side of the pretraining images in pixels. It gives the number of "
                "absolute positions in `MODEL.WEIGHTS`, which are interpolated to the grid of each "
                "image.",
                _VITDET,
            ),
            Key(
                "MOCO.VIT.PRETRAIN_CLASS_TOKEN",
                True,
                Boolean(),
                "The absolute positions in `MODEL.WEIGHTS` begin with that of a class token, which "
                "the detector does not use.",
                _VITDET,
            ),
            Key(
                "MOCO.VIT.IMAGE_SIZE",
                1024,
                _COUNT,
                "Images are padded to a square of this side in pixels, in training and in "
                "evaluation.",
                _VITDET,
            ),
            Key(
                "MOCO.VIT.WINDOW_SIZE",
                14,
                _COUNT,
                "Attention is limited to windows of this many patches in each direction.",
                _VITDET,
            ),
            Key(
                "MOCO.VIT.GLOBAL_BLOCKS",
                4,
                _COUNT_OR_0,
                "This many blocks, at equal distances and with the last one among them, attend to "
                "the whole image.",
                _VITDET,
            ),
            Key(
                "MOCO.VIT.RELATIVE_POSITIONS",
                True,
                Boolean(),
                "Attention also has relative positions, which begin at zero.",
                _VITDET,
            ),
            Key(
                "MOCO.VIT.DROP_PATH",
                0.1,
                Number("[0, 1)"),
                "This is the drop path of the last block. It rises linearly from 0 in the first.",
                _VITDET,
            ),
            Key(
                "MOCO.VIT.CHECKPOINT_BLOCKS",
                False,
                Boolean(),
                "The backward pass computes each block again instead of keeping its activations: "
                "less memory, more time, the same numbers.",
                _VITDET,
            ),
        ),
    ),
    Group(
        "Pretraining: length and learning rate",
        (
            Key(
                "MOCO.PRETEXT",
                "moco",
                Choice("moco", "mocov3", "supervised"),
                "`moco` trains the contrastive task of v1 and v2. `mocov3` trains that of v3: both "
                "views are queries and keys, the other images of the batch are the negatives, and "
                "BatchNorm uses the images of all processes; it does not read "
                "`MOCO.DICTIONARY`, `MOCO.SYMMETRIC` and `MOCO.ENCODER.MLP`. `supervised` trains "
                "the same network on the same images and schedule with their labels; it is the "
                "matched baseline.",
            ),
            Key(
                "MOCO.PRETRAIN_OPTIMIZER",
                "SGD",
                Choice("SGD", "LARS", "AdamW"),
                "Pretraining uses this optimizer. `LARS` scales the step of each weight matrix by "
                "the ratio of its norm to that of its gradient, and neither scales nor decays "
                "biases and norms. `AdamW` has torch's momenta and decays all parameters, as "
                "MoCo v3 does.",
                _OFFICIAL,
            ),
            Key(
                "MOCO.EPOCHS",
                200,
                _COUNT_OR_0,
                "Training takes this many epochs. With 0 it takes `SOLVER.MAX_ITER` iterations.",
                f"{_OFFICIAL} --epochs",
            ),
            Key(
                "MOCO.REFERENCE_BATCH",
                0,
                _COUNT_OR_0,
                "`SOLVER.BASE_LR` and all numbers of iterations (`SOLVER.MAX_ITER`, "
                "`SOLVER.CHECKPOINT_PERIOD`, `MOCO.LR_STEP_EVERY`, `MOCO.KNN.PERIOD`) are set for "
                "this many images per step. With another `SOLVER.IMS_PER_BATCH` the learning rate "
                "is scaled in proportion, and the numbers of iterations in inverse proportion. "
                "With 0 nothing is scaled.",
                "our choice; the linear rule is the official README's",
            ),
            Key(
                "MOCO.LR_SCHEDULE",
                "step",
                Choice("step", "step_every", "cosine", "cosine_after_warmup"),
                "`step` multiplies the learning rate by `SOLVER.GAMMA` at `MOCO.LR_STEPS`, and "
                "`cosine` lowers it to 0 along half a period. Both change it once per epoch. "
                "`step_every` multiplies it by `SOLVER.GAMMA` every `MOCO.LR_STEP_EVERY` "
                "iterations. `cosine_after_warmup` begins the half period at the end of the "
                "warm-up and changes the rate in every iteration, as MoCo v3 does.",
                _OFFICIAL,
            ),
            Key(
                "MOCO.LR_STEPS",
                (120, 160),
                Numbers(Number("[1, inf)")),
                "The schedule `step` lowers the learning rate at these epochs.",
                f"{_OFFICIAL} --schedule",
            ),
            Key(
                "MOCO.LR_STEP_EVERY",
                0,
                _COUNT_OR_0,
                "The schedule `step_every` lowers the learning rate every this many iterations, "
                "and needs at least 1.",
            ),
            Key(
                "MOCO.WARMUP_EPOCHS",
                0.0,
                _NOT_NEGATIVE,
                "The learning rate rises from `SOLVER.WARMUP_FACTOR` of its value to its full "
                "value during this many epochs, which may be a fraction. The paper has no warm-up. "
                "Batches far larger than the recipe's need one.",
                _OFFICIAL,
            ),
        ),
    ),
    Group(
        "Pretraining: MoCo",
        (
            Key(
                "MOCO.MOMENTUM",
                0.999,
                _MOMENTUM,
                "This is the momentum m of the key encoder, in equation 2 of the paper.",
                f"{_OFFICIAL} --moco-m",
            ),
            Key(
                "MOCO.MOMENTUM_SCHEDULE",
                "constant",
                Choice("constant", "cosine"),
                "`cosine` raises the momentum of the key encoder from `MOCO.MOMENTUM` to 1 along "
                "half a period, in every iteration.",
                f"{_OFFICIAL}; v3 has --moco-m-cos",
            ),
            Key(
                "MOCO.TEMPERATURE",
                0.07,
                _POSITIVE,
                "This is the temperature of the contrastive loss, in equation 1 of the paper.",
                f"{_OFFICIAL} --moco-t",
            ),
            Key(
                "MOCO.SYMMETRIC",
                False,
                Boolean(),
                "Each view is used once as query and once as key, and the loss is the sum of both "
                f"directions, as in {_DEMO}. A step takes twice as long.",
                _OFFICIAL,
            ),
            Key(
                "MOCO.BN_SPLITS",
                1,
                _COUNT_OR_0,
                "BatchNorm on one process splits the batch into this many groups with separate "
                "statistics, so that ShuffleBN works as on several GPUs. 8 reproduces the paper's "
                "8 GPUs on one device. Several processes need 1. With 0 the number is automatic: 1 "
                "on several processes, and groups of about 32 images on one process.",
                _OFFICIAL,
            ),
            Key(
                "MOCO.CHANNELS_LAST",
                True,
                Boolean(),
                "Convolutions use the memory format channels_last. It was faster in every "
                "measurement, and the numbers agree up to rounding.",
            ),
            Key(
                "MOCO.COMPILE",
                None,
                Switch(),
                "The encoders and the augmentation on the device are compiled with torch.compile. "
                "Compiling takes minutes at the start and makes steps on a GPU faster. With auto, "
                "this is done on a GPU that Triton supports, if there is a C compiler.",
            ),
        ),
    ),
    Group(
        "Pretraining: encoder",
        (
            Key(
                "MOCO.ENCODER.ARCH",
                "resnet50",
                Choice(
                    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
                    *("vit_tiny", "vit_small", "vit_base"),
                ),
                "This is torchvision's name of the network. The ViTs have patches of 16 pixels, 12 "
                "blocks, and 192, 384 or 768 channels; `vit_small` and `vit_base` have MoCo v3's "
                "12 heads, and `vit_tiny` has DeiT's 3. `MOCO.PRETEXT moco` has no ViTs.",
                f"{_OFFICIAL} --arch",
            ),
            Key(
                "MOCO.ENCODER.WIDTH_PER_GROUP",
                64,
                _COUNT,
                "This is torchvision's `width_per_group` and Detectron2's "
                "`MODEL.RESNETS.WIDTH_PER_GROUP`. Only networks with bottlenecks have it.",
                "torchvision",
            ),
            Key(
                "MOCO.ENCODER.GROUPS",
                1,
                _COUNT,
                "The 3x3 convolutions have this many groups, as in Detectron2's "
                "`MODEL.RESNETS.NUM_GROUPS`. ResNeXt-50 32x8d is `resnet50` with `GROUPS` 32 and "
                "`WIDTH_PER_GROUP` 8.",
                "torchvision",
            ),
            Key(
                "MOCO.ENCODER.WIDTH_FACTOR",
                1.0,
                _POSITIVE,
                "All numbers of channels are multiplied by this factor; 2 and 4 give the paper's "
                "R50w2x and R50w4x, and 0.25 a network for a CPU.",
                _OFFICIAL,
            ),
            Key(
                "MOCO.ENCODER.SMALL_STEM",
                False,
                Boolean(),
                "The network begins with a 3x3 convolution and no pooling, for images of 32 "
                f"pixels, as in {_DEMO}. Detectron2 has no such network.",
                _OFFICIAL,
            ),
            Key(
                "MOCO.ENCODER.DIM",
                128,
                _COUNT,
                "This is the dimension C of the embedding.",
                f"{_OFFICIAL} --moco-dim",
            ),
            Key(
                "MOCO.ENCODER.MLP",
                False,
                Boolean(),
                "The projection head has two layers (v2) instead of one (v1).",
                f"{_OFFICIAL} --mlp",
            ),
            Key(
                "MOCO.ENCODER.MLP_DIM",
                4096,
                _COUNT,
                "The hidden layers of v3's projection and prediction heads have this width.",
                f"{_OFFICIAL_V3} --moco-mlp-dim",
            ),
            Key(
                "MOCO.ENCODER.FREEZE_PATCHES",
                False,
                Boolean(),
                "The patch projection of a ViT keeps its random values, which makes the training "
                "of v3 stable.",
                f"{_OFFICIAL_V3} --stop-grad-conv1",
            ),
        ),
    ),
    Group(
        "Pretraining: dictionary",
        (
            Key(
                "MOCO.DICTIONARY.NAME",
                "Queue",
                Choice("Queue", "MemoryBank", "EndToEnd"),
                "This chooses where the keys come from (Figure 2 of the paper): `Queue` is MoCo.",
                _OFFICIAL,
            ),
            Key(
                "MOCO.DICTIONARY.SIZE",
                65536,
                _COUNT_OR_0,
                "This is the number of keys K. `Queue` holds K keys. `MemoryBank` holds one key "
                "per image, and draws K negatives in a step. `EndToEnd` does not use it, because "
                "its keys come from the batch. With 0 it is the paper's 65536, or less for a "
                "dataset of fewer than 0.8 million images, so that few of an image's negatives "
                "show the image itself.",
                f"{_OFFICIAL} --moco-k",
            ),
            Key(
                "MOCO.DICTIONARY.BANK_MOMENTUM",
                0.5,
                _MOMENTUM,
                "`MemoryBank` keeps this fraction of an old representation in the new one.",
                "InstDisc",
            ),
        ),
    ),
    Group(
        "Pretraining: augmentation",
        (
            Key(
                "MOCO.AUGMENTATION.NAME",
                "v1",
                Choice("v1", "v2", "v3"),
                "`v1` is the augmentation of InstDisc, and `v2` adds blur. `v3` is BYOL's: the "
                "first view is always blurred; the second one rarely, and sometimes solarized.",
                f"{_OFFICIAL} --aug-plus",
            ),
            Key(
                "MOCO.AUGMENTATION.WHERE",
                "workers",
                Choice("workers", "device"),
                "With `workers`, the CPU workers augment the images with torchvision. With "
                "`device` they only crop, and `MODEL.DEVICE` does the rest for the whole "
                "batch. This helps if a GPU has few CPU cores.",
            ),
            Key(
                "MOCO.AUGMENTATION.SIZE",
                224,
                _COUNT,
                "This is the side of a view in pixels.",
                _OFFICIAL,
            ),
            Key(
                "MOCO.AUGMENTATION.CROP_SCALE",
                (0.2, 1.0),
                Numbers(Number("(0, 1]"), pair=True),
                "The random crop has an area between these two fractions of the image.",
                _OFFICIAL,
            ),
            Key(
                "MOCO.AUGMENTATION.BLUR_SIGMA",
                (0.1, 2.0),
                Numbers(_NOT_NEGATIVE, pair=True),
                "The sigma of the blur of `v2` and `v3` lies between these two numbers of pixels.",
                _OFFICIAL,
            ),
        ),
    ),
    Group(
        "Pretraining: data",
        (
            Key(
                "MOCO.DATA.SHARE",
                1.0,
                Number("(0, 1]"),
                "Only this fraction of the images is used, to compare sizes of one dataset. The "
                "images are drawn at random, but they are the same in every run, and a larger "
                "fraction contains all images of a smaller one. Shards do not support it.",
            ),
            Key(
                "MOCO.DATA.MAX_UNREADABLE",
                0.01,
                _FRACTION,
                "Unreadable images are skipped and named. The run stops when they exceed this "
                "fraction of the images.",
            ),
            Key(
                "MOCO.DATA.SHARD_IMAGES",
                0,
                _COUNT_OR_0,
                "The tar shards (`shards:data/{0000..0099}.tar`, or `shards:pipe:COMMAND`, which "
                "runs a shell command) have this many images together, the same number in each "
                "shard. With 0 the workers of all processes count them, which needs local files.",
            ),
            Key(
                "MOCO.DATA.SHARD_SHUFFLE",
                1000,
                _COUNT_OR_0,
                "A worker holds this many undecoded images of the shards and shuffles them. With 0 "
                "the order inside the shards is kept. The order of the shards is always shuffled.",
            ),
        ),
    ),
    Group(
        "Checkpoints",
        (
            Key(
                "MOCO.CHECKPOINT.MINUTES",
                30,
                _COUNT_OR_0,
                "After this many minutes without a checkpoint, one is saved, which is removed when "
                "the next one is written. With 0 there is no such checkpoint.",
            ),
            Key(
                "MOCO.CHECKPOINT.KEEP_LAST",
                2,
                _COUNT_OR_0,
                "This many of the last checkpoints are kept besides the final one; 0 keeps all. A "
                "checkpoint of a ResNet-50 has 0.4 GB.",
            ),
            Key(
                "MOCO.CHECKPOINT.KEEP_EVERY",
                0,
                _COUNT_OR_0,
                "Every N-th checkpoint of `SOLVER.CHECKPOINT_PERIOD` is never removed, where N is "
                "this number. With 0 this holds for no checkpoint.",
            ),
            Key(
                "MOCO.CHECKPOINT.REINITIALISE",
                (),
                Names("queue", "head"),
                "With `--resume`, these parts are initialized again, because their size has "
                "changed.",
            ),
        ),
    ),
    Group(
        "Pretraining: kNN accuracy",
        (
            Key(
                "MOCO.KNN.TRAIN",
                "",
                Text(),
                "The nearest neighbors come from the images of this folder, which has one folder "
                "per class. Empty text turns the evaluation off.",
            ),
            Key(
                "MOCO.KNN.TEST",
                "",
                Text(),
                "The images of this folder are classified. It has the same classes.",
            ),
            Key(
                "MOCO.KNN.EPOCHS",
                0,
                _COUNT_OR_0,
                "This many epochs lie between two evaluations. With 0, `MOCO.KNN.PERIOD` is used.",
            ),
            Key(
                "MOCO.KNN.PERIOD",
                0,
                _COUNT_OR_0,
                "This many iterations lie between two evaluations. With 0 there is one at the "
                "start and one at the end.",
            ),
            Key(
                "MOCO.KNN.NEIGHBOURS",
                200,
                _COUNT,
                "This many neighbors vote.",
                _DEMO,
            ),
            Key(
                "MOCO.KNN.TEMPERATURE",
                0.1,
                _POSITIVE,
                "This is the temperature of the weighted vote.",
                _DEMO,
            ),
            Key(
                "MOCO.KNN.PROTOCOL",
                "backbone",
                Choice("backbone", "outputs"),
                "`backbone` compares pooled features of the backbone (512 wide in a ResNet-18), of "
                "images that are resized to 256 / 224 of `MOCO.AUGMENTATION.SIZE` and cropped to "
                "it. `outputs` is the protocol of the authors' CIFAR-10 demo: outputs of the head "
                "(`MOCO.ENCODER.DIM` wide), of images that are resized to "
                "`MOCO.AUGMENTATION.SIZE`, so images of that size stay untouched.",
            ),
        ),
    ),
    Group(
        "Pretraining: monitoring",
        (
            Key(
                "MOCO.MONITOR.EXPECTED_LOSS",
                (),
                Numbers(_NOT_NEGATIVE, pair=True, optional=True),
                "The final loss lies between these two numbers, as published for the recipe, its "
                "dataset and its dictionary size. If a run ends outside this range, there is a "
                "warning. With `()` no range is known.",
            ),
            Key(
                "MOCO.MONITOR.NEIGHBOURS",
                8,
                _COUNT_OR_0,
                "Every kNN evaluation writes an image to `OUTPUT_DIR/neighbours` that shows this "
                "many test images with their nearest training images. With 0 it writes none.",
            ),
        ),
    ),
)


def _checked(name: str, allowed: Kind, meaning: str) -> Key:
    return Key(name, None, allowed, meaning, _DETECTRON2)


DETECTRON2_GROUP = Group(
    "Checked keys of Detectron2",
    (
        _checked(
            "DATASETS.TRAIN",
            Names(),
            "These are the training datasets. Pretraining reads exactly one.",
        ),
        _checked("DATASETS.TEST", Names(), "Fine-tuning evaluates on these datasets."),
        _checked(
            "DATALOADER.NUM_WORKERS",
            _COUNT_OR_0,
            "Each process reads images in this many worker processes; with 0 it reads them itself.",
        ),
        _checked(
            "DATALOADER.REPEAT_THRESHOLD",
            _NOT_NEGATIVE,
            "If a class is in a smaller fraction of the images than this, its images are repeated.",
        ),
        _checked(
            "SOLVER.IMS_PER_BATCH",
            _COUNT,
            "A step sees this many images over all processes.",
        ),
        _checked(
            "SOLVER.REFERENCE_WORLD_SIZE",
            _COUNT_OR_0,
            "The schedule is written for this many processes, and is scaled to any other number. "
            "With 0 it is not scaled.",
        ),
        _checked(
            "SOLVER.MAX_ITER",
            _COUNT_OR_0,
            "Training takes this many iterations. Pretraining needs it if `MOCO.EPOCHS` is 0.",
        ),
        _checked("SOLVER.BASE_LR", _NOT_NEGATIVE, "This is the learning rate."),
        _checked("SOLVER.MOMENTUM", _MOMENTUM, "This is the momentum of SGD."),
        _checked("SOLVER.WEIGHT_DECAY", _NOT_NEGATIVE, "This is the weight decay."),
        _checked(
            "SOLVER.GAMMA", _NOT_NEGATIVE, "Each step multiplies the learning rate by this factor."
        ),
        _checked(
            "SOLVER.STEPS",
            Numbers(_COUNT_OR_0),
            "Fine-tuning lowers the learning rate at these iterations.",
        ),
        _checked(
            "SOLVER.WARMUP_FACTOR",
            _NOT_NEGATIVE,
            "A warm-up begins with this fraction of the learning rate.",
        ),
        _checked("SOLVER.WARMUP_ITERS", _COUNT_OR_0, "The warm-up takes this many iterations."),
        _checked(
            "SOLVER.CHECKPOINT_PERIOD",
            _COUNT_OR_0,
            "This many iterations lie between two checkpoints.",
        ),
        _checked(
            "TEST.EVAL_PERIOD",
            _COUNT_OR_0,
            "This many iterations lie between two evaluations; with 0 there is one at the end.",
        ),
        _checked(
            "SEED",
            Number("(-inf, inf)", integer=True),
            "This is the seed of all random numbers. With a negative number the seed is random.",
        ),
    ),
)

#: Every key of the table by its name.
KEYS = {key.name: key for group in (*MOCO_GROUPS, DETECTRON2_GROUP) for key in group.keys}


def add_moco_config(cfg: "CfgNode") -> None:
    """Add ``cfg.MOCO`` to a Detectron2 config in place, unless the config has it already."""
    if "MOCO" in cfg:
        return
    for group in MOCO_GROUPS:
        for key in group.keys:
            *sections, name = key.name.split(".")
            node = cfg
            for section in sections:
                node = node.setdefault(section, type(cfg)())
            node[name] = key.default


def read_value(name: str, raw: Any) -> Any:
    """Return the value of a key of the table in the form that is merged into a config.

    Args:
        name: A name in KEYS.
        raw: A value of a yaml file, or a word of the command line.

    Raises:
        ValueError: If the key does not accept it. The message is a sentence that begins with
            `name`.
    """
    try:
        value = KEYS[name].allowed.read(raw)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error
    # yacs reads text as a Python literal if it can. In quotes the text is kept.
    return repr(value) if isinstance(value, str) else value
