"""A checkpoint that holds what it must not is refused in one sentence, before a file is written."""

import math

import numpy as np
import pytest
import torch
from support.hostile_states import drop, not_refused, put

from moco_d2.cli import argument_parser
from moco_d2.engine.generator_checks import check_rng_state
from moco_d2.engine.process_state import rng_state, set_rng_state
from moco_d2.engine.resume_checks import UnusableError, continuing, shown
from moco_d2.errors import UserError
from moco_d2.pretrain.main import pretrain
from moco_d2.pretrain.pretrainer import Pretrainer

NAME = "checkpoint_0000003.pth.tar"
NAN = float("nan")


def ours(*path, value):
    return put("moco_d2", *path, value=value)


def rng(*path, value):
    return ours("processes", 0, "rng", *path, value=value)


def momentum(value):
    """Function that gives every parameter this momentum."""

    def change(content):
        for state in content["optimizer"]["state"].values():
            state["momentum_buffer"] = value

    return change


def fill(name, number):
    """Function that puts a number into a tensor of the state_dict."""
    return lambda content: content["state_dict"][f"module.{name}"].view(-1)[:1].fill_(number)


def official_epoch(value):
    def change(content):
        del content["moco_d2"]
        content["epoch"] = value

    return change


HOSTILE = {
    "ours is a list": (put("moco_d2", value=[1]), "moco_d2 is a list, not a dict"),
    "no config": (drop("moco_d2", "config"), "no moco_d2.config"),
    "config is text": (ours("config", value="x"), "moco_d2.config is 'x', not of type dict"),
    "no processes": (drop("moco_d2", "processes"), "no moco_d2.processes"),
    "processes is a number": (ours("processes", value=5), "moco_d2.processes is 5"),
    "processes is empty": (ours("processes", value=[]), "moco_d2.processes is empty"),
    "a process is text": (ours("processes", 0, value="x"), "processes is 'x', not a dict"),
    "no generators": (drop("moco_d2", "processes", 0, "rng"), "no processes.rng"),
    "other buffers": (
        ours("processes", 0, "buffers", value={"x": torch.ones(1)}),
        r"processes\[0\].buffers has no",
    ),
    "iteration is text": (ours("iteration", value="x"), "iteration is 'x'"),
    "iteration is negative": (ours("iteration", value=-7), "iteration is -7, not a whole number"),
    "iteration is a float": (ours("iteration", value=2.5), "iteration is 2.5"),
    "iteration is a truth": (ours("iteration", value=True), "iteration is True"),
    "iteration is absurd": (ours("iteration", value=10**30), "iteration is 1000000000"),
    "data is text": (ours("data", value="x"), "moco_d2.data is 'x', not a dict"),
    "data has no print": (ours("data", value={"classes": []}), "no moco_d2.data.fingerprint"),
    "classes are numbers": (ours("data", "classes", value=[1]), "data.classes are not text"),
    "no iteration": (drop("moco_d2", "iteration"), "no moco_d2.iteration"),
    "scaler is text": (ours("grad_scaler", value="x"), "grad_scaler is 'x'"),
    "scaler is zero": (
        ours("grad_scaler", value={"scale": 0.0}),
        "grad_scaler's scale is 0",
    ),
    "metrics is a list": (ours("metrics", value=[]), "metrics is a list"),
    "written is text": (ours("metrics", value={"written": "x"}), "metrics.written is 'x'"),
    "written is ahead": (ours("metrics", "written", value=10**9), "written is 1000000000"),
    "no histories": (ours("metrics", value={"written": 1}), "no metrics.histories"),
    "histories of other types": (
        ours("metrics", "histories", value={"x": [["a", 1], [2]]}),
        r"history of 'x' is not a list of \[value, iteration\]",
    ),
    "a metric that a terminal obeys": (
        ours("metrics", "histories", value={"\x1b[31m": []}),
        r"name of a metric is '\\x1b\[31m'",
    ),
    "smoothed is a number": (ours("metrics", "smoothed", value=3), "metrics.smoothed is 3"),
    "optimizer is a list": (put("optimizer", value=[1]), "optimizer is a list"),
    "optimizer state is a list": (put("optimizer", "state", value=[1]), "optimizer.state is a"),
    "momentum of another shape": (momentum(torch.zeros(3)), r"has the shape \(3,\) instead"),
    "momentum is text": (momentum("x"), "momentum of .* is 'x', not a tensor"),
    "momentum of integers": (
        lambda c: [
            s.update(momentum_buffer=s["momentum_buffer"].long())
            for s in c["optimizer"]["state"].values()
        ],
        "numbers of type torch.int64",
    ),
    "momentum is not finite": (
        lambda c: [s["momentum_buffer"].fill_(NAN) for s in c["optimizer"]["state"].values()],
        "momentum of .* not finite",
    ),
    "state of Adam": (
        lambda c: [s.update(exp_avg=torch.ones(1)) for s in c["optimizer"]["state"].values()],
        "has 'exp_avg', which SGD does not keep",
    ),
    "state_dict is None": (put("state_dict", value=None), "state_dict is not a dict"),
    "a name is a number": (put("state_dict", 5, value=torch.ones(1)), "state_dict is not a dict"),
    "a tensor is text": (put("state_dict", "module.queue", value="abc"), "queue' is 'abc', not a"),
    "queue is not finite": (fill("queue", NAN), "'queue' has values that are not finite"),
    "weights are not finite": (
        lambda c: [
            t.fill_(math.inf)
            for name, t in c["state_dict"].items()
            if name.startswith("module.encoder_q") and t.is_floating_point()
        ],
        "'encoder_q.* has values that are not finite",
    ),
    "pointer is negative": (fill("queue_ptr", -(2**63)), "queue_ptr is -9223372036854775808"),
    "pointer is behind the queue": (fill("queue_ptr", 20), "queue_ptr is 20, not a column"),
    "pointer is a float": (
        put("state_dict", "module.queue_ptr", value=torch.tensor([NAN])),
        "'queue_ptr' has numbers of type torch.float32",
    ),
    "official epoch is text": (official_epoch("x"), "epoch is 'x', not a whole number"),
    "official epoch is absurd": (official_epoch(2**53), "epoch in iterations is"),
    "torch state of another size": (rng("torch", value=torch.zeros(3).byte()), "5056 bytes"),
    "torch state is zero": (rng("torch", value=torch.zeros(5056).byte()), "impossible"),
    "python version": (rng("python", 0, value=2), "Python's generator has the version 2"),
    "python is short": (rng("python", 1, value=[1, 2]), "is not 625 numbers"),
    "python position": (rng("python", 1, 624, value=625), "position in the state of Python's"),
    "python word": (rng("python", 1, 0, value=2**32), "state of Python's generator is 4294967296"),
    "python gaussian": (rng("python", 2, value=NAN), "cached gaussian is nan"),
    "numpy name": (rng("numpy", 0, value="PCG64"), "of 'PCG64' instead of 'MT19937'"),
    "numpy keys": (rng("numpy", 1, value=torch.ones(3).long()), "not 624 int64 numbers"),
    "numpy word": (rng("numpy", 1, value=torch.full((624,), -1)), "more than 32 bits"),
    "numpy position": (rng("numpy", 2, value=200000000), "NumPy's generator is 200000000"),
    "numpy has_gauss": (rng("numpy", 3, value=2), "has_gauss of NumPy's generator is 2"),
    "numpy gaussian": (rng("numpy_cached_gaussian", value=math.inf), "cached gaussian is inf"),
}


@pytest.fixture
def folder(small_network, make_config, tmp_path, monkeypatch):
    """OUTPUT_DIR of a run that was stopped after 3 of its 6 iterations."""
    trainer = Pretrainer(make_config())
    trainer.max_iter = 4  # checkpoint_final has another name, and is removed
    trainer.resume_or_start(resume=False)
    trainer.train()
    out = tmp_path / "out"
    (out / "checkpoint_final.pth.tar").unlink()
    (out / "last_checkpoint").write_text(NAME)
    return out


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def resume(make_config) -> Pretrainer:
    trainer = Pretrainer(make_config())
    trainer.resume_or_start(resume=True)
    return trainer


def test_what_a_checkpoint_must_not_hold(folder, make_config):
    """One test: making the checkpoint takes longer than all of the cases."""
    assert resume(make_config).start_iter == 3
    wrong = not_refused(
        HOSTILE,
        folder / NAME,
        resume=lambda: resume(make_config),
        everything=lambda: everything(folder),
    )
    assert not wrong


def test_the_command_writes_nothing_before_the_checkpoint_is_accepted(folder, words):
    content = torch.load(folder / NAME, weights_only=True)
    content["moco_d2"]["iteration"] = "x"
    torch.save(content, folder / NAME)
    before = everything(folder)
    parser = argument_parser("", "")
    line = ["--config-file", "moco_v2_R50_200ep.yaml", "--resume", *words({})]
    with pytest.raises(UserError, match="cannot be continued: its moco_d2.iteration is 'x'"):
        pretrain(parser.parse_args(line))
    assert everything(folder) == before


@pytest.mark.parametrize(
    "pointer", [b"\xff\xfe", b"a\0b", b"\x1b[31m", b"a" * 5000, b"..", b""], ids=repr
)
def test_a_pointer_that_names_nothing(folder, make_config, pointer):
    (folder / "last_checkpoint").write_bytes(pointer)
    assert resume(make_config).start_iter == 3


def test_others_that_do_not_say_how_far_they_are(folder, make_config):
    for i, iteration in enumerate(["x", [], {}, None, 10**30, -1, 2.5, True]):
        torch.save({"moco_d2": {"iteration": iteration}}, folder / f"checkpoint_9{i}.pth.tar")
    assert resume(make_config).start_iter == 3
    (folder / "last_checkpoint").write_text("")
    assert resume(make_config).start_iter == 3


def test_lines_of_metrics_that_are_not_ours(folder, make_config):
    lines = ['{"iteration": "x"}', '{"iteration": [1]}', "[" * 100_000, "5", '{"iteration": -1}']
    (folder / "metrics.json").write_text("".join(f"{line}\n" for line in lines))
    trainer = resume(make_config)
    trainer.train()
    first = (folder / "metrics.json").read_text().splitlines()[0]
    assert first == '{"iteration": -1}'


def test_the_generators_go_on_where_they_were_whatever_is_drawn_before_training(
    folder, make_config, monkeypatch
):
    """Detectron2's setup, which comes between, seeds them anew."""
    trainer = resume(make_config)
    wanted = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    drawn = []

    def run(self, *_):
        drawn.append((torch.rand(1), np.random.rand()))

    monkeypatch.setattr(Pretrainer.__mro__[1], "train", run)
    trainer.train()
    assert drawn == [wanted]


@pytest.mark.parametrize("draws", [0, 1, 622, 623, 624, 625, 1300])
def test_every_state_that_the_generators_can_have_is_accepted(draws):
    before = rng_state()
    try:
        torch.manual_seed(draws)
        np.random.seed(draws)
        torch.rand(draws), np.random.rand(draws), torch.randn(3), np.random.randn(1)
        state = rng_state()
        check_rng_state(state)
        wanted = torch.rand(5), torch.randn(3), np.random.randn(5)
        set_rng_state(state)
        again = torch.rand(5), torch.randn(3), np.random.randn(5)
        assert all(map(np.array_equal, wanted, again))
    finally:
        set_rng_state(before)


@pytest.mark.parametrize("position", [-5, 625, 1000, 200_000_000, 2**70, 3.0, True, None])
def test_a_position_outside_of_the_state_is_refused_before_numpy_has_it(position):
    state = rng_state()
    state["numpy"][2] = position
    before = np.random.get_state()[1].copy()
    with pytest.raises(UnusableError, match="position in the state of NumPy's generator"):
        set_rng_state(state)
    assert np.array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize(("left", "following"), [(624, 624), (0, 0), (625, 0), (5, 5), (1, 2**40)])
def test_a_position_outside_of_the_state_is_refused_before_torch_has_it(left, following):
    state = rng_state()
    words = state["torch"].numpy().copy()
    words[8:12].view("<i4")[0] = left
    words[16:24].view("<u8")[0] = following
    state["torch"] = torch.from_numpy(words)
    with pytest.raises(UnusableError, match="impossible"):
        check_rng_state(state)


def test_what_no_check_knows_is_a_sentence_too():
    sentence = r"^a cannot be continued: it is damaged \(KeyError: 'x'\); copy it again"
    with pytest.raises(UserError, match=sentence), continuing("a"):
        raise KeyError("x")
    for passes in (UserError("as it is"), OSError("disk"), KeyboardInterrupt(), MemoryError()):
        with pytest.raises(type(passes)) as caught, continuing("a"):
            raise passes
        assert caught.value is passes


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (10**5000, "a number of 16610 bits"),  # which Python refuses to print
        ("\x1b" * 100, "'" + "\\x1b" * 14 + "\\x1"),
        ([1], "a list"),
        (torch.ones(2), "a Tensor"),
        (None, "None"),
    ],
    ids=["digits", "escapes", "list", "tensor", "none"],
)
def test_a_value_in_a_message_is_short_and_plain(value, text):
    assert shown(value).startswith(text) and len(shown(value)) <= 60
