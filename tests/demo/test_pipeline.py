"""What the demo says, and that what it runs is what the README tells to type."""

import pytest

from moco_d2.config.load import load_config
from moco_d2.demo.cells import INITIALIZATIONS, demo_cells
from moco_d2.demo.pipeline import knn_summary, loss_summary
from moco_d2.demo.settings import LONG, SHORT


def commands_of(settings, name):
    (cell,) = (cell for cell in demo_cells(settings) if cell.name == name)
    return dict(cell.commands)


@pytest.mark.parametrize("settings", [SHORT, LONG])
@pytest.mark.parametrize("task", ["voc_C4", "coco_FPN_1x"])
def test_commands_of_a_task_are_matched(settings, task):
    """Every word of the three command lines is the same but config, weights and output."""
    resolved = []
    for initialization in INITIALIZATIONS:
        words = commands_of(settings, f"{task}/{initialization}/seed1")["train_net.py"]
        assert words[:3] == ("--config-file", f"{task}_{initialization}.yaml", "--resume")
        cfg = load_config(words[1], words[3:])
        cfg.MODEL.WEIGHTS = cfg.OUTPUT_DIR = ""
        resolved.append(cfg.dump())
    assert resolved[0] == resolved[1] == resolved[2]


def test_both_pretexts_have_the_same_images_network_steps_and_rate():
    resolved = []
    for pretext in ("moco", "supervised"):
        words = commands_of(SHORT, f"pretrain_{pretext}")["pretrain.py"]
        cfg = load_config(words[1], words[3:])
        cfg.MOCO.PRETEXT = cfg.OUTPUT_DIR = ""
        resolved.append(cfg.dump())
    assert resolved[0] == resolved[1]


def test_sentences_hold_the_numbers():
    pretext = [{"loss_contrastive": 6.0 - 0.1 * i} for i in range(16)]
    assert loss_summary(pretext, 255) == (
        "MoCo's loss ended at 4.50, chance ln(K+1) is 5.55; from the first to the second half of "
        "its last quarter it fell by 0.200."
    )
    curves = {
        "moco": [{"knn_accuracy": 0.5}, {"loss": 1}, {"knn_accuracy": 0.7}],
        "supervised": [{"knn_accuracy": 0.5}, {"knn_accuracy": 0.9}],
    }
    assert "random 0.500, MoCo 0.700, supervised 0.900 (chance 0.111)" in knn_summary(curves, 1 / 9)
