"""When a run saves. The clock is a number that the tests set."""

import pytest
from detectron2.engine import HookBase
from support.scripted_trainer import run_scripted

from moco_d2.engine import periodic_saves
from moco_d2.engine.periodic_saves import PeriodicSaves


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        seconds = 1000.0

        def monotonic(self):
            return self.seconds

    clock = Clock()
    monkeypatch.setattr(periodic_saves, "time", clock)
    return clock


class Saves(PeriodicSaves):
    """Writes a file per checkpoint."""

    def __init__(self, folder, period, minutes):
        super().__init__(period, minutes)
        self.folder = folder
        self.written = []

    def write(self):
        self.written.append(self.trainer.iter)
        path = self.folder / str(self.trainer.iter)
        path.touch()
        return path


class Duration(HookBase):
    """Each iteration takes a minute."""

    def __init__(self, clock):
        self.clock = clock

    def after_step(self):
        self.clock.seconds += 60


def run(saves, clock, iterations=12, *hooks):
    run_scripted([Duration(clock), *hooks, saves], lambda iteration: {}, iterations)
    return saves.written, sorted(int(path.name) for path in saves.folder.iterdir())


def test_what_processes_have_agreed_on_holds_for_one_checkpoint(tmp_path, clock):
    """Pretraining on GPUs tells it a step late, and then not in every step."""
    saves = Saves(tmp_path, 0, 2.5)
    saves.agreed = False

    class Agreed(HookBase):
        def after_step(self) -> None:
            if self.trainer.iter == 4:
                saves.agreed = True

    assert run(saves, clock, 12, Agreed())[0] == [4, 11]


@pytest.mark.parametrize(
    ("period", "minutes", "written", "left"),
    [
        (0, 0, [11], [11]),
        (5, 0, [4, 9, 11], [4, 9, 11]),
        (0, 2.5, [2, 5, 8, 11], [11]),  # a long period is bounded by the time
        (100, 2.5, [2, 5, 8, 11], [11]),
        (5, 2.5, [2, 4, 7, 9, 11], [4, 9, 11]),  # each checkpoint begins the time anew
        (2, 2.5, [1, 3, 5, 7, 9, 11], [1, 3, 5, 7, 9, 11]),
    ],
)
def test_a_checkpoint_comes_with_the_period_or_the_time(
    clock, tmp_path, period, minutes, written, left
):
    assert run(Saves(tmp_path, period, minutes), clock) == (written, left)


def test_all_processes_save_when_one_of_them_is_overdue(clock, tmp_path):
    saves = Saves(tmp_path, 0, 2.5)

    class Agreement(HookBase):
        def after_step(self):
            saves.agreed = self.trainer.iter in (1, 6)

    assert run(saves, clock, 12, Agreement()) == ([1, 6, 11], [11])


def test_an_iteration_is_saved_once(clock, tmp_path):
    saves = Saves(tmp_path, 5, 0)

    class Signal(HookBase):
        def after_step(self):
            if self.trainer.iter in (4, 7):
                saves.save_now()

    run_scripted([saves, Signal()], lambda iteration: {}, 9)
    assert saves.written == [4, 7, 8]


def test_the_time_before_training_does_not_count(clock, tmp_path):
    saves = Saves(tmp_path, 0, 2.5)
    clock.seconds += 600
    assert run(saves, clock, 3)[0] == [2]
