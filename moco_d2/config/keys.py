"""Our keys in Detectron2's config, all under ``cfg.MOCO``."""

from typing import Any


def add_moco_config(cfg: Any) -> None:  # noqa: PLR0915 - a list of keys
    """Add ``cfg.MOCO`` to a Detectron2 config, in place. Does nothing if it is there already."""
    if "MOCO" in cfg:
        return
    CN = type(cfg)
    cfg.MOCO = CN()

    # ---- pretraining and fine-tuning -------------------------------------------------------------
    # Number type of autocast when SOLVER.AMP.ENABLED: "bfloat16", or "float16" with scaled
    # gradients.
    cfg.MOCO.AMP_DTYPE = "bfloat16"
    # Forward and backward passes a step: each has SOLVER.IMS_PER_BATCH / ACCUMULATION images, over
    # all processes. BatchNorm, and EndToEnd's negatives, are those of one pass; the optimizer, the
    # key encoder and the dictionary change once a step, with the keys of all.
    cfg.MOCO.ACCUMULATION = 1

    # ---- fine-tuning -----------------------------------------------------------------------------
    # Name of the task in run records and tables ("voc_C4"). Set by configs/task/*.yaml.
    cfg.MOCO.TASK = ""
    # How VOC detections are evaluated: "compatible", Detectron2's numbers bit for bit, as in the
    # paper (scores rounded to 3 decimals, boxes to 0.1 pixels), or "exact" (nothing rounded, and
    # the same result in whatever order and on however many processes the images are evaluated).
    cfg.MOCO.VOC_EVALUATION = "compatible"
    # Semantic segmentation: smallest and largest ratio by which a training image is scaled before
    # INPUT.CROP. (): INPUT.MIN_SIZE_TRAIN counts, as in detection.
    cfg.MOCO.RANDOM_SCALE = ()
    # Lowest score of a detection that --predict draws.
    cfg.MOCO.DRAW_SCORE = 0.5

    # ---- pretraining -----------------------------------------------------------------------------
    # "moco", or "supervised": the same network, images and schedule with labels, the matched
    # baseline.
    cfg.MOCO.PRETEXT = "moco"
    # Length in epochs; 0 means SOLVER.MAX_ITER iterations.
    cfg.MOCO.EPOCHS = 200
    # Images a step for which SOLVER.BASE_LR and all numbers of iterations (SOLVER.MAX_ITER and
    # CHECKPOINT_PERIOD, MOCO.LR_STEP_EVERY and KNN.PERIOD) are given. At another
    # SOLVER.IMS_PER_BATCH the rate is scaled with it, and the iterations inversely (official
    # README: lr 0.015 at batch 128). 0: they are taken as they stand.
    cfg.MOCO.REFERENCE_BATCH = 0
    # "step" (x SOLVER.GAMMA at MOCO.LR_STEPS) or "cosine" (half a period, to 0), both set once an
    # epoch; or "step_every" (x SOLVER.GAMMA every MOCO.LR_STEP_EVERY iterations).
    cfg.MOCO.LR_SCHEDULE = "step"
    # Epochs at which the step schedule decays.
    cfg.MOCO.LR_STEPS = (120, 160)
    # Iterations between two decays of "step_every".
    cfg.MOCO.LR_STEP_EVERY = 0
    # Epochs, or parts of one, in which the rate rises from SOLVER.WARMUP_FACTOR of it to all of it.
    # None in the paper; wanted for batches far beyond the recipe's.
    cfg.MOCO.WARMUP_EPOCHS = 0.0
    # Momentum m of the key encoder, paper eq. 2.
    cfg.MOCO.MOMENTUM = 0.999
    # Temperature of the contrastive loss, paper eq. 1.
    cfg.MOCO.TEMPERATURE = 0.07
    # Each view is query once and key once; the loss is the sum of both directions (authors' CIFAR
    # demo). A step costs twice as much.
    cfg.MOCO.SYMMETRIC = False
    # Memory format of the convolutions; faster wherever it was measured, the numbers agree to
    # rounding.
    cfg.MOCO.CHANNELS_LAST = True
    # torch.compile the encoders: minutes at the start, faster steps on a GPU.
    cfg.MOCO.COMPILE = False

    cfg.MOCO.ENCODER = CN()
    # torchvision's name: resnet18, resnet34, resnet50, resnet101, resnet152.
    cfg.MOCO.ENCODER.ARCH = "resnet50"
    # torchvision's width_per_group, Detectron2's MODEL.RESNETS.WIDTH_PER_GROUP. Bottleneck networks
    # only.
    cfg.MOCO.ENCODER.WIDTH_PER_GROUP = 64
    # Groups of the 3x3 convolutions, Detectron2's MODEL.RESNETS.NUM_GROUPS: ResNeXt-50 32x8d is
    # resnet50 with GROUPS 32 and WIDTH_PER_GROUP 8.
    cfg.MOCO.ENCODER.GROUPS = 1
    # Multiplies every number of channels: 2 and 4 are the paper's R50w2x and R50w4x.
    cfg.MOCO.ENCODER.WIDTH_FACTOR = 1
    # A 3x3 stem without pooling, for images of 32 pixels (authors' CIFAR demo); Detectron2 has no
    # such network.
    cfg.MOCO.ENCODER.SMALL_STEM = False
    # Dimension C of the embedding.
    cfg.MOCO.ENCODER.DIM = 128
    # Two-layer projection head (v2) instead of a linear one (v1).
    cfg.MOCO.ENCODER.MLP = False

    cfg.MOCO.CHECKPOINT = CN()
    # Checkpoints to keep beside the final one: the last N; 0 keeps all. A ResNet-50's has 0.4 GB.
    cfg.MOCO.CHECKPOINT.KEEP_LAST = 2
    # And every M-th of those that SOLVER.CHECKPOINT_PERIOD makes, for good; 0: none.
    cfg.MOCO.CHECKPOINT.KEEP_EVERY = 0
    # Parts that begin anew at --resume, because their size was changed: "queue", "head".
    cfg.MOCO.CHECKPOINT.REINITIALISE = ()

    cfg.MOCO.DICTIONARY = CN()
    # Where the keys come from (paper Figure 2): "Queue" (MoCo), "MemoryBank" or "EndToEnd".
    cfg.MOCO.DICTIONARY.NAME = "Queue"
    # Number of keys K. Queue: that it holds. MemoryBank: negatives drawn from it a step; it holds
    # one key an image. EndToEnd: not used, the keys are those of the batch. 0: the paper's 65536,
    # or fewer for a dataset of less than 0.8 million images, so that few of an image's negatives
    # are the image itself.
    cfg.MOCO.DICTIONARY.SIZE = 65536
    # MemoryBank: share of the old representation in the new one (InstDisc's 0.5).
    cfg.MOCO.DICTIONARY.BANK_MOMENTUM = 0.5

    # Groups that BatchNorm's batch is split into on one process, so that ShuffleBN works there:
    # each group has statistics of its own, as each GPU has. 1 on several processes; 8 reproduces
    # the paper's 8 GPUs on one device. 0: chosen so, 32 images a group where the batch allows.
    cfg.MOCO.BN_SPLITS = 1

    cfg.MOCO.AUGMENTATION = CN()
    # "v1" (InstDisc) or "v2" (with blur).
    cfg.MOCO.AUGMENTATION.NAME = "v1"
    # "workers": all of it on the CPU workers, with torchvision. "device": they crop, and the rest
    # is done on MODEL.DEVICE for the whole batch, with kornia: for few CPU cores a GPU.
    cfg.MOCO.AUGMENTATION.WHERE = "workers"
    # Side of a view, pixels.
    cfg.MOCO.AUGMENTATION.SIZE = 224
    # Area of the random crop as a share of the image.
    cfg.MOCO.AUGMENTATION.CROP_SCALE = (0.2, 1.0)
    # Range of the blur's sigma, pixels; v2 only.
    cfg.MOCO.AUGMENTATION.BLUR_SIGMA = (0.1, 2.0)

    cfg.MOCO.DATA = CN()
    # Share of the images that are used, for comparing sizes of one dataset: drawn at random, but
    # the same in every run, and smaller shares lie within larger ones. Not for shards.
    cfg.MOCO.DATA.SHARE = 1.0
    # Share of the images that may be unreadable. They are skipped and named; more of them stop the
    # run.
    cfg.MOCO.DATA.MAX_UNREADABLE = 0.01
    # Images in a set of tar shards ("shards:data/{0000..0099}.tar", or "shards:pipe:COMMAND", which
    # runs a shell command), of which every shard is taken to hold an equal part. 0: count them in
    # the files, which must be local; the workers of all processes do.
    cfg.MOCO.DATA.SHARD_IMAGES = 0
    # Images of a shard set that a worker holds, undecoded, and shuffles together. The shards' order
    # is shuffled too; 0 leaves the order inside them alone.
    cfg.MOCO.DATA.SHARD_SHUFFLE = 1000

    cfg.MOCO.KNN = CN()
    # Class folders whose features are compared: a labelled set to search in and one to classify. ""
    # turns it off.
    cfg.MOCO.KNN.TRAIN = ""
    cfg.MOCO.KNN.TEST = ""
    # Epochs between two evaluations; 0: MOCO.KNN.PERIOD counts.
    cfg.MOCO.KNN.EPOCHS = 0
    # Iterations between two evaluations; 0: only at the start and at the end.
    cfg.MOCO.KNN.PERIOD = 0
    # Neighbours and temperature of the weighted vote (authors' CIFAR demo: 200 and 0.1).
    cfg.MOCO.KNN.NEIGHBOURS = 200
    cfg.MOCO.KNN.TEMPERATURE = 0.1

    cfg.MOCO.MONITOR = CN()
    # Lowest and highest loss that the recipe ends with, as published for its dataset and dictionary
    # size; a warning says where a run ends outside. (): none is known.
    cfg.MOCO.MONITOR.EXPECTED_LOSS = ()
    # Test images of the sheet OUTPUT_DIR/neighbours/*.png: each with its nearest training images,
    # at every kNN evaluation. 0: no sheet.
    cfg.MOCO.MONITOR.NEIGHBOURS = 8
