"""Processes that disagree. Whole runs of them are in campaigns/faults.py, and one of those in
tests/campaigns/test_faults.py.
"""

import pytest
import torch
from detectron2.utils import comm

from moco_d2.config.load import load_config
from moco_d2.engine import consistency
from moco_d2.engine.consistency import check_agreement, fingerprint, of_images, of_run
from moco_d2.engine.exchange import decided_by_main
from moco_d2.errors import UserError


@pytest.fixture
def ranks(monkeypatch):
    """Let this process be the last of several with the facts given."""

    def be(*others):
        monkeypatch.setattr(comm, "get_world_size", lambda: len(others) + 1)
        monkeypatch.setattr(comm, "all_gather", lambda mine: [*others, mine])

    return be


def test_what_differs_is_named_with_the_ranks(ranks):
    ranks({"a": "1", "b": "2"}, {"a": "1", "b": "3"})
    with pytest.raises(UserError, match="not agree: b is 2 on rank 0, 2 and 3 on rank 1; start"):
        check_agreement({"a": 1, "b": 2})


def test_many_differences_are_one_sentence(ranks):
    ranks(dict.fromkeys("abcdef", "0"))
    with pytest.raises(UserError, match=r"a is 0 on rank 0 and 1 on rank 1; b .*; and 3 more; sta"):
        check_agreement(dict.fromkeys("abcdef", 1))


def test_a_key_that_others_lack_differs(ranks):
    ranks({"a": "1"})
    with pytest.raises(UserError, match="b is absent on rank 0 and 2 on rank 1"):
        check_agreement({"a": 1, "b": 2})


def test_agreement_is_silent(ranks):
    ranks({"a": "[1, 2]"}, {"a": "[1, 2]"})
    check_agreement({"a": [1, 2]})


def test_one_process_compares_nothing():
    check_agreement({"a": object()})


def refuse():
    raise UserError("rank 0 cannot", "write")


def test_the_main_process_decides_for_all(ranks):
    assert decided_by_main(lambda: 1) == 1
    with pytest.raises(UserError, match="^rank 0 cannot\nwrite$"):
        decided_by_main(refuse)
    ranks(("of rank 0", None))
    assert decided_by_main(lambda: "of another") == "of rank 0"
    ranks((None, ("rank 0 cannot", "write")))
    with pytest.raises(UserError, match="^rank 0 cannot\nwrite$"):
        decided_by_main(lambda: "of another")


def test_the_main_process_tells_the_others_what_it_refuses(monkeypatch):
    told = []
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "all_gather", lambda mine: told.append(mine) or [mine, None])
    with pytest.raises(UserError, match="^rank 0 cannot\nwrite$"):
        decided_by_main(refuse)
    assert told == [(None, ("rank 0 cannot", "write"))]


def test_the_facts_of_a_run_are_its_config_and_code(monkeypatch, tmp_path):
    cfg = load_config("voc_C4_random.yaml", ["SEED", "3"])
    facts = of_run(cfg)
    assert facts["SEED"] == 3 and facts["SOLVER.BASE_LR"] == 0.02
    (tmp_path / "moco.py").write_text("other = 1")
    monkeypatch.setattr(consistency, "_PACKAGE", tmp_path)
    consistency._of_code.cache_clear()
    other = of_run(cfg)
    consistency._of_code.cache_clear()
    assert [name for name in facts if facts[name] != other[name]] == ["the code of moco_d2"]


def test_fingerprints_follow_values():
    tensors = [torch.arange(4.0), torch.tensor(7), torch.zeros(2, 2, dtype=torch.bfloat16)]
    assert fingerprint(tensors) == fingerprint([t.clone() for t in tensors])
    tensors[0][2] += 1e-6
    assert fingerprint(tensors) != fingerprint([torch.arange(4.0), *tensors[1:]])
    images = [{"file_name": "a", "height": 1, "width": 2, "annotations": [{"bbox": [1, 2, 3, 4]}]}]
    changed = [{**images[0], "annotations": [{"bbox": [1, 2, 3, 5]}]}]
    assert of_images(images) != of_images(changed) == of_images(changed)
