"""Nothing of ours relies on what only one Detectron2 has: release v0.6, or today's main.

Both call themselves 0.6. Every known difference has its line in DIFFERENCES, with the tests that
would fail if we relied on it: on whichever of the two is installed, or in our source.
"""

import ast
import importlib
import importlib.util
import inspect
import re
import types
from pathlib import Path

import pytest
from support.paths import ROOT, TESTS

import moco_d2
from moco_d2.config.load import config_root, load_config
from moco_d2.plugin import compat

PACKAGE = Path(moco_d2.__file__).parent
OUR_SOURCE = [file for file in sorted(PACKAGE.rglob("*.py")) if file.name != "compat.py"]

# What differs -> tests, of this file or as FILE::TEST.
DIFFERENCES = {
    "v0.6 is not imported without compiled operators": [
        "plugin/test_compat.py::test_only_a_detectron2_that_needs_the_placeholder_gets_it",
        "plugin/test_compat.py::test_layers_with_compiled_operators_import_on_this_installation",
    ],
    "v0.6 uses Image.LINEAR, np.str, np.int, np.float, np.object": [
        "plugin/test_compat.py::test_numpy_and_pillow_names_are_supplied_only_where_missing",
    ],
    "v0.6 uses np.bool": ["plugin/test_compat.py::test_numpys_own_bool_stays_numpys"],
    "v0.6's loader fails on Python 3.11 where a mapper gives None": ["MapDataset"],
    "the VOC evaluator is the same, scores of 3 decimals": [
        "transfer/evaluation/test_voc_evaluation.py::test_compatible_mode_is_detectron2s_bit_for_bit",
    ],
    "mIoU divides by other classes, and main adds keys": [
        "transfer/evaluation/test_build.py::test_mean_iou_is_over_the_classes_of_the_ground_truth",
    ],
    "lvis uses np.float": [
        "transfer/evaluation/test_build.py::test_lvis_on_current_numpy_agrees_with_another_implementation",
    ],
    "COCOEvaluator takes other arguments": ["test_arguments_are_those_of_both"],
    "main imports Cityscapes' scripts by another name": [
        "plugin/test_compat.py::test_cityscapes_scripts_of_todays_main_are_the_public_ones",
        "plugin/test_compat.py::test_a_detectron2_with_public_cityscapes_scripts_is_left_alone",
    ],
    "SimpleTrainer takes more arguments in main": ["test_arguments_are_those_of_both"],
    "SimpleTrainer's iterator is a property in main": ["_data_loader_iter"],
    "write_metrics takes cur_iter in main": ["write_metrics"],
    "the 4th argument of AMPTrainer is another": ["AMPTrainer"],
    "main calls HookBase.after_backward": ["after_backward"],
    "put_scalar takes cur_iter in main": ["cur_iter", "test_arguments_are_those_of_both"],
    "v0.6's checkpoints have no optimizer": [
        "test_optimizer_in_checkpoints_is_detected_by_feature",
        "transfer/test_train_net.py::test_checkpoint_holds_the_optimizer",
        "transfer/test_resume.py::test_killed",
    ],
    "without SEED main gives every run the same order": [
        "transfer/preflight/test_config_checks.py::test_each_finding_names_key_value_and_fix",
    ],
    "loaders take more arguments in main": ["drop_last", "test_arguments_are_those_of_both"],
    "ShapeSpec is no tuple in main": ["_replace", "test_a_shape_is_not_unpacked"],
    "main has a ViT and the norm LN": [
        "transfer/modeling/test_vit.py::test_it_is_mains_in_tensors_outputs_and_gradients",
        "transfer/modeling/test_vit.py::test_images_of_a_detector_are_padded_to_the_square",
        "plugin/test_compat.py::test_layer_norm_is_known_wherever_get_norm_has_been_imported",
    ],
    "main asks a backbone for padding_constraints": ["test_every_backbone_is_detectron2s"],
    "main's FrozenBatchNorm2d counts batches": [
        "checkpoint/test_mapping.py::test_resnet50_counts",
    ],
    "main's Conv2d is slower by microseconds": [],
    "the base class of schedulers has moved": ["LRScheduler"],
    "main's optimizer updates all tensors at once": ["test_the_optimizer_is_detectron2s"],
    "v0.6 launches no CPU processes": [
        "engine/test_launch.py::test_several_processes_on_a_cpu_are_torchruns"
    ],
    "comm's process group has a function in main": [
        "_LOCAL_PROCESS_GROUP",
        "test_the_local_process_group_is_set_as_each_version_has_it",
    ],
    "main has keys that v0.6 rejects": ["test_no_config_uses_a_key_that_only_main_has"],
    "main has removed datasets": ["minival_100"],
    "main's WeightedTrainingSampler reads a key that nobody defines": [
        "transfer/data/test_training_data.py::test_an_unknown_sampler_is_refused",
    ],
    "LazyConfig overrides need hydra in v0.6": ["LazyConfig"],
    "FixedSizeCrop pads labels otherwise": ["FixedSizeCrop"],
    "v0.6's metadata pins versions of 2021": ["test_installing_us_installs_no_detectron2"],
    "model_zoo needs pkg_resources": ["model_zoo"],
    "the version is 0.6 in both": ["__version__"],
}

# How reliance on one of them would look in our source.
NOT_USED = {
    "_data_loader_iter": r"_data_loader_iter\s*=",
    "write_metrics": r"write_metrics\(",
    "cur_iter": r"cur_iter",
    "AMPTrainer": r"AMPTrainer\(",
    "after_backward": r"def after_backward",
    "LRScheduler": r"import LRScheduler|_LRScheduler",
    "_replace": r"(shape|spec)\w*(\[[^]]*\])?\._replace\(",
    "drop_last": r"drop_last=|single_gpu_batch_size|prefetch_factor=(?!self\.)",  # torch's own
    "MapDataset": r"\bMapDataset\b",
    "model_zoo": r"model_zoo\b",
    "FixedSizeCrop": r"FixedSizeCrop\((?!crop_size=\(height, width\), pad=False\))",
    "minival_100": r"minival_100",
    "LazyConfig": r"LazyConfig|LazyCall",
    "__version__": r"detectron2\.__version__\s*[=<>!]",
    "_LOCAL_PROCESS_GROUP": r"_LOCAL_PROCESS_GROUP",
}


def code_of(file):
    """The code of a Python file, without comments and documentation."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(None)
    return ast.unparse(tree)


@pytest.fixture(scope="module")
def sources():
    return {file.name: code_of(file) for file in OUR_SOURCE}


@pytest.mark.parametrize("pattern", NOT_USED.values(), ids=NOT_USED)
def test_not_used(pattern, sources):
    assert [name for name, code in sources.items() if re.search(pattern, code)] == []


def test_the_search_finds_what_it_is_for(tmp_path):
    file = tmp_path / "a.py"
    file.write_text(
        '"""AMPTrainer("""\n# cur_iter\nself._data_loader_iter = x\nspec._replace(stride=2)\n'
    )
    code = code_of(file)
    found = {name for name, pattern in NOT_USED.items() if re.search(pattern, code)}
    assert found == {"_data_loader_iter", "_replace"}


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_every_difference_is_tested_where_it_says(difference):
    for test in DIFFERENCES[difference]:
        if test in NOT_USED:
            continue
        file, _, name = test.rpartition("::")
        tree = ast.parse((TESTS / (file or Path(__file__).relative_to(TESTS))).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def calls(tree, name):
    """Calls of a function of that name, whatever it is an attribute of."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            if name == getattr(called, "attr", getattr(called, "id", None)):
                yield node


# Of what both versions share: arguments that may be given by position, and by name.
SHARED = {
    "put_scalar": (2, {"smoothing_hint"}),
    "COCOBoxEvaluator": (1, {"output_dir", "kpt_oks_sigmas"}),
    "FastLVISEvaluator": (1, {"output_dir"}),
    "TrainingSampler": (1, {"seed"}),
    "RepeatFactorTrainingSampler": (1, {"seed"}),
    "get_detection_dataset_dicts": (1, {"filter_empty", "min_keypoints", "proposal_files"}),
    "EvalHook": (2, set()),
    "PeriodicWriter": (1, {"period"}),
}


@pytest.mark.parametrize("name", SHARED)
def test_arguments_are_those_of_both(name):
    positions, names = SHARED[name]
    found = [call for file in OUR_SOURCE for call in calls(ast.parse(file.read_text()), name)]
    assert found
    for call in found:
        assert len(call.args) <= positions
        assert {keyword.arg for keyword in call.keywords} <= names


def test_the_installed_version_has_these_arguments():
    from detectron2.data import get_detection_dataset_dicts, samplers
    from detectron2.engine import SimpleTrainer, hooks
    from detectron2.evaluation import COCOEvaluator, LVISEvaluator
    from detectron2.utils.events import EventStorage

    installed = {
        "put_scalar": EventStorage.put_scalar,
        "COCOBoxEvaluator": COCOEvaluator.__init__,  # it has no __init__ of its own
        "FastLVISEvaluator": LVISEvaluator.__init__,  # it has no __init__ of its own
        "TrainingSampler": samplers.TrainingSampler.__init__,
        "RepeatFactorTrainingSampler": samplers.RepeatFactorTrainingSampler.__init__,
        "get_detection_dataset_dicts": get_detection_dataset_dicts,
        "EvalHook": hooks.EvalHook.__init__,
        "PeriodicWriter": hooks.PeriodicWriter.__init__,
    }
    for name, function in installed.items():
        assert SHARED[name][1] <= set(inspect.signature(function).parameters), name
    first_three = list(inspect.signature(SimpleTrainer.__init__).parameters)[1:4]
    assert first_three == ["model", "data_loader", "optimizer"]


def test_simple_trainer_is_made_of_what_both_know():
    """main has put arguments behind the first three."""
    file = PACKAGE / "transfer" / "train_step.py"
    (trainer,) = (
        node
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef) and "SimpleTrainer" in map(ast.unparse, node.bases)
    )
    (made,) = calls(trainer, "__init__")
    assert ast.unparse(made) == "super().__init__(model, data_loader, optimizer)"


def test_a_shape_is_not_unpacked():
    """A ShapeSpec of main has attributes only: no unpacking, no index, no hash."""
    for file in OUR_SOURCE:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
                assert not re.search(r"(input|output)_shape", ast.unparse(node.value)), file
            if isinstance(node, ast.Starred):
                assert not re.search(r"(input|output)_shape", ast.unparse(node.value)), file


def imports_of_detectron2():
    for file in OUR_SOURCE:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("detectron2"):
                for alias in node.names:
                    yield node.module, alias.name


def test_everything_imported_is_in_the_installed_version():
    """Also what is imported inside functions, when it is too late."""
    found = set(imports_of_detectron2())
    assert len(found) > 40
    for module, name in found:
        owner = importlib.import_module(module)
        assert hasattr(owner, name) or importlib.util.find_spec(f"{module}.{name}"), (module, name)
        assert not name.startswith("_"), (module, name)


def test_every_backbone_is_detectron2s():
    """The meta-architectures of main ask a backbone for its padding constraints."""
    import torch
    from detectron2.modeling import Backbone, build_backbone

    tasks = [file.stem for file in (config_root() / "task").glob("*.yaml")]
    configs = [load_config(f"{task}_random.yaml") for task in tasks if "densepose" not in task]
    for cfg in {cfg.MODEL.BACKBONE.NAME: cfg for cfg in configs}.values():
        with torch.device("meta"):
            assert isinstance(build_backbone(cfg), Backbone)


def test_optimizer_in_checkpoints_is_detected_by_feature():
    has = type("Trainer", (), {"state_dict": lambda self: {}})
    inherits = type("Child", (has,), {})
    assert compat.checkpoints_hold_the_optimizer(has)
    assert not compat.checkpoints_hold_the_optimizer(inherits)


def test_the_optimizer_is_detectron2s(monkeypatch):
    """Whatever its version's arguments to SGD are, ours leaves them to it."""
    from detectron2.engine import DefaultTrainer

    from moco_d2.transfer.trainer import Trainer

    assert Trainer.build_lr_scheduler.__func__ is DefaultTrainer.build_lr_scheduler.__func__
    made = object()
    monkeypatch.setattr(DefaultTrainer, "build_optimizer", lambda cfg, model: made)
    assert Trainer.build_optimizer(load_config("voc_C4_random.yaml"), None) is made


def test_the_local_process_group_is_set_as_each_version_has_it(monkeypatch):
    import torch.distributed as dist
    from detectron2.utils import comm

    calls = []
    main = types.SimpleNamespace(create_local_process_group=calls.append)
    monkeypatch.setattr("detectron2.utils.comm", main)
    compat.set_local_process_group(2)
    assert calls == [2]
    v06 = types.SimpleNamespace(_LOCAL_PROCESS_GROUP=None)
    monkeypatch.setattr("detectron2.utils.comm", v06)
    monkeypatch.setattr(dist, "get_rank", lambda: 3)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(dist, "new_group", list)
    compat.set_local_process_group(2)
    assert v06._LOCAL_PROCESS_GROUP == [2, 3]
    assert comm is not v06


def test_no_module_that_only_some_versions_of_numpy_have_is_imported():
    """numpy._core came after 1.26.0, our oldest, and numpy.core is deprecated."""
    private = re.compile(r"^\s*(?:from|import) numpy\._?core\b|\bnp\._?core\b", re.MULTILINE)
    files = [*OUR_SOURCE, *TESTS.rglob("*.py")]
    assert [file for file in files if private.search(file.read_text())] == []


def test_requirements_have_a_lower_bound():
    """Without one, a resolver that looks for the lowest versions takes some of ten years ago."""
    project = Path(ROOT, "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[(.*?)^\]", project, re.MULTILINE | re.DOTALL)[1]
    requirements = re.findall(r'^    "([^"]+)"', listed, re.MULTILINE)
    requirements += re.findall(r'"(setuptools\b[^".]*)"', project)
    assert len(requirements) > 20
    assert [requirement for requirement in requirements if ">=" not in requirement] == []


def test_no_config_uses_a_key_that_only_main_has():
    """v0.6 rejects them; where it is installed, loading proves it, too."""
    text = "".join(path.read_text() for path in config_root().rglob("*.yaml"))
    for key in (
        *("REPEAT_SQRT", "USE_FED_LOSS", "USE_SIGMOID_CE", "FED_LOSS_", "BASE_LR_END"),
        *("NUM_DECAYS", "RESCALE_INTERVAL", "FLOAT32_PRECISION"),
    ):
        assert key not in text


def test_installing_us_installs_no_detectron2():
    """A user's own stays; the pure-Python v0.6 is an extra."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    assert not [name for name in project["dependencies"] if "detectron2" in name]
