"""What the demo says, and that what it runs is what the README tells to type."""

import pytest

from moco_d2.config import load_config
from moco_d2.demo.jobs import Job, job_runner
from moco_d2.demo.pipeline import INITIALISATIONS, Demo, knn_summary, loss_summary
from moco_d2.demo.settings import LONG, SHORT
from moco_d2.errors import UserError


@pytest.mark.parametrize("settings", [SHORT, LONG])
@pytest.mark.parametrize("task", ["voc_C4", "coco_FPN_1x"])
def test_commands_of_a_task_are_matched(tmp_path, settings, task):
    """Every word of the three command lines is the same but config, weights and output."""
    demo = Demo(tmp_path, settings)
    steps = dict(settings.finetune_steps)[task]
    resolved = []
    for initialisation in INITIALISATIONS:
        words = demo._finetune_job(task, initialisation, 1, steps).arguments
        assert words[:2] == ["--config-file", f"{task}_{initialisation}.yaml"]
        cfg = load_config(words[1], words[2:])
        cfg.MODEL.WEIGHTS = cfg.OUTPUT_DIR = ""
        resolved.append(cfg.dump())
    assert resolved[0] == resolved[1] == resolved[2]


def test_both_pretexts_have_the_same_images_network_steps_and_rate(tmp_path):
    demo = Demo(tmp_path, SHORT)
    resolved = []
    for pretext in ("moco", "supervised"):
        words = demo._pretrain_job(pretext).arguments
        cfg = load_config(words[1], words[2:])
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


def test_a_failing_command_is_named_with_the_end_of_its_log(tmp_path):
    job = Job("benchmark.py", ["table", str(tmp_path)], tmp_path / "a.log", weight=1)
    with (
        pytest.raises(UserError, match=r"tools/benchmark.py table .* exit code 2: error: "),
        job_runner(1, parallel=1) as runner,
    ):
        runner.run([job], "tables")
