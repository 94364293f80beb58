import contextlib
import importlib
import importlib.util
import io
import json
import sys
import types

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support.toy_data import make_coco

from moco_d2.plugin import compat


def test_placeholder_complains_when_an_operator_is_used_and_not_before():
    placeholder = compat._MissingOperators("detectron2._C")
    with pytest.raises(NotImplementedError) as caught:
        placeholder.nms_rotated(1, 2, 3)
    assert "detectron2._C.nms_rotated is a compiled operator" in str(caught.value)
    assert "Detectron2 built from source" in str(caught.value)


def test_placeholder_passes_for_a_module():
    """Copying, pickling and inspecting look for names that no module has."""
    placeholder = compat._MissingOperators("detectron2._C")
    for name in ("__wrapped__", "__file__", "__path__"):
        assert not hasattr(placeholder, name)
    assert placeholder.has_cuda() is False
    assert placeholder.get_compiler_version().startswith("none")


def test_layers_with_compiled_operators_import_on_this_installation():
    from detectron2.layers import DeformConv, ROIAlignRotated, nms_rotated

    assert all(map(callable, (DeformConv, ROIAlignRotated, nms_rotated)))


def test_using_one_of_them_here_says_what_to_do():
    import torch
    from detectron2 import layers  # noqa: F401  imports the operators, if any

    if not isinstance(sys.modules.get("detectron2._C"), compat._MissingOperators):
        pytest.skip("this Detectron2 has its operators, or does without")
    from detectron2.layers.rotated_boxes import pairwise_iou_rotated

    with pytest.raises(NotImplementedError, match="box_iou_rotated is a compiled operator"):
        pairwise_iou_rotated(torch.zeros(1, 5), torch.zeros(1, 5))


V06 = "import torch\nfrom detectron2 import _C\n\ndef iou(a, b):\n    return _C.box(a, b)\n"
MAIN = "import torch\n\ndef iou(a, b):\n    return torch.ops.detectron2.box(a, b)\n"
GUARDED = "try:\n    from detectron2 import _C\nexcept ImportError:\n    _C = None\n"


@pytest.mark.parametrize(
    ("source", "compiled", "operators", "evaluation"),
    [
        (V06, False, True, True),
        (V06, True, False, False),
        (MAIN, False, False, True),
        (GUARDED, False, False, True),
    ],
    ids=["0.6 without operators", "0.6 with operators", "main", "guarded"],
)
def test_only_a_detectron2_that_needs_the_placeholder_gets_it(
    tmp_path, monkeypatch, source, compiled, operators, evaluation
):
    layers = tmp_path / "detectron2" / "layers"
    layers.mkdir(parents=True)
    (layers / "rotated_boxes.py").write_text(source)
    if compiled:
        (layers.parent / "_C.py").write_text("")
    package = types.ModuleType("detectron2")
    package.__path__ = [str(layers.parent)]
    for name in ("detectron2._C", "detectron2.evaluation.fast_eval_api"):
        # Set first, so that what apply() leaves there is taken away again.
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "detectron2", package)
    compat.apply()
    compat.apply()
    assert ("detectron2._C" in sys.modules) == operators
    assert ("detectron2.evaluation.fast_eval_api" in sys.modules) == evaluation
    assert hasattr(package, "_C") == operators


def test_numpy_and_pillow_names_are_supplied_only_where_missing(monkeypatch):
    ours = object()
    monkeypatch.setattr(np, "str", ours, raising=False)
    monkeypatch.setattr(Image, "LINEAR", ours, raising=False)
    compat.apply()
    assert np.str is ours and Image.LINEAR is ours
    monkeypatch.delattr(np, "str")
    monkeypatch.delattr(Image, "LINEAR")
    compat.apply()
    assert np.str is str and Image.LINEAR == Image.BILINEAR
    assert np.float is float and np.int is int and np.object is object
    assert np.in1d([[1, 2], [3, 4]], [2, 3]).tolist() == [False, True, True, False]


def test_numpys_own_bool_stays_numpys():
    assert np.dtype(np.bool) == np.dtype(bool)
    if int(np.__version__.split(".")[0]) >= 2:
        assert np.bool is np.bool_


def test_fast_evaluation_agrees_with_pycocotools(tmp_path):
    from detectron2.evaluation.fast_eval_api import COCOeval_opt

    root = make_coco(tmp_path / "coco", images=8)
    rng = np.random.default_rng(0)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(root / "test.json"))
        annotations = json.loads((root / "test.json").read_text())["annotations"]
        detections = [
            {
                "image_id": a["image_id"],
                "category_id": a["category_id"],
                "bbox": (np.array(a["bbox"]) + rng.normal(0, 4, 4)).tolist(),
                "score": float(rng.random()),
            }
            for a in annotations * 3
        ]
        found = truth.loadRes(detections)
        stats = []
        for evaluator in (COCOeval_opt(truth, found, "bbox"), COCOeval(truth, found, "bbox")):
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
            stats.append(list(evaluator.stats[:12]))
    assert stats[0] == pytest.approx(stats[1], abs=1e-9)
    assert 0 < stats[0][0] < 1


@pytest.fixture
def detectron2_of_meta(tmp_path, monkeypatch):
    """A Detectron2 whose Cityscapes code imports as today's main does."""
    package = tmp_path / "detectron2"
    (package / "data" / "datasets").mkdir(parents=True)
    scripts = "deeplearning.projects.cityscapesApi.cityscapesscripts"
    (package / "data" / "datasets" / "cityscapes.py").write_text(
        f"def load():\n    from {scripts}.helpers.labels import labels\n    return labels\n"
    )
    module = types.ModuleType("detectron2")
    module.__path__ = [str(package)]
    monkeypatch.setitem(sys.modules, "detectron2", module)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == "deeplearning"]:
        del sys.modules[name]


def test_cityscapes_scripts_of_todays_main_are_the_public_ones(detectron2_of_meta):
    compat._supply_cityscapes_scripts()
    compat._supply_cityscapes_scripts()
    import cityscapesscripts.helpers.labels as public

    namespace = {}
    exec((detectron2_of_meta / "data/datasets/cityscapes.py").read_text(), namespace)
    assert namespace["load"]() is public.labels
    assert len(public.labels) == 35
    alias = importlib.import_module(
        "deeplearning.projects.cityscapesApi.cityscapesscripts.helpers.labels"
    )
    assert alias is public  # what is patched in one is patched in the other
    assert public.__spec__.name == public.__name__ == "cityscapesscripts.helpers.labels"
    assert importlib.util.find_spec("deeplearning.projects.other") is None


def test_a_detectron2_with_public_cityscapes_scripts_is_left_alone(detectron2_of_meta):
    (detectron2_of_meta / "data/datasets/cityscapes.py").write_text("import cityscapesscripts\n")
    finders = list(sys.meta_path)
    compat._supply_cityscapes_scripts()
    assert sys.meta_path == finders


def test_an_evaluator_that_can_be_told_how_to_read_labels_is_told():
    """main's SemSegEvaluator has an attribute for it; v0.6's opens the files itself."""
    told, untold = types.SimpleNamespace(sem_seg_loading_fn=open), types.SimpleNamespace()
    for evaluator in (told, untold):
        compat.set_label_reader(evaluator, len)
    assert told.sem_seg_loading_fn is len and vars(untold) == {}


@pytest.mark.parametrize(
    ("keys", "default"),
    [
        (("OUTPUT_DIR", "output_dir", "train.output_dir"), None),
        (("train.seed", "SEED"), -1),
        (("MODEL.RESNETS.DEPTH",), None),
        (("SEED.x", "train.seed"), -1),
        (("nothing",), None),
    ],
)
def test_keys_are_looked_up_as_detectron2_does_and_without_a_dump(monkeypatch, keys, default):
    from detectron2.config import get_cfg
    from detectron2.engine import defaults

    cfg, look_up = get_cfg(), defaults._try_get_key
    expected = look_up.__wrapped__(cfg, *keys, default=default)
    monkeypatch.setattr(type(cfg), "dump", None)
    assert look_up(cfg, *keys, default=default) == expected


def test_a_lazy_config_is_looked_up_by_detectron2_itself():
    from detectron2.engine import defaults
    from omegaconf import OmegaConf

    assert (
        defaults._try_get_key(OmegaConf.create({"train": {"seed": 3}}), "SEED", "train.seed") == 3
    )


def test_layer_norm_is_known_wherever_get_norm_has_been_imported():
    """Over the channels of each cell, as main's."""
    import torch
    from detectron2.layers import batch_norm, get_norm
    from detectron2.modeling.roi_heads import box_head, mask_head
    from torch import nn

    assert box_head.get_norm is mask_head.get_norm is batch_norm.get_norm is get_norm
    x = torch.randn(2, 6, 3, 5)
    norm = get_norm("LN", 6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    centered = x - x.mean(1, keepdim=True)
    expected = centered / (centered.square().mean(1, keepdim=True) + 1e-6).sqrt()
    expected = expected * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected)
    assert get_norm("", 6) is None
    assert isinstance(get_norm("GN", 32), nn.GroupNorm)
    assert isinstance(get_norm(nn.BatchNorm2d, 6), nn.BatchNorm2d)


def test_a_layer_norm_of_detectron2s_own_stays(monkeypatch):
    from detectron2.layers import batch_norm

    before = batch_norm.get_norm
    monkeypatch.setattr(batch_norm, "LayerNorm", object, raising=False)
    compat.supply_layer_norm()
    assert batch_norm.get_norm is before
