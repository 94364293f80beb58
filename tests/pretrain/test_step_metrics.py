"""Metrics that are read one step late, as on a GPU: what is written is that of reading at once."""

import json
import signal

import pytest
import torch
from detectron2.engine import HookBase
from support.same_state import OF_CLOCK, differences

from moco_d2.engine.launch import seed
from moco_d2.errors import UserError
from moco_d2.pretrain import pretrainer
from moco_d2.pretrain.pretrainer import Pretrainer

pytestmark = pytest.mark.usefixtures("small_network")


@pytest.fixture
def run(make_config, tmp_path, monkeypatch):
    """Function: name of the run, whether late, overrides -> its trainer, at the end."""
    monkeypatch.setattr(pretrainer, "LOG_PERIOD", 4)

    def build(name, *, late, resume=False, hooks=(), **overrides):
        cfg = make_config({"OUTPUT_DIR": tmp_path / name, **overrides})
        seed(cfg)
        trainer = Pretrainer(cfg)
        assert not trainer.step_metrics.late  # a CPU has computed them anyway
        trainer.step_metrics.late = late
        trainer.resume_or_start(resume=resume)
        trainer.register_hooks(hooks)
        trainer.train()
        return trainer

    return build


def left(folder):
    """What a run has left: the lines of metrics.json and the checkpoints."""
    lines = (folder / "metrics.json").read_text().splitlines()
    saved = {
        path.name: torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pth.tar"))
    }
    return [json.loads(line) for line in lines], saved


def test_each_value_belongs_to_its_iteration_and_no_step_is_missing(run, tmp_path):
    """With checkpoints after 3 and 6 steps, and lines after 4 and 6."""
    trainers = [run(name, late=name == "late") for name in ("late", "at once")]
    histories = [trainer.storage.history("total_loss").values() for trainer in trainers]
    assert histories[0] == histories[1]
    assert [iteration for _, iteration in histories[0]] == list(range(6))
    late, at_once = (left(tmp_path / name) for name in ("late", "at once"))
    assert [line["iteration"] for line in late[0]] == [3, 5]
    assert len(late[1]) == 2
    assert differences(late, at_once, but=OF_CLOCK) == []


def test_a_step_is_read_after_the_next_is_queued(run, monkeypatch):
    order = []
    exchange = pretrainer.exchange_step

    def observed(metrics, *others):
        step = sum(word == "queued" for word, _ in order)
        order.append(("queued", step))
        read = exchange(metrics, *others)
        return lambda: order.append(("read", step)) or read()

    monkeypatch.setattr(pretrainer, "exchange_step", observed)
    run("late", late=True, **{"SOLVER.CHECKPOINT_PERIOD": 0})
    words = "queued 0, queued 1, read 0, queued 2, read 1, queued 3, read 2, read 3, queued 4, "
    words += "queued 5, read 4, read 5"
    assert ", ".join(f"{word} {step}" for word, step in order) == words


@pytest.mark.parametrize("period", [1, 2, 100])
def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(run, tmp_path, period):
    ends = []
    for name in ("late", "at once"):
        with pytest.raises(UserError, match=r"the loss is nan at iteration \d: lower") as caught:
            overrides = {"SOLVER.BASE_LR": 1e30, "SOLVER.CHECKPOINT_PERIOD": period}
            run(name, late=name == "late", **overrides)
        saved = sorted(path.name for path in (tmp_path / name).glob("*.pth.tar"))
        ends.append((str(caught.value), saved))
    assert ends[0] == ends[1]


class Failing(HookBase):
    """An error before the step in which the metrics of the step before would be read."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            raise UserError("too many images")


def test_a_run_that_fails_has_the_last_step_before(run, tmp_path):
    for name in ("late", "at once"):
        with pytest.raises(UserError, match="too many images"):
            run(name, late=name == "late", hooks=[Failing(2)])
    late, at_once = (left(tmp_path / name) for name in ("late", "at once"))
    assert at_once[0][-1]["iteration"] == 1
    assert differences(late, at_once, but=OF_CLOCK) == []


def test_an_error_does_not_hide_a_loss_that_is_not_finite(run):
    with pytest.raises(UserError, match="the loss is nan at iteration 1: lower"):
        run("late", late=True, hooks=[Failing(2)], **{"SOLVER.BASE_LR": 1e30})


def test_metrics_are_read_before_an_evaluation(run, tmp_path):
    """Where kNN would follow the step, the loss of that step ends the run."""
    with pytest.raises(UserError, match="the loss is nan at iteration 1: lower"):
        run("late", late=True, **{"SOLVER.BASE_LR": 1e30, "MOCO.KNN.PERIOD": 2})
    assert json.loads((tmp_path / "late/metrics.json").read_text())["iteration"] == 0


class Interrupted(HookBase):
    """SIGINT in the middle of an iteration."""

    def before_step(self) -> None:
        if self.trainer.iter == 4:
            signal.raise_signal(signal.SIGINT)


def test_a_stopped_run_has_all_its_steps_and_is_continued(run, tmp_path):
    straight = run("straight", late=False)
    with pytest.raises(KeyboardInterrupt):
        run("late", late=True, hooks=[Interrupted()])
    _, saved = left(tmp_path / "late")
    metrics = saved["checkpoint_0000005.pth.tar"]["moco_d2"]["metrics"]
    losses = straight.storage.history("total_loss").values()
    assert metrics["histories"]["total_loss"] == [list(one) for one in losses[:5]]
    run("late", late=True, resume=True)
    ours, theirs = (left(tmp_path / name) for name in ("late", "straight"))
    assert differences(ours[0], theirs[0], but=OF_CLOCK) == []
    final = [one[1]["checkpoint_final.pth.tar"] for one in (ours, theirs)]
    assert differences(*final, but=OF_CLOCK) == []
