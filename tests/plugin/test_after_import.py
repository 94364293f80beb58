import importlib
import importlib.util
import os
import subprocess
import sys

import pytest

from moco_d2.plugin.after_import import after_import


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Function: source -> name of a module that can be imported and is not yet."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def make(source: str = "value = 1") -> str:
        name = f"after_import_example_{len(made)}"
        (tmp_path / f"{name}.py").write_text(source)
        made.append(name)
        return name

    yield make
    for name in made:
        sys.modules.pop(name, None)


def test_calls_back_once_right_after_the_import(module):
    name, calls = module(), []
    after_import(name, lambda: calls.append(sys.modules[name].value))
    assert calls == []
    importlib.import_module(name)
    assert calls == [1]
    importlib.import_module(name)
    importlib.reload(sys.modules[name])
    assert calls == [1]


def test_calls_back_at_once_for_what_is_already_imported(module):
    name, calls = module(), []
    importlib.import_module(name)
    after_import(name, lambda: calls.append(name))
    assert calls == [name]


def test_looking_whether_a_module_is_there_does_not_use_the_note_up(module):
    """What other libraries do: find_spec("detectron2") is not None."""
    name, calls = module(), []
    after_import(name, lambda: calls.append(name))
    assert importlib.util.find_spec(name) is not None
    assert calls == []
    importlib.import_module(name)
    assert calls == [name]


def test_an_import_that_failed_can_be_repeated(module, tmp_path):
    name, calls = module("import nothing_of_this_name"), []
    after_import(name, lambda: calls.append(name))
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)
    assert calls == []
    (tmp_path / f"{name}.py").write_text("value = 'now with another length'")
    importlib.invalidate_caches()
    importlib.import_module(name)
    assert calls == [name]


def test_the_module_looks_as_if_imported_without_us(module):
    watched, plain = module(), module()
    after_import(watched, lambda: None)
    a, b = importlib.import_module(watched), importlib.import_module(plain)
    assert type(a.__loader__) is type(b.__loader__)
    assert type(a.__spec__.loader) is type(b.__spec__.loader)


def test_a_module_that_is_not_installed_stays_so():
    after_import("nothing_of_this_name", lambda: 1 / 0)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("nothing_of_this_name")


def python(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_moco_d2_loads_nothing_heavy():
    heavy = "{'torch', 'torchvision', 'detectron2', 'numpy', 'yaml', 'PIL', 'matplotlib'}"
    assert python(f"import sys, moco_d2; print({heavy} & set(sys.modules))") == "set()"


def test_detectron2_knows_us_through_its_environment_variable_alone():
    found = python(
        "import sys, detectron2\n"
        "from detectron2.config import get_cfg\n"
        "import detectron2.modeling\n"
        "from detectron2.modeling import ROI_HEADS_REGISTRY\n"
        "from detectron2.utils.file_io import PathManager\n"
        "import detectron2.checkpoint\n"
        "print(get_cfg().MOCO.TEMPERATURE, 'Res5ROIHeadsExtraNorm' in ROI_HEADS_REGISTRY,\n"
        "      type(PathManager._PathManager__get_path_handler('random://x')).__module__)",
        DETECTRON2_ENV_MODULE="moco_d2",
    )
    assert found == "0.07 True moco_d2.transfer.weights"
