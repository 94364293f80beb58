"""A test set that numbers its classes differently from the training is found in an evaluation."""

import pytest
from support.toy_data import make_voc

from moco_d2.config.load import load_config
from moco_d2.transfer.data.registered import register_datasets
from moco_d2.transfer.preflight.trained_classes import check_trained_classes


@pytest.fixture
def findings(tmp_path):
    """A function from the classes of a test set to the findings; the run had dark, light."""
    trained, tested = (make_voc(tmp_path / name, images=2) for name in ("trained", "tested"))
    run = tmp_path / "run"
    run.mkdir()
    cfg = load_config("voc_C4_random.yaml", ["DATASETS.TRAIN", f"voc:{trained}:trainval"])
    (run / "config.yaml").write_text(cfg.dump())

    def found(*classes):
        (tested / "classes.txt").write_text("\n".join(classes))
        words = ["DATASETS.TEST", f"voc:{tested}:test", "MODEL.WEIGHTS", f"{run}/model_final.pth"]
        cfg = load_config("voc_C4_random.yaml", words)
        register_datasets(cfg.DATASETS.TEST)
        return list(check_trained_classes(cfg))

    found.config = run / "config.yaml"
    return found


def test_another_order_is_named(findings):
    (finding,) = findings("light", "dark")
    assert "class 0 is 'light' in dataset 'voc:" in finding.message
    assert "model_final.pth learned it as 'dark' of 'voc:" in finding.message


def test_the_same_order_is_sound(findings):
    assert findings("dark", "light") == []


@pytest.mark.parametrize("content", [None, "- 1\n", "DATASETS: {TRAIN: [nowhere], TEST: [x]}\n"])
def test_nothing_is_known_without_the_runs_config_or_data(findings, content):
    if content is None:
        findings.config.unlink()
    else:
        findings.config.write_text(content)
    assert findings("light", "dark") == []
