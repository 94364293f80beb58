import collections
import itertools
import logging

import pytest
import torch
from support.toy_shards import color, make_shards, png, write_shard

from moco_d2.errors import UserError
from moco_d2.pretrain.data import sharded_stream as sharded_data
from moco_d2.pretrain.data.build import build_training_data
from moco_d2.pretrain.data.images import UnreadableImages
from moco_d2.pretrain.data.sharded_stream import ShardedData
from moco_d2.pretrain.data.shards import list_shards
from moco_d2.pretrain.data.stream import ViewMaker

UNEVEN = [5, 9, 1, 14, 8]  # 37 images


def sharded(shards, batch=4, *, shuffle=6, seed=1, block=None, **stream) -> ShardedData:
    views = ViewMaker(torch.nn.Identity(), names=("query",), seed=seed)
    data = ShardedData(shards, shuffle=shuffle, make_views=views, total_batch=batch, **stream)
    data.block = block or data.block
    return data


def take(data: ShardedData, count: int, start: int = 0) -> list[dict]:
    batches = data.batches(start)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def indices(batches: list[dict]) -> list[int]:
    return [index for batch in batches for index in batch["index"].tolist()]


def check_same(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys() and a["unreadable"] == b["unreadable"]
        assert all(torch.equal(a[k], b[k]) for k in a.keys() - {"unreadable"})


def test_index_says_which_image_it_is(tmp_path):
    (batch,) = take(sharded(list_shards(make_shards(tmp_path, UNEVEN)), 37), 1)
    assert sorted(batch["index"].tolist()) == list(range(37))
    for view, index in zip(batch["query"], batch["index"].tolist(), strict=True):
        assert tuple(view[:, 0, 0].tolist()) == color(index)
    assert batch["unreadable"] == [] and "label" not in batch


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world_size", [1, 2])
def test_each_image_comes_once_an_epoch_among_all_workers_and_processes(
    tmp_path, workers, world_size
):
    """Whatever the number and sizes of shards: here fewer shards than workers."""
    shards = list_shards(make_shards(tmp_path, UNEVEN))
    processes = [
        sharded(shards, 4, rank=r, world_size=world_size, num_workers=workers, block=5)
        for r in range(world_size)
    ]
    assert processes[0].iterations_per_epoch == 9  # one of 37 images is left over
    streams = [take(data, 3 * 9) for data in processes]
    epochs = [
        [indices(stream[9 * epoch : 9 * epoch + 9]) for stream in streams] for epoch in range(3)
    ]
    for epoch in epochs:
        together = list(itertools.chain(*epoch))
        assert len(together) == len(set(together)) == 36
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_starting_at_an_iteration_is_skipping_to_it(tmp_path, workers):
    shards = list_shards(make_shards(tmp_path, UNEVEN))
    data = sharded(shards, 4, num_workers=workers, block=5)
    straight = take(data, 24)
    for start in (1, 2, 8, 9, 13):
        check_same(take(data, 24 - start, start), straight[start:])
    assert indices(take(sharded(shards, 4, seed=2, block=5), 9)) != indices(straight[:9])


def test_reaching_a_place_decodes_nothing_and_opens_one_shard(tmp_path, monkeypatch):
    shards = list_shards(make_shards(tmp_path, [10] * 20))
    opened, decoded = [], []

    def counted(function, calls):
        def call(*args):
            calls.append(args)
            return function(*args)

        return call

    for name, calls in (("read_shard", opened), ("decode_pixels", decoded)):
        monkeypatch.setattr(sharded_data, name, counted(getattr(sharded_data, name), calls))
    take(sharded(shards, 2, block=10), 1, start=77)
    assert (len(decoded), len(opened)) == (2, 1)


def test_without_shuffling_shards_are_read_from_front_to_back(tmp_path):
    shards = list_shards(make_shards(tmp_path, [4, 4, 4]))
    found = indices(take(sharded(shards, 4, shuffle=0), 3))
    assert all(found[i : i + 4] == list(range(found[i], found[i] + 4)) for i in (0, 4, 8))
    shuffled = indices(take(sharded(shards, 4, shuffle=100), 3))
    assert sorted(shuffled) == sorted(found) == list(range(12)) and shuffled != found


def test_labels_of_every_image_are_classes(tmp_path):
    shards = list_shards(make_shards(tmp_path, [4, 5], labels=True))
    data = sharded(shards, 9)
    assert data.classes == ["0", "1", "2"]
    (batch,) = take(data, 1)
    assert batch["label"].tolist() == [index % 3 for index in batch["index"].tolist()]


def test_piped_shards_are_those_of_the_files(tmp_path):
    pattern = make_shards(tmp_path, [6, 6, 6])
    piped = sharded(list_shards(f"pipe:cat {pattern}", num_images=18), 3)
    check_same(take(piped, 12), take(sharded(list_shards(pattern), 3), 12))


def test_unequal_shards_of_a_stated_number_of_images(tmp_path, caplog):
    """What a shard lacks is filled with its neighbors; what it has beyond its part is not seen."""
    pattern = make_shards(tmp_path, [4, 8, 6])
    data = sharded(list_shards(pattern, num_images=18), 6)
    caplog.clear()
    assert list(data.shards.counts) == [6, 6, 6]
    batches = take(data, 3)
    seen = collections.Counter(indices(batches))
    assert seen.total() == 18 and len(seen) == 4 + 6 + 6
    notes = [skipped for batch in batches for skipped in batch["unreadable"]]
    assert len(notes) == 2 and not any(note.unread for note in notes)
    unreadable = UnreadableImages(0.0, num_images=18)
    with caplog.at_level(logging.WARNING):
        unreadable.add(notes, seen=18)
        unreadable.add(notes, seen=18)
    (line,) = caplog.messages
    assert "0.tar has at most 4 images, and MOCO.DATA.SHARD_IMAGES means 6" in line
    assert len(unreadable) == 0


def test_what_counted_shards_hold_is_used_and_no_more_is_expected(tmp_path):
    pattern = make_shards(tmp_path, [6, 0, 6, 6])
    cut = tmp_path / "2.tar"
    cut.write_bytes(cut.read_bytes()[: 3 * 1024 + 512 + 20])  # a member is a kilobyte
    (tmp_path / "3.tar").write_bytes(b"")
    shards = list_shards(pattern)
    batches = take(sharded(shards, 4), 2)
    assert sorted(indices(batches)) == list(range(8))
    assert all(batch["unreadable"] == [] for batch in batches)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("block", [3, 100])
def test_damage_met_while_reading_is_counted_and_filled(tmp_path, workers, block):
    """Shards that nobody counted: one truncated, one empty, one whose command fails."""
    make_shards(tmp_path, [6, 6, 6])
    cut = tmp_path / "1.tar"
    cut.write_bytes(cut.read_bytes()[: 2 * 1024 + 512 + 20])
    (tmp_path / "2.tar").write_bytes(b"")
    pattern = "pipe:cat " + str(tmp_path / "{0..3}.tar")
    shards = list_shards(pattern, num_images=24)
    data = sharded(shards, 4, num_workers=workers, block=block)
    straight = take(data, 12)
    assert set(indices(straight)) == {*range(6), 6}
    named = {skipped.name for batch in straight for skipped in batch["unreadable"]}
    for number, wanted in ((0, False), (1, True), (2, True), (3, True)):
        assert any(f"{number}.tar" in name for name in named) == wanted
    check_same(take(data, 7, 5), straight[5:])


def test_an_image_that_does_not_decode_is_replaced_from_its_block(tmp_path):
    members = {f"{i}.png": png(i) for i in range(8)} | {"3.png": b"<html>"}
    write_shard(tmp_path / "0.tar", members)
    (batch,) = take(sharded(list_shards(str(tmp_path / "0.tar")), 8), 1)
    ((name, why, _),) = batch["unreadable"]
    assert name == f"{tmp_path}/0.tar/3.png" and "has none of the formats that are read" in why
    assert len(batch["index"]) == 8 and set(batch["index"].tolist()) == {0, 1, 2, 4, 5, 6, 7}


def test_sets_without_a_readable_image_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    for workers in (0, 2):
        data = sharded(list_shards("pipe:false {0..1}", num_images=8), 4, num_workers=workers)
        with pytest.raises(UserError, match=r"^none of the 2 shards has a readable image"):
            take(data, 1)
    write_shard(tmp_path / "0.tar", {f"{i}.jpg": b"x" for i in range(5)})
    with pytest.raises(UserError, match=r"^100 images in a row cannot be read; the last: .*0\.tar"):
        take(sharded(list_shards(str(tmp_path / "0.tar")), 4), 1)


@pytest.mark.parametrize("where", ["workers", "device"])
def test_a_run_names_its_shards_in_the_config(make_config, tmp_path, where):
    pattern = make_shards(tmp_path, UNEVEN)
    cfg = make_config(
        {
            "DATASETS.TRAIN": (f"shards:{pattern}",),
            "MOCO.AUGMENTATION.WHERE": where,
            "MOCO.AUGMENTATION.SIZE": 16,
        }
    )
    data = build_training_data(cfg)
    assert (data.num_images, data.classes, data.iterations_per_epoch) == (37, [], 4)
    (batch,) = take(data, 1)
    views = data.views(batch, 0)
    assert views["query"].shape == views["key"].shape == (8, 3, 16, 16)
    assert views["query"].dtype == torch.float32
    cfg.MOCO.PRETEXT = "supervised"
    with pytest.raises(UserError, match=r"supervised pretraining needs labels"):
        build_training_data(cfg)
