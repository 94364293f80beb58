import contextlib
import itertools
from pathlib import Path

import pytest
import torch
from fvcore.nn.precise_bn import update_bn_stats
from support.commands import run_processes
from support.paths import SUPPORT
from support.transfer.precise_bn_two_processes import (
    BATCHES,
    PROCESSES,
    images,
    network,
    statistics,
)
from torch import nn

from moco_d2.config.load import load_config
from moco_d2.transfer.data.registered import register_datasets
from moco_d2.transfer.evaluation.precise_bn import update_statistics
from moco_d2.transfer.trainer import Trainer

TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("two_processes")
    run_processes(PROCESSES, SUPPORT / "transfer" / "precise_bn_two_processes.py", folder)
    return [torch.load(folder / f"rank{r}.pth", weights_only=True) for r in range(PROCESSES)]


@pytest.mark.parametrize("norm", ["BN", "naiveSyncBN", "of all sizes"])
def test_all_processes_have_the_same(ranks, norm):
    for name, ours in ranks[0][norm].items():
        assert torch.equal(ours, ranks[1][norm][name])


def test_detectrons_own_differ(ranks):
    """detectron2 issue 5398; where upstream has mended it, ours can go."""
    first, second = (rank["detectron2"]["1.running_mean"] for rank in ranks)
    assert not torch.allclose(first, second, rtol=1e-3)


def test_one_process_finds_the_same_in_the_same_images(ranks):
    """Synchronized, a batch of all processes is normalized as one; else, each as its own."""
    together, apart = network("BN"), network("BN")
    update_statistics(together, list(images().flatten(1, 2)))
    update_statistics(apart, list(images().flatten(0, 1)))
    for alone, norm in ((together, "naiveSyncBN"), (apart, "BN")):
        for name, expected in statistics(alone).items():
            torch.testing.assert_close(ranks[0][norm][name], expected, **TOLERANCE)


def test_in_one_process_it_is_fvcores():
    ours, theirs = network("BN"), network("BN")
    batches = list(images().flatten(1, 2))
    update_statistics(ours, batches)
    update_bn_stats(theirs, batches, BATCHES)
    for name, expected in statistics(theirs).items():
        torch.testing.assert_close(statistics(ours)[name], expected, rtol=1e-5, atol=1e-6)


def test_statistics_are_those_of_all_values():
    pixels = images().flatten(0, 2)
    norm = nn.Sequential(nn.BatchNorm2d(3)).train()
    update_statistics(norm, pixels.split(5))
    mean, variance = pixels.mean((0, 2, 3)), pixels.var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(norm[0].running_mean, mean, **TOLERANCE)
    torch.testing.assert_close(norm[0].running_var, variance, rtol=1e-5, atol=1e-5)


def test_layers_that_see_nothing_keep_what_they_have():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.frozen = (nn.BatchNorm2d(3) for _ in range(3))
            self.frozen.eval()

        def forward(self, x):
            return self.used(self.frozen(x))

    model = Sometimes().train()
    model.frozen.eval()
    update_statistics(model, [torch.randn(4, 3, 5, 5)])
    assert model.used.running_mean.abs().sum() > 0
    for layer in (model.unused, model.frozen):
        assert torch.equal(layer.running_mean, torch.zeros(3))


@pytest.fixture
def trainer(tiny, words, voc, tmp_path):
    more = {"OUTPUT_DIR": tmp_path, "MODEL.DEVICE": "cpu", "MODEL.RESNETS.NORM": "BN"}
    cfg = load_config("voc_C4_random.yaml", [*tiny, *words(voc | more)])
    register_datasets((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    return Trainer(cfg)


def test_the_same_weights_have_the_same_statistics_and_training_does_not_notice(trainer):
    (hook,) = (hook for hook in trainer._hooks if type(hook).__name__ == "PreciseBN")
    found = []
    for _ in range(2):
        before = torch.get_rng_state()
        hook.update()
        assert torch.equal(torch.get_rng_state(), before)
        found.append({n: b.clone() for n, b in trainer.model.named_buffers() if "running" in n})
    # Also in the head, whose regions are sampled.
    assert any("res5" in name for name in found[0])
    for name, statistic in found[0].items():
        assert torch.equal(statistic, found[1][name])


def test_the_statistics_are_of_training_images(trainer):
    (hook,) = (hook for hook in trainer._hooks if type(hook).__name__ == "PreciseBN")
    with contextlib.closing(hook._batches.other(1)) as batches:
        names = {Path(s["file_name"]).name for batch in itertools.islice(batches, 6) for s in batch}
    assert len(names) == 6 and all(name.startswith("trainval") for name in names)
