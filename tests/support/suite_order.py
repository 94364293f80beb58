"""Files of tests that take long: pytest-xdist starts with them, and ``-m "not slow"`` neither runs
nor imports them.
"""

import pytest
from support.paths import TESTS
from xdist.scheduler import LoadFileScheduling

# Four seconds of a core and more. The longest come first, so that no worker begins a long file when
# the other has nothing left.
SLOW = (
    "checkpoint/test_families.py",
    "test_gpu_script.py",
    "rehearsal/test_budgets.py",
    "benchmark/test_transfer_command.py",
    "transfer/test_resume.py",
    "test_group_signals.py",
    "engine/test_process_group.py",
    "browser/test_report.py",
    "engine/test_launch.py",
    "checkpoint/test_detectron2_models.py",
    "transfer/test_all_configs.py",
    "test_docs_runs.py",
    "checkpoint/test_vit_files.py",
    "pretrain/test_resume.py",
    "pretrain/test_pretrainer.py",
    "test_installation.py",
    "campaigns/test_mutations.py",
    "pretrain/probe/test_linear_eval.py",
    "test_suite_hygiene.py",
    "campaigns/test_fuzz_checkpoints.py",
    "test_how_to.py",
    "checkpoint/test_convert.py",
    "pretrain/test_recipes.py",
    "test_docs_site.py",
    "pretrain/augmentation/test_batched.py",
    "checkpoint/test_targets.py",
    "test_docs_commands.py",
    "transfer/test_train_net.py",
    "benchmark/test_runner.py",
    "benchmark/test_planning.py",
    "pretrain/test_moco_v3_runs.py",
    "benchmark/test_design.py",
    "checkpoint/test_hostile_arguments.py",
    "checkpoint/test_traits.py",
    "transfer/preflight/test_config_checks.py",
    "plugin/test_both_detectron2s.py",
    "pretrain/test_two_processes.py",
    "benchmark/test_tuning.py",
    "test_references.py",
    "plugin/test_cityscapes_pool.py",
    "end_to_end/test_line.py",
    "test_examples.py",
    "transfer/test_weights.py",
    "checkpoint/test_weights_by_name.py",
    "transfer/evaluation/test_voc_evaluation.py",
    "checkpoint/test_vit.py",
    "benchmark/test_suites.py",
    "pretrain/model/test_moco_v3.py",
    "transfer/inference/test_predict.py",
    "campaigns/test_faults.py",
    "plugin/test_after_import.py",
    "transfer/inference/test_export.py",
    "pretrain/test_warm_up.py",
    "campaigns/test_fuzz_yaml.py",
    "transfer/test_resume_checks.py",
    "checkpoint/test_stated.py",
    "benchmark/test_sweep_figures.py",
    "pretrain/augmentation/test_opencv.py",
    "transfer/test_validation_loss.py",
    "engine/test_signals.py",
    "test_benchmarks.py",
    "benchmark/test_image_bootstrap.py",
    "transfer/modeling/test_roi_heads.py",
    "engine/test_heartbeat.py",
    "engine/test_loader.py",
    "engine/test_trackers.py",
)
# Three seconds of a core and more: not in the inner loop, and in any order.
ALSO_SLOW = (
    "test_untrusted_images.py",
    "end_to_end/test_stock_detectron2.py",
    "rehearsal/test_compiled.py",
    "transfer/modeling/test_backbones.py",
    "pretrain/test_resume_checks.py",
    "pretrain/data/test_sharded_stream.py",
    "transfer/evaluation/test_build.py",
    "engine/test_terminal.py",
    "transfer/data/test_voc_segmentation.py",
    "pretrain/test_checkpointing.py",
)
# One worker converts the files of both.
_WITH = {"checkpoint/test_detectron2_models.py": "checkpoint/test_families.py"}
_RANK = {str(TESTS / name): rank for rank, name in enumerate(SLOW)}
_SLOW = {str(TESTS / name) for name in (*SLOW, *ALSO_SLOW)}


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes long; see tests/support/suite_order.py")


def pytest_ignore_collect(collection_path, config):
    return (str(collection_path) in _SLOW and config.option.markexpr == "not slow") or None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if str(item.path) in _SLOW:
            item.add_marker("slow")
    items.sort(key=lambda item: _RANK.get(str(item.path), len(SLOW)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return _Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


class _Scheduling(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        folder, _, name = file.rpartition("tests/")
        return f"{folder}tests/{_WITH[name]}" if name in _WITH else file
