import logging
import re

import pytest

from moco_d2.config.load import load_config, task_configs
from moco_d2.transfer.hardware_scaling import scale_to_hardware
from moco_d2.transfer.preflight.config_checks import (
    check_config,
    check_memory,
    check_name,
    check_schedule,
    check_settings,
)
from moco_d2.transfer.preflight.findings import has_refusal
from moco_d2.transfer.preflight.weight_checks import check_coverage
from moco_d2.transfer.weights import Coverage

PROVENANCE = {
    "preprocessing": {
        "format": "RGB",
        "pixel_mean": [123.675, 116.28, 103.53],
        "pixel_std": [58.395, 57.12, 57.375],
    },
    "stride_in_1x1": False,
    "depth": 50,
    "width_per_group": 64,
    "groups": 1,
    "width_factor": 1,
}


def as_run(config, *overrides, world_size=8):
    """The config as the command scales it, and as it is written."""
    cfg = load_config(config, overrides)
    return scale_to_hardware(cfg, world_size)[0], cfg


def findings(config, *overrides, **given):
    return findings_of(load_config(config, overrides), **given)


def findings_of(written, *, provenance=PROVENANCE, world_size=8):
    cfg, _ = scale_to_hardware(written, world_size)
    found = check_config(cfg, provenance, world_size=world_size)
    found += check_schedule(cfg, written) + check_settings(cfg)
    return [str(finding) for finding in found]


def vit_findings(*overrides, provenance=None):
    return findings("coco_vitdet_Ti_25ep_random.yaml", *overrides, provenance=provenance)


def test_keys_of_a_vit_are_the_tasks_and_those_of_a_resnet_do_not_count():
    assert vit_findings("MODEL.RESNETS.NORM", "FrozenBN") == []
    assert vit_findings("MOCO.VIT.CHECKPOINT_BLOCKS", "True") == []
    for key, value in (("WINDOW_SIZE", "7"), ("LAYER_DECAY", "0.7"), ("DROP_PATH", "0.1")):
        (found,) = vit_findings(f"MOCO.VIT.{key}", value)
        assert found.startswith(f"MOCO.VIT.{key} is {value}: the task has ")
    (found,) = vit_findings("MOCO.OPTIMIZER", "SGD")
    assert found.startswith("MOCO.OPTIMIZER is SGD: the task has AdamW")


def test_a_layer_decay_that_reaches_no_layer_is_found():
    (found,) = findings("coco_FPN_1x_moco.yaml", "MOCO.VIT.LAYER_DECAY", "0.7", "MOCO.TASK", "own")
    assert found.startswith("MOCO.VIT.LAYER_DECAY is 0.7: it reaches no layer")


@pytest.mark.parametrize(("task", "own"), [("C4", ""), ("FPN", "_fpn")])
def test_a_basic_network_that_detectron2s_builder_refuses_is_found(task, own):
    narrow = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32"]
    (found,) = findings(f"coco_{task}_1x_random.yaml", *narrow, provenance=None)
    assert found.startswith("MODEL.RESNETS.RES2_OUT_CHANNELS is 32: Detectron2's builder has")
    assert f"set MODEL.BACKBONE.NAME build_basic_resnet{own}" in found
    narrow += ["MODEL.BACKBONE.NAME", f"build_basic_resnet{own}"]
    assert findings(f"coco_{task}_1x_random.yaml", *narrow, provenance=None) == []


def test_images_larger_than_the_square_are_found():
    own = ("MOCO.TASK", "own", "MOCO.VIT.IMAGE_SIZE", "512")
    crop, test = vit_findings(*own)
    assert crop.startswith("INPUT.CROP.SIZE is 640: images do not fit into the square of MOCO.VIT")
    assert test.startswith("INPUT.MAX_SIZE_TEST is 640: images do not fit")


def test_no_packaged_run_has_a_finding():
    """Every task with every initialization; DensePose runs are another command's."""
    runs = [name for name in task_configs() if "densepose" not in name]
    assert len(runs) > 150
    for name in runs:
        # Weights of another origin say nothing of it.
        provenance = None if "msra" in name else PROVENANCE
        frozen_random = name.endswith("_frozen_random.yaml")  # see below
        written = load_config(name)
        for world_size in (1, 4, 8):
            found = findings_of(written, provenance=provenance, world_size=world_size)
            assert len(found) == frozen_random, (name, world_size)


# Of each finding: a run that has it and nothing else, and what is said.
WEIGHTS_SAY = "MODEL.WEIGHTS was made with"
STATED = {
    "first stages frozen": (
        ("MODEL.BACKBONE.FREEZE_AT", "2"),
        "MODEL.BACKBONE.FREEZE_AT is 2: it freezes the first stages and their BatchNorm, but the "
        "paper's protocol tunes them; set it to 0",
    ),
    "BatchNorm frozen": (
        ("MODEL.RESNETS.NORM", "FrozenBN"),
        "MODEL.RESNETS.NORM is FrozenBN: the paper's protocol tunes BatchNorm, and MODEL.FPN.NORM "
        "is SyncBN; set SyncBN, or set MODEL.FPN.NORM '' to freeze all BatchNorm on purpose",
    ),
    "FPN without norm": (
        ("MODEL.FPN.NORM", ""),
        "MODEL.FPN.NORM is empty: without it the run can diverge (facebookresearch/moco issue 23); "
        "set SyncBN",
    ),
    "no seed": (
        ("SEED", "-1"),
        "SEED is -1: runs could not be distinguished or repeated, and Detectron2's main gives all "
        "of them the same order of images; set SEED 1, and another number for each repetition",
    ),
    "length": (
        ("SOLVER.MAX_ITER", "80000"),
        "SOLVER.MAX_ITER is 80000: the task has 90000 at 16 images a step (MAX_ITER 90000 at 16); "
        "do not set it, as SOLVER.REFERENCE_WORLD_SIZE scales it, or set "
        "SOLVER.REFERENCE_WORLD_SIZE 0 and SOLVER.MAX_ITER 90000",
    ),
    "steps": (
        ("SOLVER.STEPS", "(60000,)"),
        "SOLVER.STEPS is (60000,): the task has (60000, 80000) at 16 images a step (STEPS (60000, "
        "80000) at 16); do not set it, as SOLVER.REFERENCE_WORLD_SIZE scales it, or set "
        "SOLVER.REFERENCE_WORLD_SIZE 0 and SOLVER.STEPS (60000, 80000)",
    ),
    "rate": (
        ("SOLVER.BASE_LR", "0.01"),
        "SOLVER.BASE_LR is 0.01: the task has 0.02 at 16 images a step (BASE_LR 0.02 at 16); do "
        "not set it, as SOLVER.REFERENCE_WORLD_SIZE scales it, or set SOLVER.REFERENCE_WORLD_SIZE "
        "0 and SOLVER.BASE_LR 0.02",
    ),
    "channel order": (
        ("INPUT.FORMAT", "BGR"),
        f"INPUT.FORMAT is BGR: {WEIGHTS_SAY} 'RGB'; set INPUT.FORMAT to that",
    ),
    "mean": (
        ("MODEL.PIXEL_MEAN", "[0.0, 0.0, 0.0]"),
        f"MODEL.PIXEL_MEAN is [0.0, 0.0, 0.0]: {WEIGHTS_SAY} [123.675, 116.28, 103.53]; set "
        "MODEL.PIXEL_MEAN to that",
    ),
    "deviation": (
        ("MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]"),
        f"MODEL.PIXEL_STD is [1.0, 1.0, 1.0]: {WEIGHTS_SAY} [58.395, 57.12, 57.375]; set "
        "MODEL.PIXEL_STD to that",
    ),
    "stride": (
        ("MODEL.RESNETS.STRIDE_IN_1X1", "True"),
        f"MODEL.RESNETS.STRIDE_IN_1X1 is True: {WEIGHTS_SAY} False; set "
        "MODEL.RESNETS.STRIDE_IN_1X1 to that",
    ),
    "depth": (
        ("MODEL.RESNETS.DEPTH", "101"),
        f"MODEL.RESNETS.DEPTH is 101: {WEIGHTS_SAY} 50; set MODEL.RESNETS.DEPTH to that",
    ),
    "width": (
        ("MODEL.RESNETS.WIDTH_PER_GROUP", "16"),
        f"MODEL.RESNETS.WIDTH_PER_GROUP is 16: {WEIGHTS_SAY} 64; set MODEL.RESNETS.WIDTH_PER_GROUP "
        "to that",
    ),
    "groups": (
        ("MODEL.RESNETS.NUM_GROUPS", "32"),
        f"MODEL.RESNETS.NUM_GROUPS is 32: {WEIGHTS_SAY} 1; set MODEL.RESNETS.NUM_GROUPS to that",
    ),
    "stem": (
        ("MODEL.RESNETS.STEM_OUT_CHANNELS", "128"),
        f"MODEL.RESNETS.STEM_OUT_CHANNELS is 128: {WEIGHTS_SAY} 64; set "
        "MODEL.RESNETS.STEM_OUT_CHANNELS to that",
    ),
}


@pytest.mark.parametrize(("overrides", "sentence"), STATED.values(), ids=STATED)
def test_each_finding_names_key_value_and_fix(overrides, sentence):
    assert findings("coco_FPN_1x_moco.yaml", *overrides) == [sentence]
    assert sentence.startswith(f"{overrides[0]} is {overrides[1] or 'empty'}: ")
    assert "set " in sentence


def test_the_width_of_a_slim_network_is_a_whole_number():
    slim = PROVENANCE | {"width_factor": 0.25}
    width, stem = findings("coco_FPN_1x_moco.yaml", provenance=slim)
    assert width.endswith("made with 16; set MODEL.RESNETS.WIDTH_PER_GROUP to that")
    assert stem.endswith("made with 16; set MODEL.RESNETS.STEM_OUT_CHANNELS to that")


def test_frozen_throughout_over_pretrained_statistics_is_an_initialization():
    frozen = ("MODEL.RESNETS.NORM", "FrozenBN")
    assert findings("coco_FPN_1x_moco.yaml", *frozen, "MODEL.FPN.NORM", "") == []
    (random,) = findings("voc_C4_random.yaml", *frozen)
    assert random.startswith("MODEL.RESNETS.NORM is FrozenBN: with random weights its statistics")
    assert random.endswith("set SyncBN")


def test_a_frozen_backbone_is_a_task_for_pretrained_weights():
    assert findings("coco_FPN_1x_frozen_moco.yaml") == []
    (random,) = findings("coco_FPN_1x_frozen_random.yaml")
    assert random.startswith("MODEL.BACKBONE.FREEZE_AT is 5: frozen random weights have BatchNorm")
    (tuned,) = findings("coco_FPN_1x_frozen_moco.yaml", "MODEL.BACKBONE.FREEZE_AT", "0")
    assert tuned == (
        "MODEL.BACKBONE.FREEZE_AT is 0: the task coco_FPN_1x_frozen has 5; do not set it"
    )


def test_a_norm_that_synchronizes_nothing():
    """Those of the paper's models are replaced on one process; this is one of another model."""
    norm = ("MODEL.RETINANET.NORM", "SyncBN")
    assert findings("voc_C4_moco.yaml", *norm, world_size=8) == []
    (found,) = findings("voc_C4_moco.yaml", *norm, world_size=1)
    assert found == (
        "MODEL.RETINANET.NORM is SyncBN: it synchronizes processes, but there is only one "
        "(facebookresearch/moco issue 112); set BN"
    )


@pytest.mark.parametrize("world_size", [1, 3, 8])
def test_a_schedule_is_compared_by_the_images(world_size):
    unscaled = ("SOLVER.REFERENCE_WORLD_SIZE", "0", "SOLVER.IMS_PER_BATCH", "48")
    found = findings("voc_C4_moco.yaml", *unscaled, world_size=world_size)
    assert found[0].startswith(
        "SOLVER.MAX_ITER is 24000: the task has 8000 at 48 images a step (MAX_ITER 24000 at 16); "
        "do not set it, as SOLVER.REFERENCE_WORLD_SIZE scales it, or set "
        "SOLVER.REFERENCE_WORLD_SIZE 0 and SOLVER.MAX_ITER 8000"
    )
    advice = [
        word for sentence in found for word in (sentence.partition(" 0 and ")[2]).split(" ", 1)
    ]
    assert advice == [
        *("SOLVER.MAX_ITER", "8000", "SOLVER.STEPS", "(6000, 7333)"),
        *("SOLVER.WARMUP_ITERS", "33", "SOLVER.BASE_LR", "0.06"),
    ]
    assert findings("voc_C4_moco.yaml", *unscaled, *advice, world_size=world_size) == []


@pytest.mark.parametrize(
    ("key", "value", "theirs"),
    [
        ("SOLVER.WEIGHT_DECAY", "0.0", "0.0001"),
        ("SOLVER.GAMMA", "0.5", "0.1"),
        ("SOLVER.WARMUP_FACTOR", "1.0", "0.001"),
        (
            "INPUT.MIN_SIZE_TRAIN",
            "(640,)",
            "(480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)",
        ),
        ("INPUT.MIN_SIZE_TEST", "600", "800"),
        ("INPUT.RANDOM_FLIP", "none", "horizontal"),
        ("MODEL.ROI_HEADS.NAME", "Res5ROIHeads", "Res5ROIHeadsExtraNorm"),
        ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "64", "512"),
        ("TEST.PRECISE_BN.ENABLED", "False", "True"),
        ("TEST.DETECTIONS_PER_IMAGE", "300", "100"),
        ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False", "True"),
    ],
)
@pytest.mark.parametrize("world_size", [1, 8])
def test_a_setting_that_is_not_the_tasks(key, value, theirs, world_size):
    (found,) = findings("voc_C4_moco.yaml", key, value, world_size=world_size)
    assert found == (
        f"{key} is {value}: the task has {theirs}; do not set it, or set MOCO.TASK to a name of "
        "your own"
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ("DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", "elsewhere"),
        ("SOLVER.AMP.ENABLED", "True", "SOLVER.CHECKPOINT_PERIOD", "7", "TEST.EVAL_PERIOD", "9"),
        ("SEED", "5", "VIS_PERIOD", "10", "MOCO.ACCUMULATION", "2", "MOCO.DRAW_SCORE", "0.1"),
    ],
)
def test_what_changes_no_result_may_be_set(overrides):
    assert findings("coco_FPN_1x_moco.yaml", *overrides) == []


@pytest.mark.parametrize("overrides", [("DATASETS.TRAIN", "('mine',)"), ("MOCO.TASK", "mine")])
def test_data_and_tasks_of_the_users_own_have_no_reference(overrides):
    assert findings("voc_C4_moco.yaml", "SOLVER.MAX_ITER", "50000", *overrides) == []


@pytest.mark.parametrize("world_size", [1, 8])
def test_a_shortened_run_does_not_end_in_its_warm_up(world_size):
    """Else all of it has a fraction of the learning rate. The numbers are those of the user."""
    own = ("DATASETS.TRAIN", "('mine',)", "SOLVER.MAX_ITER")
    steps, warm_up = findings("coco_FPN_1x_moco.yaml", *own, "3", world_size=world_size)
    assert steps == (
        "SOLVER.STEPS is (60000, 80000): SOLVER.MAX_ITER 3 ends the run before it would lower the "
        "learning rate at 60000; set SOLVER.STEPS to iterations below 3, or to () to keep the rate"
    )
    assert warm_up == (
        "SOLVER.WARMUP_ITERS is 1000: the run ends at iteration 3, before the warm-up has reached "
        "SOLVER.BASE_LR 0.02; set SOLVER.WARMUP_ITERS below 3"
    )
    fitting = ("3", "SOLVER.STEPS", "(2,)", "SOLVER.WARMUP_ITERS", "1")
    assert findings("coco_FPN_1x_moco.yaml", *own, *fitting, world_size=world_size) == []
    (lowered,) = findings("coco_FPN_1x_moco.yaml", *own, "2000", "SOLVER.STEPS", "(900,)")
    assert "the learning rate is lowered at iteration 900, before the warm-up" in lowered
    constant = ("SOLVER.WARMUP_FACTOR", "1.0", "SOLVER.STEPS", "()")
    assert findings("coco_FPN_1x_moco.yaml", *own, "3", *constant) == []
    cosine = ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR")
    assert findings("coco_FPN_1x_moco.yaml", *own, "2000", *cosine) == []


@pytest.mark.parametrize(("length", "world_size"), [("0", 8), ("1", 32)])
def test_a_run_without_a_step_is_refused(length, world_size):
    """32 processes take a quarter of the steps of 8."""
    cfg, written = as_run("voc_C4_moco.yaml", "SOLVER.MAX_ITER", length, world_size=world_size)
    (found,) = check_schedule(cfg, written)
    assert str(found) == (
        f"SOLVER.MAX_ITER is {length}: no step would be trained; raise it, or evaluate with "
        "--eval-only"
    )
    assert has_refusal([found])


GIB = 1 << 30


def test_too_little_memory_names_the_passes_that_would_do():
    cfg, _ = as_run("voc_C4_moco.yaml", world_size=8)
    assert check_memory(cfg, available=16 * GIB, world_size=8) == []
    (found,) = check_memory(cfg, available=8 * GIB, world_size=8)
    assert re.match(
        r"SOLVER.IMS_PER_BATCH is 16: 2 image\(s\) a pass need about 9\.\d GiB in a process \(the "
        r"tensors that backbone, .*\), and 8\.0 GiB are available; set MOCO.ACCUMULATION 2$",
        str(found),
    )
    cfg, _ = as_run("voc_C4_moco.yaml", "MOCO.ACCUMULATION", "2", world_size=8)
    assert check_memory(cfg, available=8 * GIB, world_size=8) == []
    (found,) = check_memory(cfg, available=2 * GIB, world_size=8)
    assert str(found).endswith(
        "set SOLVER.AMP.ENABLED True, or smaller images in INPUT.MIN_SIZE_TRAIN"
    )


def test_memory_that_nobody_knows_is_no_finding(caplog):
    cfg, _ = as_run("voc_C4_moco.yaml")
    assert check_memory(cfg, available=None, world_size=8) == []
    cfg.MODEL.BACKBONE.NAME = "unknown"
    with caplog.at_level(logging.INFO):
        assert check_memory(cfg, available=1, world_size=8) == []
    assert "the memory of this model cannot be estimated" in caplog.text


def test_weights_without_provenance_are_not_contradicted():
    assert findings("voc_C4_moco.yaml", "INPUT.FORMAT", "BGR", provenance=None) == []


def test_incomplete_backbone_is_a_finding_unless_random():
    missing = Coverage(318, ("backbone.res2.0.conv1.weight",))
    (found,) = check_coverage(load_config("voc_C4_moco.yaml"), missing)
    assert "only 317 of 318 backbone tensors arrived, first missing backbone.res2" in str(found)
    assert check_coverage(load_config("voc_C4_random.yaml"), missing) == []
    assert check_coverage(load_config("voc_C4_moco.yaml"), Coverage(318, ())) == []


def test_a_finished_detector_is_not_a_backbone():
    whole = Coverage(318, (), beyond=("proposal_generator.rpn_head.conv.weight", "roi_heads.x"))
    (found,) = check_coverage(load_config("voc_C4_moco.yaml"), whole)
    assert str(found).endswith(
        "it is a detector: 2 tensors outside the pretrained backbone arrived too, first "
        "proposal_generator.rpn_head.conv.weight, so the run would not measure the backbone; set "
        "MOCO.BACKBONE_ONLY True to begin them anew, which marks the run in tables"
    )
    cfg = load_config("voc_C4_moco.yaml", ["MOCO.BACKBONE_ONLY", "True"])
    assert check_coverage(cfg, whole) == []


def test_a_run_without_weights_does_not_have_the_name_of_weights():
    words = ["MODEL.WEIGHTS", "random://"]
    cfg = load_config("voc_C4_moco_v2_200ep.yaml", words)
    (found,) = check_name(cfg, "voc_C4_moco_v2_200ep.yaml")
    assert str(found) == (
        "MODEL.WEIGHTS is random://: tables would call this run moco_v2_200ep; run "
        "voc_C4_random.yaml, or set MODEL.WEIGHTS to pretrained weights"
    )
    for name in ("voc_C4_random.yaml", "voc_C4_mine.yaml", "mine.yaml"):
        assert check_name(cfg, name) == []
    pretrained = load_config("voc_C4_moco.yaml")
    assert check_name(pretrained, "voc_C4_moco.yaml") == []
