"""moco_d2: does a self-supervised ResNet transfer to detection and segmentation?

    images -> pretrain -> checkpoint -> Detectron2 weights -> transfer -> run records -> tables

`import moco_d2` itself loads nothing heavy. It registers functions that run when a module of
Detectron2 is imported, or at once if it is imported already:

* ``detectron2``: fixes for current torch, NumPy and Pillow that v0.6 lacks (plugin/compat.py)
* ``detectron2.config.defaults``: our keys, ``cfg.MOCO`` (config/)
* ``detectron2.layers.batch_norm``: the norm ``LN``, which v0.6 lacks (plugin/compat.py)
* ``detectron2.modeling``: our heads and architectures (transfer/modeling/)
* ``detectron2.data.datasets``: the VOC segmentation datasets (transfer/data/voc_segmentation.py)
* ``detectron2.data.detection_utils``: checks of image files (untrusted_images.py), and 16-bit
  images (pixel_values.py)
* ``detectron2.data.datasets.cityscapes``: a loader that cannot hang (plugin/cityscapes_pool.py)
* ``detectron2.engine.defaults``: several CPU processes, and direct look-ups of config
  keys (plugin/compat.py)
* ``detectron2.checkpoint``: ``random://``, random initialization (transfer/weights.py), and
  published weights by name (checkpoint/weights_by_name.py)

``DETECTRON2_ENV_MODULE=moco_d2`` does the same, so Detectron2's own tools/train_net.py and
DefaultPredictor run our configs without any code from here.
"""

from moco_d2.plugin.after_import import after_import
from moco_d2.version import __version__ as __version__


def _prepare_detectron2() -> None:
    from moco_d2.plugin import compat

    compat.apply(after_import)


def _add_config() -> None:
    from detectron2.config import defaults

    from moco_d2.config.keys import add_moco_config

    add_moco_config(defaults._C)


def _prepare_engine() -> None:
    from moco_d2.plugin import compat

    compat.let_cpu_processes_share_a_model()
    compat.look_up_config_keys_directly()


def _supply_layer_norm() -> None:
    from moco_d2.plugin import compat

    compat.supply_layer_norm()


def _register_modeling() -> None:
    # Imported for their registration.
    from moco_d2.transfer.modeling import (  # noqa: F401
        backbones,
        build_vit,
        fcn_head,
        roi_heads,
    )


def _register_datasets() -> None:
    # Imported for its registration: where it is imported first, it is not complete here.
    from moco_d2.transfer.data import voc_segmentation  # noqa: F401


def _mend_cityscapes() -> None:
    from moco_d2.plugin.cityscapes_pool import leave_no_pool_behind

    leave_no_pool_behind()


def _guard_images() -> None:
    from moco_d2.pixel_values import teach_detectron2
    from moco_d2.untrusted_images import guard_detectron2

    guard_detectron2()
    teach_detectron2()


def _register_weights() -> None:
    from moco_d2.checkpoint.weights_by_name import register_path_handler
    from moco_d2.transfer.weights import register_path_handlers

    register_path_handler()
    register_path_handlers()


after_import("detectron2", _prepare_detectron2)
after_import("detectron2.config.defaults", _add_config)
after_import("detectron2.engine.defaults", _prepare_engine)
after_import("detectron2.layers.batch_norm", _supply_layer_norm)
after_import("detectron2.modeling", _register_modeling)
after_import("detectron2.data.datasets", _register_datasets)
after_import("detectron2.data.datasets.cityscapes", _mend_cityscapes)
after_import("detectron2.data.detection_utils", _guard_images)
after_import("detectron2.checkpoint", _register_weights)


def setup_environment() -> None:
    """Do nothing. Detectron2 calls it for DETECTRON2_ENV_MODULE, but the import is enough."""
