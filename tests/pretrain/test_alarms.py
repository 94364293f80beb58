"""Each alarm made to ring and kept silent, on Detectron2's own loop and storage."""

import pytest
from support.scripted_trainer import HEALTHY, run_scripted

from moco_d2.pretrain.alarms import (
    WINDOW,
    CollapseAlarm,
    DataTimeAdvice,
    ExpectedLoss,
    LeakAlarm,
)


@pytest.fixture
def alarms_of(caplog):
    """Function: hooks, what they see by iteration, length -> the warnings of the run."""

    def train(registered, script=lambda iteration: {}, iterations=2 * WINDOW, start=0):
        caplog.clear()
        run_scripted(registered, script, iterations, start=start)
        return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]

    return train


def all_alarms():
    return [
        CollapseAlarm(),
        LeakAlarm(),
        ExpectedLoss((6.5, 6.9)),
        DataTimeAdvice(num_workers=0, device_can_augment=True),
    ]


def test_a_healthy_run_is_silent(alarms_of):
    assert alarms_of(all_alarms()) == []


def test_scalars_that_are_missing_are_no_finding(alarms_of, monkeypatch):
    for name in ("feature_std", "pretext_accuracy", "data_time", "time"):
        monkeypatch.delitem(HEALTHY, name)
    assert alarms_of(all_alarms()) == []


def test_collapse_is_called_once_while_it_lasts_and_again_when_it_returns(alarms_of):
    def collapsed(iteration):
        return {"feature_std": 0.9 if 2 * WINDOW <= iteration < 3 * WINDOW else 0.02}

    warnings = alarms_of([CollapseAlarm()], collapsed, iterations=4 * WINDOW)
    assert len(warnings) == 2
    assert "feature_std is 0.020" in warnings[0] and "SOLVER.BASE_LR" in warnings[0]


def test_a_random_network_gets_time_to_spread(alarms_of):
    spreading = lambda iteration: {"feature_std": min(1.0, iteration / WINDOW)}  # noqa: E731
    assert alarms_of([CollapseAlarm()], spreading) == []


def leaking(knn):
    """The pretext task solved; kNN accuracy `knn` evaluated every quarter of a window."""
    quarter = WINDOW // 4

    def script(iteration):
        scalars = {"pretext_accuracy": 0.9995}
        if iteration % quarter == 0:
            scalars["knn_accuracy"] = knn[min(iteration // quarter, len(knn) - 1)]
        return scalars

    return script


def test_a_leak_is_called_when_knn_falls(alarms_of):
    warnings = alarms_of([LeakAlarm()], leaking([0.1, 0.28, 0.25, 0.23]))
    assert len(warnings) == 1
    for words in ("99.95%", "from 28.0% to 23.0%", "MOCO.BN_SPLITS 8", "ShuffleBN"):
        assert words in warnings[0]


@pytest.mark.parametrize("knn", [[0.1, 0.2, 0.3, 0.4], [0.1, 0.4, 0.42, 0.41]])
def test_no_leak_is_called_while_knn_holds(alarms_of, knn):
    assert alarms_of([LeakAlarm()], leaking(knn)) == []


def test_no_leak_is_called_on_a_hard_task_with_falling_knn(alarms_of):
    falling = lambda iteration: {"knn_accuracy": 0.4 - iteration / 10_000}  # noqa: E731
    assert alarms_of([LeakAlarm()], falling) == []


def test_without_knn_a_solved_task_asks_for_it(alarms_of):
    warnings = alarms_of([LeakAlarm()], lambda iteration: {"pretext_accuracy": 1.0})
    assert len(warnings) == 1 and "set MOCO.KNN.TRAIN" in warnings[0]


@pytest.mark.parametrize("loss", [5.0, 11.09])
def test_a_final_loss_outside_the_band_is_called(alarms_of, loss):
    warnings = alarms_of([ExpectedLoss((6.5, 6.9))], lambda iteration: {"total_loss": loss})
    assert len(warnings) == 1
    assert f"{loss:.2f}" in warnings[0] and "6.5 to 6.9" in warnings[0]


def test_only_the_end_of_the_run_is_compared_with_the_band(alarms_of):
    falling = lambda iteration: {"total_loss": 11.0 if iteration < WINDOW else 6.7}  # noqa: E731
    assert alarms_of([ExpectedLoss((6.5, 6.9))], falling) == []


@pytest.mark.parametrize(
    ("workers", "can_augment", "said", "unsaid"),
    [
        (0, True, ("DATALOADER.NUM_WORKERS (now 0", "MOCO.AUGMENTATION.WHERE device"), ()),
        (0, False, ("DATALOADER.NUM_WORKERS (now 0",), ("WHERE",)),
        (10_000, True, ("MOCO.AUGMENTATION.WHERE device",), ("NUM_WORKERS",)),
    ],
)
def test_waiting_for_data_names_the_key_that_helps(alarms_of, workers, can_augment, said, unsaid):
    advice = DataTimeAdvice(num_workers=workers, device_can_augment=can_augment)
    warnings = alarms_of([advice], lambda iteration: {"data_time": 0.1})
    assert len(warnings) == 1 and "50% of its 0.20 s" in warnings[0]
    assert all(words in warnings[0] for words in said)
    assert not any(words in warnings[0] for words in unsaid)


def test_alarms_count_from_where_a_run_resumes(alarms_of):
    collapsed = lambda iteration: {"feature_std": 0.0}  # noqa: E731
    assert alarms_of([CollapseAlarm()], collapsed, start=777, iterations=777 + WINDOW - 1) == []
    assert len(alarms_of([CollapseAlarm()], collapsed, start=777, iterations=777 + WINDOW)) == 1
