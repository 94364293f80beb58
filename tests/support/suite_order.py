"""Files of tests that take long: pytest-xdist starts with them, and ``-m "not slow"`` neither runs
nor imports them.
"""

import pytest
from support.paths import TESTS
from xdist.scheduler import LoadFileScheduling

# Four seconds of a core and more. The longest come first, so that no worker begins a long file when
# the other has nothing left.
SLOW = (
    "benchmark/test_transfer_command.py",
    "checkpoint/test_families.py",
    "test_gpu_script.py",
    "checkpoint/test_vit_files.py",
    "test_docs_runs.py",
    "checkpoint/test_detectron2_models.py",
    "test_group_signals.py",
    "checkpoint/test_hostile_arguments.py",
    "transfer/test_all_configs.py",
    "transfer/test_resume.py",
    "pretrain/test_resume.py",
    "browser/test_report.py",
    "checkpoint/test_convert.py",
    "transfer/test_train_net.py",
    "campaigns/test_mutations.py",
    "test_untrusted_images.py",
    "campaigns/test_fuzz_checkpoints.py",
    "checkpoint/test_weights_by_name.py",
    "pretrain/test_pretrainer.py",
    "end_to_end/test_line.py",
    "end_to_end/test_converted_vit.py",
    "engine/test_launch.py",
    "test_suite_hygiene.py",
    "test_how_to.py",
    "test_docs_commands.py",
    "test_examples.py",
    "test_docs_site.py",
    "transfer/test_resume_checks.py",
    "pretrain/probe/test_linear_eval.py",
    "plugin/test_cityscapes_pool.py",
    "benchmark/test_runner.py",
    "campaigns/test_faults.py",
    "engine/test_signals.py",
    "benchmark/test_planning.py",
    "campaigns/test_fuzz_yaml.py",
    "transfer/preflight/test_config_checks.py",
    "transfer/inference/test_export.py",
    "transfer/evaluation/test_voc_evaluation.py",
    "end_to_end/test_stock_detectron2.py",
    "pretrain/test_two_processes.py",
    "test_benchmarks.py",
    "rehearsal/test_budgets.py",
    "plugin/test_both_detectron2s.py",
    "pretrain/test_recipes.py",
    "pretrain/augmentation/test_batched.py",
    "pretrain/augmentation/test_opencv.py",
    "plugin/test_after_import.py",
)
# Three seconds of a core and more: not in the inner loop, and in any order.
ALSO_SLOW = (
    "pretrain/test_warm_up.py",
    "engine/test_process_group.py",
    "pretrain/test_moco_v3_runs.py",
    "pretrain/model/test_moco_v3.py",
    "checkpoint/test_targets.py",
    "test_installation.py",
    "transfer/inference/test_predict.py",
    "transfer/test_weights.py",
    "checkpoint/test_traits.py",
    "benchmark/test_design.py",
    "checkpoint/test_vit.py",
    "test_references.py",
    "transfer/modeling/test_roi_heads.py",
    "benchmark/test_benchmark_command.py",
    "checkpoint/test_stated.py",
    "transfer/modeling/test_backbones.py",
    "engine/test_loader.py",
    "benchmark/test_suites.py",
    "transfer/test_validation_loss.py",
    "transfer/evaluation/test_build.py",
    "benchmark/test_tuning.py",
    "engine/test_heartbeat.py",
    "engine/test_trackers.py",
    "benchmark/test_image_bootstrap.py",
    "pretrain/test_resume_checks.py",
    "pretrain/model/test_moco.py",
    "transfer/preflight/test_weight_checks.py",
    "transfer/preflight/test_memory.py",
    "benchmark/test_sweep_figures.py",
    "benchmark/test_board.py",
    "transfer/data/test_voc_segmentation.py",
    "rehearsal/test_compiled.py",
    "pretrain/test_checkpointing.py",
    "transfer/test_checkpointing.py",
    "engine/test_terminal.py",
    "pretrain/data/test_sharded_stream.py",
    "config/test_shard_patterns.py",
    "config/test_keys.py",
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
