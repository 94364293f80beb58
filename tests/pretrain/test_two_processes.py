"""Two real processes with gloo: what a single process cannot show of ShuffleBN and the
dictionaries.
"""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from support.commands import run_processes
from support.paths import SUPPORT
from support.pretrain.two_processes import SHARE, train

RUN = {
    "MOCO.EPOCHS": 1,
    "MOCO.DICTIONARY.SIZE": 40,  # more than the 24 keys of the run: some initial ones survive
    "MOCO.AUGMENTATION.SIZE": 32,
    "SOLVER.CHECKPOINT_PERIOD": 0,
}
V3 = {
    "MOCO.PRETEXT": "mocov3",
    "MOCO.ENCODER.MLP_DIM": 24,
    "MOCO.AUGMENTATION.NAME": "v3",
    "MOCO.MOMENTUM_SCHEDULE": "cosine",
}
VIT = {
    "MOCO.ENCODER.ARCH": "vit_tiny",
    "MOCO.ENCODER.WIDTH_FACTOR": 0.25,
    "MOCO.ENCODER.FREEZE_PATCHES": True,
}
MECHANISMS = {
    "queue": {},
    "symmetric": {"MOCO.SYMMETRIC": True},
    "memory bank": {"MOCO.DICTIONARY.NAME": "MemoryBank"},
    "end to end": {"MOCO.DICTIONARY.NAME": "EndToEnd"},
    "accumulated": {"MOCO.ACCUMULATION": 2},
    "v3, LARS": {**V3, "MOCO.PRETRAIN_OPTIMIZER": "LARS"},
    "v3, AdamW": {**V3, "MOCO.PRETRAIN_OPTIMIZER": "AdamW"},
    "v3, accumulated": {**V3, "MOCO.ACCUMULATION": 2},
    "v3, ViT, accumulated": {**V3, **VIT, "MOCO.ACCUMULATION": 2},
}
# In these, two processes and one with two BatchNorm groups draw the same random numbers and make
# the same comparisons. A memory bank's negatives are each process's own draw; accumulated passes
# take other groups of images, except in a ViT, which has no BatchNorm before its heads. v3 has one
# BatchNorm group in both cases; AdamW would take rounding for the gradient of a bias before it.
SAME_AS_ONE = ("queue", "symmetric", "end to end", "v3, LARS", "v3, ViT, accumulated")


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as name:  # goes when this module is done
        yield Path(name)


@pytest.fixture(scope="module")
def found():
    """What each of the two processes found, or nothing before they have run."""
    return []


@pytest.fixture
def ranks(found, folder, words, images, held_out):
    """What each of the two processes found; they run once, and no test changes it."""
    if not found:
        knn = {"MOCO.KNN.TRAIN": images, "MOCO.KNN.TEST": held_out, "MOCO.KNN.PERIOD": 1}
        runs = {
            name: words(
                {**RUN, **overrides, **knn, "MOCO.BN_SPLITS": 1, "OUTPUT_DIR": folder / name}
            )
            for name, overrides in MECHANISMS.items()
        }
        (folder / "runs.json").write_text(json.dumps(runs))
        run_processes(2, SUPPORT / "pretrain" / "two_processes.py", folder, folder / "runs.json")
        files = [folder / f"rank{rank}.pth" for rank in range(2)]
        found += [torch.load(file, weights_only=True) for file in files]
    return found


def test_keys_come_back_in_order_from_whichever_process_encoded_them(ranks):
    everything = [[float(number), -float(number)] for number in range(2 * SHARE)]
    for rank in ranks:
        for embeddings in rank["embeddings"]:
            assert embeddings == everything
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


@pytest.mark.parametrize("name", MECHANISMS)
def test_processes_hold_the_same_dictionary_and_weights_at_the_end(ranks, name):
    first, second = (rank["runs"][name] for rank in ranks)
    assert first["losses"] == second["losses"]  # the mean of both
    for tensor_name, tensor in first["state_dict"].items():
        if "running" not in tensor_name:  # BatchNorm statistics are each process's own
            assert torch.equal(tensor, second["state_dict"][tensor_name]), tensor_name


@pytest.mark.parametrize("name", MECHANISMS)
def test_the_process_that_saves_saves_what_all_have(ranks, folder, name):
    content = torch.load(folder / name / "checkpoint_final.pth.tar", weights_only=True)
    second = ranks[1]["runs"][name]["state_dict"]
    encoder = "base_encoder" if name.startswith("v3") else "encoder_q"
    norm = f"{encoder}.head.1" if "ViT" in name else f"{encoder}.bn"
    saved = content["state_dict"][f"module.{norm}.weight"]
    assert torch.equal(saved, second[f"{norm}.weight"])
    # BatchNorm's statistics of the other process are there too.
    buffers = content["moco_d2"]["processes"][1]["buffers"]
    running_mean = f"{norm}.running_mean"
    assert torch.equal(buffers[running_mean], second[running_mean])
    if encoder == "base_encoder":  # its statistics are those of both processes
        assert torch.equal(buffers[running_mean], content["state_dict"][f"module.{running_mean}"])


@pytest.mark.parametrize("name", SAME_AS_ONE)
def test_two_processes_train_as_one_with_two_batchnorm_groups(ranks, words, name):
    """The same views, ShuffleBN order and gradients: only rounding differs."""
    splits = 1 if name.startswith("v3") else 2
    one = train(words({**RUN, **MECHANISMS[name], "MOCO.BN_SPLITS": splits}))
    both = ranks[0]["runs"][name]
    assert both["losses"] == pytest.approx(one["losses"], rel=1e-9)
    for tensor_name, tensor in one["first_step"].items():
        if "running" not in tensor_name or splits == 1:
            torch.testing.assert_close(
                both["first_step"][tensor_name], tensor, rtol=0, atol=1e-9, msg=tensor_name
            )
