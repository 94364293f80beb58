import pytest

from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.transfer.hardware_scaling import describe, scale_to_hardware


@pytest.mark.parametrize(
    ("processes", "batch", "lr", "steps", "warmup"),
    [
        (8, 16, 0.02, 24000, 100),
        (4, 8, 0.01, 48000, 200),
        (1, 2, 0.0025, 192000, 800),
        (16, 32, 0.04, 12000, 50),
    ],
)
def test_reference_schedule_follows_the_processes(processes, batch, lr, steps, warmup):
    cfg = load_config("voc_C4_moco.yaml")
    scaled, effective = scale_to_hardware(cfg, processes)
    assert scaled.SOLVER.IMS_PER_BATCH == effective["ims_per_batch"] == batch
    assert pytest.approx(lr) == scaled.SOLVER.BASE_LR
    assert scaled.SOLVER.MAX_ITER == effective["max_iter"] == steps
    assert warmup == scaled.SOLVER.WARMUP_ITERS
    assert scaled.SOLVER.MAX_ITER * batch == 24000 * 16  # the same number of images
    assert scaled.TEST.EVAL_PERIOD == effective["eval_period"] == steps / 6
    assert cfg.SOLVER.MAX_ITER == 24000  # the given config is untouched


@pytest.mark.parametrize(
    ("processes", "device", "c4", "fpn"),
    [
        (1, "cuda", "BN", "BN"),
        (1, "cpu", "BN", "BN"),
        (8, "cuda", "naiveSyncBN", "SyncBN"),
        (2, "cpu", "naiveSyncBN", "naiveSyncBN"),
    ],
)
def test_norm_follows_processes_and_device(processes, device, c4, fpn):
    norms = []
    for name in ("voc_C4_moco.yaml", "coco_FPN_1x_moco.yaml"):
        cfg = load_config(name, ["MODEL.DEVICE", device])
        norms.append(scale_to_hardware(cfg, processes)[0].MODEL.RESNETS.NORM)
    assert norms == [c4, fpn]
    assert fpn == scale_to_hardware(cfg, processes)[0].MODEL.FPN.NORM


def test_a_vit_has_no_batchnorm_and_its_rate_falls_along_a_cosine():
    cfg = load_config("coco_vitdet_Ti_25ep_random.yaml", ["MODEL.DEVICE", "cpu"])
    scaled, effective = scale_to_hardware(cfg, 1)
    assert (effective["norm"], effective["batchnorm_images"]) == ("LN", None)
    assert scaled.MODEL.FPN.NORM == scaled.MODEL.ROI_BOX_HEAD.NORM == "LN"
    text = "\n".join(describe(effective))
    assert "the learning rate falls to 0 along half a period of a cosine" in text
    assert "LayerNorm depends on no other image" in text
    assert "frozen" not in text


def test_heads_follow_the_processes_too():
    cfg = load_config("coco_FPN4conv1fc_1x_moco.yaml", ["MODEL.DEVICE", "cuda"])
    cfg.MODEL.SEM_SEG_HEAD.NORM = "SyncBN"
    nodes = ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD", "SEM_SEG_HEAD")
    for processes, norm in ((1, "BN"), (8, "SyncBN")):
        scaled, _ = scale_to_hardware(cfg, processes)
        assert {scaled.MODEL[name].NORM for name in nodes} == {norm}


def test_periods_and_steps_follow():
    periods = ["TEST.EVAL_PERIOD", "2000", "SOLVER.CHECKPOINT_PERIOD", "1000"]
    scaled, effective = scale_to_hardware(load_config("voc_C4_moco.yaml", periods), 2)
    assert effective["eval_period"] == scaled.TEST.EVAL_PERIOD == 8000
    assert effective["checkpoint_period"] == scaled.SOLVER.CHECKPOINT_PERIOD == 4000
    assert effective["steps"] == list(scaled.SOLVER.STEPS) == [72000, 88000]


def test_what_changes_is_said():
    _, effective = scale_to_hardware(load_config("voc_C4_moco.yaml"), 1)
    assert "16 -> 2 images a step" in effective["notes"][0]
    assert "warm-up 100 -> 800" in effective["notes"][0]
    assert effective["notes"][1] == "norm naiveSyncBN -> BN on 1 process(es) (MODEL.RESNETS)"
    assert effective["notes"][2] == "BatchNorm statistics over 2 images (the paper: 16)"
    assert describe(effective)[0] == (
        "192000 steps of 2 images on 1 process(es), lr 0.0025 after a warm-up of 800, lowered at "
        "144000, 176000; evaluated every 32000 and at the end, saved every 40000"
    )
    assert describe(effective)[1:] == effective["notes"]


def test_accumulation_keeps_the_batch_but_not_batchnorms():
    overrides = ["SOLVER.REFERENCE_WORLD_SIZE", "0", "MOCO.ACCUMULATION", "4"]
    cfg = load_config("voc_C4_moco.yaml", [*overrides, "MODEL.DEVICE", "cuda"])
    for processes, images in ((1, 4), (2, 4)):  # synchronized over two
        scaled, effective = scale_to_hardware(cfg, processes)
        assert effective["ims_per_batch"] == scaled.SOLVER.IMS_PER_BATCH == 16
        assert effective["accumulation"] == 4
        assert effective["batchnorm_images"] == images
        assert any("4 passes a step of 4 images" in note for note in effective["notes"])


def test_frozen_batchnorm_has_no_batch():
    _, effective = scale_to_hardware(load_config("lvis_v0.5_FPN_1x_supervised_frozen_bn.yaml"), 8)
    assert effective["batchnorm_images"] is None
    assert effective["notes"] == ["BatchNorm is frozen (the paper tunes it)"]


@pytest.mark.parametrize(
    ("overrides", "processes", "sentence"),
    [
        (
            ("SOLVER.IMS_PER_BATCH", "12"),
            4,
            "IMS_PER_BATCH 12 is the batch of the 8 processes of .*WORLD_SIZE 0 for 12 images",
        ),
        (
            ("MOCO.ACCUMULATION", "3"),
            8,
            r"16 images a step .* 8 process\(es\) and MOCO.ACCUMULATION 3",
        ),
        (
            ("MOCO.ACCUMULATION", "0"),
            8,
            "MOCO.ACCUMULATION must be an integer of at least 1, got 0",
        ),
        (("SOLVER.REFERENCE_WORLD_SIZE", "0"), 3, r"16 images a step .* 3 process\(es\)"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(overrides, processes, sentence):
    with pytest.raises(UserError, match=sentence):
        scale_to_hardware(load_config("voc_C4_moco.yaml", overrides), processes)


def test_reference_world_size_0_keeps_the_batch():
    cfg = load_config("voc_C4_moco.yaml", ["SOLVER.REFERENCE_WORLD_SIZE", "0"])
    assert scale_to_hardware(cfg, 1)[0].SOLVER.IMS_PER_BATCH == 16


@pytest.mark.parametrize("overrides", [(), ("SOLVER.REFERENCE_WORLD_SIZE", "0")])
def test_an_evaluation_needs_no_batch_that_divides(overrides):
    words = ["SOLVER.IMS_PER_BATCH", "2", "MODEL.DEVICE", "cpu", *overrides]
    cfg = load_config("voc_C4_moco.yaml", words)
    scaled, effective = scale_to_hardware(cfg, 3, trains=False)
    assert scaled.SOLVER.MAX_ITER == cfg.SOLVER.MAX_ITER == effective["max_iter"]
    assert scaled.MODEL.RESNETS.NORM == "naiveSyncBN"
    with pytest.raises(UserError, match="2"):
        scale_to_hardware(cfg, 3)
