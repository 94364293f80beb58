import json
import math

import pytest

from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.pretrain.key_momentum import key_momentum
from moco_d2.pretrain.schedule import (
    build_schedule,
    scale_recipe,
    training_length,
    warn_of_unused_steps,
)

IMAGENET = 1_281_167  # images of its training set


def factors(cfg, per_epoch: int) -> list[float]:
    length = training_length(cfg, per_epoch)
    schedule = build_schedule(cfg, per_epoch)
    return [schedule(i / length) for i in range(length)]


@pytest.mark.parametrize(("epochs", "per_epoch"), [(200, 3), (7, 11), (30, 49)])
def test_cosine_is_the_official_formula_once_an_epoch(make_config, epochs, per_epoch):
    cfg = make_config({"MOCO.EPOCHS": epochs, "MOCO.LR_SCHEDULE": "cosine"})
    wanted = [
        0.5 * (1 + math.cos(math.pi * epoch / epochs))
        for epoch in range(epochs)
        for _ in range(per_epoch)
    ]
    assert factors(cfg, per_epoch) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("per_epoch", [1, 3, 13])
def test_steps_decay_tenfold_at_epochs_120_and_160(make_config, per_epoch):
    cfg = make_config({"MOCO.EPOCHS": 200}, config="moco_v1_R50_200ep.yaml")
    wanted = [1.0] * 120 * per_epoch + [0.1] * 40 * per_epoch + [0.01] * 40 * per_epoch
    assert factors(cfg, per_epoch) == pytest.approx(wanted)


@pytest.mark.parametrize("kind", ["step", "cosine"])
def test_epoch_boundaries_hold_at_the_size_of_imagenet(make_config, kind):
    cfg = make_config({"MOCO.EPOCHS": 800, "MOCO.LR_SCHEDULE": kind})
    schedule, per_epoch = build_schedule(cfg, 5004), 5004
    length = training_length(cfg, per_epoch)
    assert length == 800 * 5004
    for epoch in range(800):
        if kind == "cosine":
            wanted = 0.5 * (1 + math.cos(math.pi * epoch / 800))
        else:
            wanted = 0.1 ** ((epoch >= 120) + (epoch >= 160))
        for i in (epoch * per_epoch, (epoch + 1) * per_epoch - 1):
            assert schedule(i / length) == pytest.approx(wanted, abs=1e-12)


def test_a_length_in_iterations_follows_the_cosine_at_every_one(make_config):
    cfg = make_config({"MOCO.EPOCHS": 0, "SOLVER.MAX_ITER": 25, "MOCO.LR_SCHEDULE": "cosine"})
    wanted = [0.5 * (1 + math.cos(math.pi * i / 25)) for i in range(25)]
    assert factors(cfg, 10) == pytest.approx(wanted, abs=1e-12)


def test_a_length_in_iterations_still_steps_at_epochs(make_config):
    cfg = make_config(
        {
            "MOCO.EPOCHS": 0,
            "SOLVER.MAX_ITER": 25,  # two epochs and a half
            "MOCO.LR_SCHEDULE": "step",
            "MOCO.LR_STEPS": (1, 2),
        }
    )
    assert factors(cfg, 10) == pytest.approx([1.0] * 10 + [0.1] * 10 + [0.01] * 5)


@pytest.mark.parametrize("epochs", [2, 120, 130, 160])
def test_a_run_that_ends_before_its_last_step_is_refused(make_config, epochs):
    """Else it would keep a rate that the recipe lowers."""
    cfg = make_config({"MOCO.EPOCHS": epochs}, config="moco_v1_R50_200ep.yaml")
    message = rf"LR_STEPS \(120, 160\) is not over .* after {epochs} epochs.* below {epochs}, or to"
    with pytest.raises(UserError, match=message):
        factors(cfg, 3)
    cfg.MOCO.LR_STEPS = ()
    assert factors(cfg, 3) == [1.0] * 3 * epochs


def test_a_run_without_an_iteration_is_refused(make_config):
    cfg = make_config({"MOCO.EPOCHS": 0, "SOLVER.MAX_ITER": 0})
    with pytest.raises(UserError, match=r"MOCO\.EPOCHS.*SOLVER\.MAX_ITER"):
        training_length(cfg, 3)


def test_a_number_of_steps_beside_epochs_is_said_to_be_unused(caplog):
    cfg = load_config("moco_v2_R50_200ep.yaml", ["MOCO.EPOCHS", "2"])
    warn_of_unused_steps(cfg)
    assert (training_length(cfg, 10), caplog.messages) == (20, [])
    cfg.SOLVER.MAX_ITER = 8
    warn_of_unused_steps(cfg)
    assert training_length(cfg, 10) == 20
    assert "SOLVER.MAX_ITER 8 is not used, because MOCO.EPOCHS is 2" in caplog.text


@pytest.mark.parametrize("epochs", [0, 5])
def test_step_every_decays_at_every_so_many_iterations(make_config, epochs):
    cfg = make_config(
        {
            "MOCO.EPOCHS": epochs,
            "SOLVER.MAX_ITER": 50,
            "SOLVER.GAMMA": 0.9,
            "MOCO.LR_SCHEDULE": "step_every",
            "MOCO.LR_STEP_EVERY": 7,
        }
    )
    assert factors(cfg, 10) == pytest.approx([0.9 ** (i // 7) for i in range(50)])


def test_step_every_needs_its_length(make_config):
    with pytest.raises(UserError, match=r"MOCO\.LR_STEP_EVERY"):
        build_schedule(make_config({"MOCO.LR_SCHEDULE": "step_every"}), 3)


def test_warm_up_rises_to_the_schedule_and_leaves_it_alone_afterwards(make_config):
    plain = {"MOCO.EPOCHS": 10, "MOCO.LR_SCHEDULE": "cosine", "SOLVER.WARMUP_FACTOR": 0.01}
    without = factors(make_config(plain), 20)
    found = factors(make_config({**plain, "MOCO.WARMUP_EPOCHS": 1.5}), 20)
    reached = without[30]
    assert found[:30] == pytest.approx([0.01 + (reached - 0.01) * i / 30 for i in range(30)])
    assert found[30:] == pytest.approx(without[30:])


@pytest.mark.parametrize("epochs", [10, 0])
def test_the_cosine_of_v3_begins_after_the_warm_up(make_config, epochs):
    """adjust_learning_rate of facebookresearch/moco-v3, at epoch i / 20."""
    cfg = make_config(
        {"MOCO.EPOCHS": epochs, "SOLVER.MAX_ITER": 200, "MOCO.WARMUP_EPOCHS": 4},
        config="moco_v3_R50_100ep.yaml",
    )
    wanted = [
        epoch / 4 if epoch < 4 else 0.5 * (1 + math.cos(math.pi * (epoch - 4) / (10 - 4)))
        for epoch in (i / 20 for i in range(200))
    ]
    assert factors(cfg, 20) == pytest.approx(wanted)
    with pytest.raises(UserError, match=r"MOCO\.WARMUP_EPOCHS 10 covers the whole training"):
        build_schedule(make_config({"MOCO.EPOCHS": 2}, config="moco_v3_R50_100ep.yaml"), 3)


def test_the_key_momentum_rises_to_1_along_a_cosine(make_config):
    """adjust_moco_momentum of facebookresearch/moco-v3."""
    cfg = make_config(config="moco_v3_R50_100ep.yaml")
    assert key_momentum(cfg, 0.0) == pytest.approx(0.99)
    assert key_momentum(cfg, 0.25) == pytest.approx(1 - 0.01 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert key_momentum(cfg, 1.0) == 1
    assert key_momentum(make_config(), 0.7) == 0.999


def test_a_warm_up_as_long_as_training_is_refused(make_config):
    cfg = make_config({"MOCO.EPOCHS": 2, "MOCO.WARMUP_EPOCHS": 2.0})
    with pytest.raises(UserError, match=r"MOCO\.WARMUP_EPOCHS 2 covers the whole training"):
        build_schedule(cfg, 3)


@pytest.fixture
def recipe():
    """Function: overrides, packaged config -> the recipe, not shrunk."""

    def build(overrides=None, *, config="moco_v2_R50_200ep.yaml"):
        return load_config(config, [str(w) for pair in (overrides or {}).items() for w in pair])

    return build


@pytest.mark.parametrize(
    ("gpus", "batch", "lr", "period"),
    [(8, 256, 0.03, 5004), (4, 128, 0.015, 10008), (2, 64, 0.0075, 20016), (16, 512, 0.06, 2502)],
)
def test_the_rate_follows_the_batch_as_the_authors_advise(recipe, gpus, batch, lr, period):
    """Official README: 4 GPUs, batch 128, lr 0.015; authors' answer for 2 GPUs: 64, 0.0075."""
    cfg = recipe({"SOLVER.IMS_PER_BATCH": batch})
    scaled, description = scale_recipe(cfg, world_size=gpus, num_images=IMAGENET)
    assert lr == scaled.SOLVER.BASE_LR
    assert period == scaled.SOLVER.CHECKPOINT_PERIOD
    assert (scaled.MOCO.DICTIONARY.SIZE, scaled.MOCO.BN_SPLITS) == (65536, 1)
    assert cfg == recipe({"SOLVER.IMS_PER_BATCH": batch})  # the given one is left alone
    said = " ".join(description["lines"])
    assert f"{batch} images per step, 32 on each of {gpus} process(es)" in said
    assert f"{lr:g}" in said


def test_iterations_stand_for_the_same_number_of_images(recipe):
    cfg = recipe(
        {"SOLVER.IMS_PER_BATCH": 256, "MOCO.KNN.PERIOD": 1000}, config="moco_v1_R50_IG1B.yaml"
    )
    scaled, description = scale_recipe(cfg, world_size=8, num_images=940_000_000)
    assert pytest.approx(0.03) == scaled.SOLVER.BASE_LR
    assert scaled.SOLVER.MAX_ITER == 5_000_000
    assert scaled.MOCO.LR_STEP_EVERY == 250_000
    assert scaled.MOCO.KNN.PERIOD == 4000
    assert "SOLVER.MAX_ITER 1250000 -> 5000000" in " ".join(description["lines"])
    json.dumps(description, allow_nan=False)


def test_a_reference_of_0_leaves_rate_and_iterations_alone(recipe):
    given = {
        "MOCO.REFERENCE_BATCH": 0,
        "SOLVER.IMS_PER_BATCH": 64,
        "SOLVER.BASE_LR": 0.5,
        "MOCO.EPOCHS": 0,
        "SOLVER.MAX_ITER": 20,
    }
    scaled, description = scale_recipe(recipe(given), world_size=1, num_images=50_000)
    assert (scaled.SOLVER.BASE_LR, scaled.SOLVER.MAX_ITER) == (0.5, 20)
    assert scaled.SOLVER.CHECKPOINT_PERIOD == 5004
    assert description["base_lr"] == 0.5 and description["max_iter"] == 20


@pytest.mark.parametrize("images", [IMAGENET, 3000])
def test_scaling_twice_is_scaling_once(recipe, images):
    cfg = recipe({"SOLVER.IMS_PER_BATCH": 64, "MOCO.KNN.EPOCHS": 2})
    once, _ = scale_recipe(cfg, world_size=1, num_images=images)
    twice, _ = scale_recipe(once, world_size=1, num_images=images)
    assert once == twice


def test_the_result_is_frozen_as_the_given_one_is(recipe):
    cfg = recipe()
    assert not scale_recipe(cfg, world_size=1, num_images=9)[0].is_frozen()
    cfg.freeze()
    assert scale_recipe(cfg, world_size=1, num_images=9)[0].is_frozen()


@pytest.mark.parametrize(
    ("images", "batch", "size"),
    [
        (IMAGENET, 256, 65536),
        (800_000, 256, 65536),
        (50_000, 512, 4096),  # the authors' CIFAR demo
        (50_000, 256, 4096),
        (118_287, 256, 9472),  # COCO: 37 batches
        (1000, 64, 64),  # less than a batch's worth, yet one batch
    ],
)
def test_the_queue_stays_well_below_the_dataset(recipe, images, batch, size):
    cfg = recipe({"SOLVER.IMS_PER_BATCH": batch})
    scaled, description = scale_recipe(cfg, world_size=1, num_images=images)
    assert scaled.MOCO.DICTIONARY.SIZE == description["dictionary_size"] == size
    assert any(f"MOCO.DICTIONARY.SIZE 0 -> {size} keys" in line for line in description["lines"])
    # The published final loss is that of 65536 keys.
    assert bool(scaled.MOCO.MONITOR.EXPECTED_LOSS) == (size == 65536)


def test_a_size_that_is_given_is_kept(recipe):
    scaled, _ = scale_recipe(
        recipe({"MOCO.DICTIONARY.SIZE": 70_000}), world_size=1, num_images=50_000
    )
    assert scaled.MOCO.DICTIONARY.SIZE == 70_000
    assert tuple(scaled.MOCO.MONITOR.EXPECTED_LOSS) == (6.5, 6.9)


@pytest.mark.parametrize(
    ("world_size", "batch", "splits"),
    [
        (1, 256, 8),  # the paper's 8 GPUs
        (1, 512, 16),
        (1, 64, 2),
        (1, 32, 2),  # one group of 32 would leak
        (1, 90, 3),
        (1, 8, 2),
        (1, 7, 1),
        (2, 256, 1),
    ],
)
def test_one_process_splits_batchnorm_as_the_paper_has_it(recipe, world_size, batch, splits):
    scaled, _ = scale_recipe(
        recipe({"SOLVER.IMS_PER_BATCH": batch}), world_size=world_size, num_images=IMAGENET
    )
    assert splits == scaled.MOCO.BN_SPLITS


def test_supervised_batchnorm_is_not_split(recipe):
    scaled, _ = scale_recipe(
        recipe(config="supervised_R50_200ep.yaml"), world_size=1, num_images=IMAGENET
    )
    assert scaled.MOCO.BN_SPLITS == 1


def test_knn_epochs_become_iterations(recipe):
    cfg = recipe({"MOCO.KNN.EPOCHS": 3, "MOCO.KNN.PERIOD": 5, "SOLVER.IMS_PER_BATCH": 100})
    scaled, description = scale_recipe(cfg, world_size=1, num_images=1050)
    assert scaled.MOCO.KNN.PERIOD == description["knn_period"] == 30


@pytest.mark.parametrize(
    ("batch", "warmup", "advised"), [(256, 0.0, False), (1024, 0.0, True), (1024, 5.0, False)]
)
def test_a_warm_up_is_advised_for_large_batches(recipe, batch, warmup, advised):
    cfg = recipe({"SOLVER.IMS_PER_BATCH": batch, "MOCO.WARMUP_EPOCHS": warmup})
    _, description = scale_recipe(cfg, world_size=8, num_images=IMAGENET)
    assert ("MOCO.WARMUP_EPOCHS" in " ".join(description["lines"])) == advised


def test_no_warm_up_is_advised_at_the_recipes_own_batch(recipe):
    cfg = recipe(config="moco_v1_R50_IG1B.yaml")
    _, description = scale_recipe(cfg, world_size=64, num_images=940_000_000)
    assert "MOCO.WARMUP_EPOCHS" not in " ".join(description["lines"])
