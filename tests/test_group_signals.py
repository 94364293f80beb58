"""SIGINT, SIGTERM and SIGHUP to the process group of a real command with data workers, as
timeout(1), systemd, scancel, a container's end, Ctrl-C and a closed terminal send it.
"""

import json
import signal
from pathlib import Path

import pytest
import torch
from support.group_signals import ROOT, Command
from support.paths import SUPPORT
from support.same_state import OF_CLOCK, differences
from support.toy_data import SLIM_DETECTOR, make_class_folders, make_voc

from moco_d2.engine.signals import STOP_SIGNALS

# Of a record and of a linear evaluation's result.
MEASURED = ("metrics", "history", "coverage", "schedule", "accuracy", "backbone_sha256", "settings")
SMALL_RUN = SUPPORT / "pretrain" / "small_run.py"
SMALL_LINEAR_EVAL = SUPPORT / "pretrain" / "small_linear_eval.py"


def words_of(settings: dict) -> list[str]:
    return [str(word) for pair in settings.items() for word in pair]


class Pretraining:
    script, final = SMALL_RUN, "checkpoint_final.pth.tar"

    def __init__(self, root):
        images = make_class_folders(root / "images", 12)
        self.settings = {
            "DATASETS.TRAIN": (str(images),),
            "MODEL.DEVICE": "cpu",
            "SEED": 1,
            "DATALOADER.NUM_WORKERS": 2,
            "SOLVER.IMS_PER_BATCH": 8,
            "SOLVER.CHECKPOINT_PERIOD": 0,
            "SOLVER.MAX_ITER": 60,
            "MOCO.REFERENCE_BATCH": 0,
            "MOCO.MONITOR.EXPECTED_LOSS": (),
            "MOCO.EPOCHS": 0,
            "MOCO.ENCODER.ARCH": "resnet18",
            "MOCO.ENCODER.DIM": 16,
            "MOCO.DICTIONARY.SIZE": 20,
            "MOCO.BN_SPLITS": 2,
            "MOCO.AUGMENTATION.SIZE": 32,
        }

    def words(self, out):
        settings = {**self.settings, "OUTPUT_DIR": out}
        return ["--config-file", "moco_v2_R50_200ep.yaml", "--resume", *words_of(settings)]

    def has_begun(self, out):
        return (out / "metrics.json").exists()  # written in step 20


class FineTuning(Pretraining):
    script, final = ROOT / "tools" / "train_net.py", "model_final.pth"

    def __init__(self, root):
        year = make_voc(root / "VOC2007", images=4)
        self.settings = {
            "DATASETS.TRAIN": (f"voc:{year}:trainval",),
            "DATASETS.TEST": (f"voc:{year}:test",),
            "DATALOADER.NUM_WORKERS": 2,
            "SOLVER.MAX_ITER": 5,
            "SOLVER.STEPS": "(2,4)",
            "SOLVER.CHECKPOINT_PERIOD": 1000,
            "TEST.EVAL_PERIOD": 2,
        }

    def words(self, out):
        settings = [*SLIM_DETECTOR, *words_of({**self.settings, "OUTPUT_DIR": out})]
        return ["--config-file", "voc_C4_random.yaml", "--resume", *settings]


class LinearEvaluation:
    script, final = SMALL_LINEAR_EVAL, "checkpoint.pth.tar"
    protocol = ("--epochs", 6)

    def __init__(self, root):
        make_class_folders(root / "train", 11)
        make_class_folders(root / "val", 5, seed=1)
        self.root = root

    def words(self, out):
        flags = ["--size", 32, "--batch-size", 8, "--workers", 2, "--device", "cpu", "--resume"]
        return [
            *("random", "--arch", "resnet18", "--data", self.root, "--output", out),
            *(*flags, *self.protocol),
        ]

    def has_begun(self, out):
        return (out / self.final).exists()


class FastLinearEvaluation(LinearEvaluation):
    final = "features.pth"
    protocol = ("--fast", "--epochs", 150)


KINDS = (Pretraining, FineTuning, LinearEvaluation, FastLinearEvaluation)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def undisturbed(request, tmp_path_factory):
    """A kind of run, and what it leaves if nothing disturbs it."""
    root = tmp_path_factory.mktemp("undisturbed")
    kind = request.param(root)
    code, said = Command(kind.script, kind.words(root / "out")).end()
    assert code == 0, said
    return kind, result(kind, root / "out")


def result(kind, out: Path) -> dict:
    """All that no clock has measured, of the last checkpoint and of the other files."""
    found = {"checkpoint": torch.load(out / kind.final, weights_only=True)}
    for name in ("record.json", "result.json"):
        if (out / name).exists():
            content = json.loads((out / name).read_text())
            found[name] = {key: content[key] for key in MEASURED if key in content}
    if not isinstance(kind, LinearEvaluation):  # it writes a line more where it is stopped
        lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
        found["metrics.json"] = sorted(lines, key=lambda line: line["iteration"])
    return found


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda n: signal.Signals(n).name)
def test_it_saves_ends_with_128_plus_n_and_is_continued(undisturbed, tmp_path, number):
    kind, whole = undisturbed
    out = tmp_path / "out"
    run = Command(kind.script, kind.words(out))
    run.wait_until(lambda: kind.has_begun(out))
    run.signal_group(number)
    code, said = run.end()
    assert code == 128 + number, said
    assert "Traceback" not in said and "--resume" in said.splitlines()[-1], said
    run.wait_until_nothing_is_left()
    if not isinstance(kind, FastLinearEvaluation):  # whose features are what is saved
        name = signal.Signals(number).name
        assert f"{name}: stopped and saved after iteration" in (out / "log.txt").read_text()
    assert not (out / "result.json").exists() and not (out / "record.json").exists()

    code, said = Command(kind.script, kind.words(out)).end()
    assert code == 0, said
    assert differences(result(kind, out), whole, but=OF_CLOCK) == []


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda n: signal.Signals(n).name)
def test_while_features_are_read_it_ends_at_once_in_one_line(tmp_path, number):
    kind = FastLinearEvaluation(tmp_path)
    log = tmp_path / "out" / "log.txt"
    run = Command(kind.script, [*kind.words(tmp_path / "out"), "--crops", 500])
    run.wait_until(lambda: log.exists() and "protocol linear-fast" in log.read_text())
    run.wait_until(lambda: len(run.members()) == 3, every=0.05)
    run.signal_group(number)
    code, said = run.end()
    assert code == 128 + number, said
    assert "Traceback" not in said and "--resume" in said.splitlines()[-1], said
    run.wait_until_nothing_is_left()


def test_a_hangup_that_nohup_ignores_stays_ignored(tmp_path):
    kind = LinearEvaluation(tmp_path)
    script = tmp_path / "nohup.py"
    script.write_text(
        "import runpy, signal, sys\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        f"sys.argv = [{str(kind.script)!r}, *sys.argv[1:]]\n"
        f"runpy.run_path({str(kind.script)!r}, run_name='__main__')\n"
    )
    out = tmp_path / "out"
    run = Command(script, [*kind.words(out), "--epochs", 10])
    run.wait_until(lambda: kind.has_begun(out))
    run.signal_group(signal.SIGHUP)
    code, said = run.end()
    assert code == 0, said


def test_a_second_run_in_the_folder_is_refused_and_touches_nothing(tmp_path):
    kind = LinearEvaluation(tmp_path)
    out = tmp_path / "out"
    run = Command(kind.script, [*kind.words(out), "--epochs", 10000])
    run.wait_until(lambda: kind.has_begun(out))
    other = Pretraining(tmp_path / "more")
    for command, words, setting in (
        (other.script, other.words(out), "OUTPUT_DIR"),
        (kind.script, kind.words(out), "--output"),
    ):
        code, said = Command(command, words).end()
        assert code == 2, said
        sentence = f"error: another run is at work in {setting} {out} (process {run.pid} on "
        assert said.startswith(sentence) and len(said.splitlines()) == 1
    run.signal_group(signal.SIGTERM)
    code, said = run.end()
    assert code == 143, said
    assert not (out / "config.yaml").exists()
