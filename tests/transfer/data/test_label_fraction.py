"""MOCO.LABEL_FRACTION: the same images for every run."""

import pytest
from support.toy_data import SMALL_DETECTOR, make_voc

from moco_d2.config.load import load_config
from moco_d2.config.plain import matched_sha256, to_plain
from moco_d2.errors import UserError
from moco_d2.transfer.data.label_fraction import draw
from moco_d2.transfer.data.registered import register_datasets
from moco_d2.transfer.data.training_data import build_training_batches

DICTS = [{"file_name": f"/data/a/{i:06d}.jpg"} for i in range(2000)]
FIRST = ["000914.jpg", "001214.jpg", "001591.jpg", "001689.jpg"]


def names(dicts):
    return [d["file_name"].rpartition("/")[2] for d in dicts]


def test_a_draw_has_its_size_and_order_and_is_part_of_each_larger_one():
    small, large = draw(DICTS, 0.01), draw(DICTS, 0.1)
    assert (len(small), len(large)) == (20, 200)
    assert names(small) == sorted(names(small)) and set(names(small)) < set(names(large))
    assert draw(DICTS, 1.0) == DICTS
    assert len(draw(DICTS[:5], 0.01)) == 1


def test_a_draw_depends_on_the_names_only():
    """A change of the draw would be another task under the same name, so it is written here."""
    moved = [{"file_name": d["file_name"].replace("/data/a", "/other")} for d in DICTS]
    assert set(names(draw(moved[::-1], 0.1))) == set(names(draw(DICTS, 0.1)))
    assert names(draw(DICTS, 0.002)) == FIRST


def test_a_draw_is_even_over_the_images():
    halves = [int(name[:6]) < 1000 for name in names(draw(DICTS, 0.1))]
    assert 80 <= sum(halves) <= 120


def test_training_sees_the_drawn_images_with_any_seed(tmp_path):
    root = make_voc(tmp_path / "VOC2007", images=20)
    data = f"voc:{root}:trainval"
    register_datasets((data,))
    words = [*SMALL_DETECTOR, "DATASETS.TRAIN", f"('{data}',)"]

    def seen(*more):
        cfg = load_config("voc_C4_random.yaml", [*words, *more])
        return names(build_training_batches(cfg).dicts)

    everything = seen()
    drawn = seen("MOCO.LABEL_FRACTION", "0.5")
    assert len(drawn) == len(everything) // 2 and set(drawn) < set(everything)
    assert seen("MOCO.LABEL_FRACTION", "0.5", "SEED", "7") == drawn


def test_a_fraction_is_not_matched_with_the_whole_and_the_whole_is_as_before():
    whole, tenth = (
        to_plain(load_config("voc_C4_moco.yaml", ["MOCO.LABEL_FRACTION", value]))
        for value in ("1.0", "0.1")
    )
    assert matched_sha256(whole) != matched_sha256(tenth)
    before = to_plain(load_config("voc_C4_moco.yaml"))
    del before["MOCO"]["LABEL_FRACTION"]
    assert matched_sha256(before) == matched_sha256(whole)


@pytest.mark.parametrize("value", ["0", "1.5", "ten"])
def test_a_fraction_is_above_0_and_at_most_1(value):
    with pytest.raises(UserError, match=r"MOCO\.LABEL_FRACTION"):
        load_config("voc_C4_moco.yaml", ["MOCO.LABEL_FRACTION", value])
