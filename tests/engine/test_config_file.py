import pytest
from detectron2.engine import defaults
from detectron2.utils.file_io import PathManager

from moco_d2.engine.config_file import whole_config_file


def test_a_file_is_written_completely_or_not_at_all(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("before")
    with whole_config_file():
        with defaults.PathManager.open(str(path)) as file:
            assert file.read() == "before"
        with pytest.raises(KeyboardInterrupt), defaults.PathManager.open(str(path), "w") as file:
            file.write("half")
            file.flush()
            raise KeyboardInterrupt
        assert path.read_text() == "before"
        with defaults.PathManager.open(str(path), "w") as file:
            file.write("whole")
            assert path.read_text() == "before"
        assert defaults.PathManager.isfile(str(path))
    assert path.read_text() == "whole"
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
    assert defaults.PathManager is PathManager
