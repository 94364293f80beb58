"""Two real processes with gloo: what a single process cannot show of ShuffleBN and the queue."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moco_d2.launch import seed
from moco_d2.pretrain.engine import Pretrainer

SHARE, SIZE = 3, 4  # as in two_processes.py
RUN = {
    "MOCO.EPOCHS": 1,
    "MOCO.KNN.PERIOD": 1,
    "MOCO.DICTIONARY.SIZE": 40,  # more than the 24 keys of the run: some initial ones survive
    "MOCO.AUGMENTATION.SIZE": 64,
    "SOLVER.CHECKPOINT_PERIOD": 0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two_processes")


@pytest.fixture
def ranks(folder, words, images):
    """What each of the two processes found; they run once."""
    if not (folder / "rank1.pth").is_file():
        knn = {"MOCO.KNN.TRAIN": images, "MOCO.KNN.TEST": images}
        overrides = words({**RUN, **knn, "MOCO.BN_SPLITS": 1, "OUTPUT_DIR": folder / "out"})
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", "2", str(Path(__file__).with_name("two_processes.py"))]
        with subprocess.Popen(
            [*command, str(folder), *overrides], stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                _, messages = process.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                process.terminate()  # torchrun then ends both
                raise
        assert process.returncode == 0, messages
    return [torch.load(folder / f"rank{rank}.pth", weights_only=True) for rank in range(2)]


def test_keys_come_back_in_order_from_whichever_process_encoded_them(ranks):
    for rank in ranks:
        for embeddings in rank["embeddings"]:
            assert embeddings == [[number, -number] for number in rank["own"]]
    rounds = [first + second for first, second in zip(*(r["encoded"] for r in ranks), strict=True)]
    for numbers in rounds:
        assert sorted(numbers) == list(range(2 * SHARE))
    # A query's group is its own process; in four rounds its key has met another one.
    assert any(set(numbers) != set(ranks[0]["own"]) for numbers in ranks[0]["encoded"])
    assert len({tuple(numbers) for numbers in rounds}) > 1


def test_every_process_enqueues_the_keys_of_all_in_rank_order(ranks):
    # Keys 0 .. 5 into four places: 4 and 5 overwrite 0 and 1.
    for rank in ranks:
        assert rank["queue"] == [[4, 5, 2, 3]]
        assert rank["pointer"] == [2]


def test_processes_hold_the_same_queue_and_weights_from_start_to_end(ranks):
    first, second = ranks
    assert first["queues"] == second["queues"]
    for name, tensor in first["state_dict"].items():
        if "running" not in name:  # BatchNorm statistics are each process's own
            assert torch.equal(tensor, second["state_dict"][name]), name


def test_the_process_that_saves_saves_what_all_have(ranks, folder):
    content = torch.load(folder / "out" / "checkpoint_final.pth.tar", weights_only=True)
    assert "module.encoder_q.layer4.1.bn2.weight" in content["state_dict"]
    assert torch.equal(content["state_dict"]["module.queue"], torch.tensor(ranks[1]["queues"][1]))


def test_two_processes_train_as_one_with_two_batchnorm_groups(ranks, make_config, tmp_path):
    """The same views, ShuffleBN order and gradients: only rounding differs."""
    cfg = make_config({**RUN, "MOCO.BN_SPLITS": 2})
    seed(cfg)
    trainer = Pretrainer(cfg)
    trainer.resume_or_start(resume=False)
    trainer.train()
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    both = [sum(pair) / 2 for pair in zip(*(rank["losses"] for rank in ranks), strict=True)]
    assert losses == pytest.approx(both, rel=1e-4)
    for name, tensor in trainer.model.state_dict().items():
        if "running" not in name:
            torch.testing.assert_close(
                ranks[0]["state_dict"][name], tensor, rtol=0, atol=1e-4, msg=name
            )
