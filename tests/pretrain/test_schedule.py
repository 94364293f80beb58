import math

import pytest

from moco_d2.errors import UserError
from moco_d2.pretrain.schedule import build_schedule, training_length


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
            "MOCO.LR_STEPS": (1, 2, 3),
        }
    )
    assert factors(cfg, 10) == pytest.approx([1.0] * 10 + [0.1] * 10 + [0.01] * 5)


def test_a_run_shorter_than_its_first_step_does_not_decay(make_config):
    cfg = make_config({"MOCO.EPOCHS": 2}, config="moco_v1_R50_200ep.yaml")
    assert factors(cfg, 3) == [1.0] * 6


def test_unknown_schedule_is_refused(make_config):
    with pytest.raises(UserError, match=r"MOCO\.LR_SCHEDULE 'linear' is neither step nor cosine"):
        build_schedule(make_config({"MOCO.LR_SCHEDULE": "linear"}), 3)


@pytest.mark.parametrize("steps", [(2, 1), (0, 1), (1, 1)])
def test_steps_out_of_order_are_refused(make_config, steps):
    cfg = make_config({"MOCO.LR_STEPS": steps, "MOCO.EPOCHS": 4, "MOCO.LR_SCHEDULE": "step"})
    with pytest.raises(UserError, match=r"MOCO\.LR_STEPS .* ascending"):
        build_schedule(cfg, 3)


def test_a_run_without_an_iteration_is_refused(make_config):
    cfg = make_config({"MOCO.EPOCHS": 0, "SOLVER.MAX_ITER": 0})
    with pytest.raises(UserError, match=r"MOCO\.EPOCHS.*SOLVER\.MAX_ITER"):
        training_length(cfg, 3)
