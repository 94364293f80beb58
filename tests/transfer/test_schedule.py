import pytest

from moco_d2.config import load_config
from moco_d2.transfer.schedule import scale_to_hardware


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


def test_what_changes_is_said():
    _, effective = scale_to_hardware(load_config("voc_C4_moco.yaml"), 1)
    assert "16 -> 2 images a step" in effective["notes"][0]
    assert effective["notes"][1] == "norm naiveSyncBN -> BN on 1 process(es)"
    assert effective["notes"][2] == "BatchNorm statistics over 2 images (the paper: 16)"


def test_reference_world_size_0_keeps_the_batch():
    cfg = load_config("voc_C4_moco.yaml", ["SOLVER.REFERENCE_WORLD_SIZE", "0"])
    assert scale_to_hardware(cfg, 1)[0].SOLVER.IMS_PER_BATCH == 16
