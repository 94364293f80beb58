import itertools
import time

import pytest
import torch
from PIL import Image
from support.toy_data import CLASSES

from moco_d2.engine.seeding import Purpose, derive_seed
from moco_d2.errors import UserError
from moco_d2.pretrain.augmentation.views import (
    AUGMENTATIONS,
    SECOND_VIEW,
    build_augmentation,
    build_crop,
)
from moco_d2.pretrain.data.build import build_training_data, build_views, view_names
from moco_d2.pretrain.data.image_list import ImageList
from moco_d2.pretrain.data.listed_stream import ListedData
from moco_d2.pretrain.data.sources import list_images
from moco_d2.pretrain.data.stream import ViewMaker


def listed(folder, batch=8, *, seed=7, size=16, **stream) -> ListedData:
    views = ViewMaker(build_augmentation("v2", size=size), names=("query", "key"), seed=seed)
    return ListedData(list_images(folder), make_views=views, total_batch=batch, **stream)


def order(num_images: int, batch: int, count: int, start: int = 0, *, seed=1, **stream):
    """(position, index) of the first batches of a set that need not exist."""
    views = ViewMaker(torch.nn.Identity(), names=(), seed=seed)
    images = ImageList([""] * num_images, None, [])
    data = ListedData(images, make_views=views, total_batch=batch, **stream)
    return list(itertools.islice(data.loader(start).batch_sampler, count))


def take(data: ListedData, count: int, start: int = 0) -> list[dict]:
    batches = data.batches(start)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def check_same(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys() and a["unreadable"] == b["unreadable"]
        assert all(torch.equal(a[k], b[k]) for k in a.keys() - {"unreadable"})


def test_every_image_comes_at_most_once_an_epoch_in_a_new_order():
    epochs = []
    found = order(23, 5, 3 * 4)  # 4 full batches an epoch, 3 images left
    for epoch in range(3):
        indices = [index for batch in found[4 * epoch : 4 * epoch + 4] for _, index in batch]
        assert len(set(indices)) == 20 and set(indices) <= set(range(23))
        epochs.append(indices)
    assert len({tuple(indices) for indices in epochs}) == 3
    assert [position for batch in found for position, _ in batch] == list(range(60))
    assert order(23, 5, 12) == found
    assert order(23, 5, 12, seed=2) != found


@pytest.mark.parametrize("start", [1, 3, 4, 9])
def test_starting_at_an_iteration_is_skipping_to_it(start):
    assert order(23, 5, 12 - start, start) == order(23, 5, 12)[start:]


def test_processes_share_a_batch_in_rank_order():
    whole = order(23, 6, 7)
    shares = [order(23, 6, 7, rank=rank, world_size=2) for rank in range(2)]
    assert [first + second for first, second in zip(*shares, strict=True)] == whole
    assert all(len(batch) == 3 for share in shares for batch in share)


def test_views_do_not_depend_on_the_workers(images):
    results = []
    for workers in (0, 2):
        torch.manual_seed(workers)  # what the process has drawn before has no influence either
        results.append(take(listed(images, num_workers=workers), 4))
    check_same(*results)
    batch = results[0][0]
    assert batch.keys() == {"query", "key", "index", "label", "unreadable"}
    assert batch["query"].shape == batch["key"].shape == (8, 3, 16, 16)
    assert batch["label"].tolist() == [index // 12 for index in batch["index"].tolist()]


def test_index_says_which_image_it_is(tmp_path):
    for i in range(9):
        Image.new("L", (8, 8), 20 * i).save(tmp_path / f"{i}.png")
    views = ViewMaker(build_crop(size=4), names=("query",), seed=0)
    data = ListedData(list_images(tmp_path), make_views=views, total_batch=9)
    for batch in take(data, 2):
        assert sorted(batch["index"].tolist()) == list(range(9))
        assert torch.equal(batch["query"][:, 0, 0, 0], 20 * batch["index"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_is_the_uninterrupted_one(images, workers):
    data = listed(images, num_workers=workers)
    check_same(take(data, 3, 4), take(data, 7)[4:])


def test_views_follow_seed_and_position(images):
    samples = listed(images).samples
    sample, again, other = samples[3, 5], samples[3, 5], samples[4, 5]
    assert all(torch.equal(sample[name], again[name]) for name in ("query", "key"))
    assert not torch.equal(sample["query"], sample["key"])
    assert not torch.equal(sample["query"], other["query"])
    assert not torch.equal(sample["query"], listed(images, seed=8).samples[3, 5]["query"])
    assert sample["label"] == 0 and samples[3, 20]["label"] == 1


def test_seeds_of_different_purposes_and_places_differ():
    seeds = {derive_seed(p, 1, i) for p in Purpose for i in range(100)}
    assert len(seeds) == 100 * len(Purpose)
    # A checkpoint resumes on another machine and after an update of anything.
    assert derive_seed(Purpose.ORDER, 1, 2) == 3071860871404845570
    assert derive_seed(Purpose.VIEWS, 1, 2**40) == 17707846712354311795


def test_reading_leaves_the_process_generator_alone(images):
    """The order in which keys are shuffled comes from it, and must survive a resume."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for workers in (0, 1):
        take(listed(images, num_workers=workers), 1)
        assert torch.equal(torch.get_rng_state(), before)


def test_closing_the_batches_ends_the_workers_at_once(images):
    others = set(torch.multiprocessing.active_children())
    batches = listed(images, num_workers=2).batches(0)
    next(batches)
    workers = set(torch.multiprocessing.active_children()) - others
    assert len(workers) == 2
    start = time.monotonic()
    batches.close()
    assert not any(worker.is_alive() for worker in workers)
    assert time.monotonic() - start < 4  # waiting for each would take 5 seconds


@pytest.fixture
def damaged(tmp_path):
    """A flat folder of 12 images, of which 2 and 5 do not decode."""
    for i in range(12):
        Image.new("L", (8, 8), 20 * i).save(tmp_path / f"{i:02d}.png")
    for i in (2, 5):
        (tmp_path / f"{i:02d}.png").write_text("not a picture")
    return tmp_path


def test_another_image_takes_the_place_of_an_unreadable_one(damaged):
    data = listed(damaged, 4)
    straight = take(data, 6)
    check_same(take(listed(damaged, 4, num_workers=2), 6), straight)
    check_same(take(data, 4, 2), straight[2:])
    assert all(len(batch["index"]) == 4 for batch in straight)
    for epoch in (straight[:3], straight[3:]):
        named = {skipped.name for batch in epoch for skipped in batch["unreadable"]}
        assert named == {f"{damaged}/02.png", f"{damaged}/05.png"}
        indices = [index for batch in epoch for index in batch["index"].tolist()]
        assert set(range(12)) - set(indices) == {2, 5}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_set_without_any_readable_image_is_one_sentence(tmp_path, workers):
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_text("not a picture")
    with pytest.raises(UserError, match=r"^100 images in a row cannot be read; the last: .*\.jpg"):
        take(listed(tmp_path, 2, num_workers=workers), 1)


def test_data_are_checked_against_what_the_run_needs(make_config, images, damaged):
    data = build_training_data(make_config())
    assert (data.classes, data.num_images, data.iterations_per_epoch) == (list(CLASSES), 24, 3)
    flat = {"DATASETS.TRAIN": (str(damaged),), "OUTPUT_DIR": f"{damaged} of runs"}
    assert build_training_data(make_config(flat)).classes == []
    for overrides, message in (
        ({"SOLVER.IMS_PER_BATCH": 32}, r"24 images, fewer than one batch of 32.*IMS_PER_BATCH"),
        ({"DATASETS.TRAIN": (str(images),) * 2}, r"DATASETS\.TRAIN must name one dataset, got 2"),
        ({**flat, "MOCO.PRETEXT": "supervised"}, r"supervised pretraining needs labels"),
    ):
        with pytest.raises(UserError, match=message):
            build_training_data(make_config(overrides))
    with pytest.raises(UserError, match=r"IMS_PER_BATCH 8 is not divisible by 3 processes"):
        build_training_data(make_config(), rank=0, world_size=3)


def test_a_list_file_is_a_dataset(make_config, images, tmp_path):
    lines = [f"{images}/{name}/{i}.png {name}" for name in CLASSES for i in range(12)]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    data = build_training_data(
        make_config(
            {"DATASETS.TRAIN": (f"list:{tmp_path}/train.txt",), "MOCO.PRETEXT": "supervised"}
        )
    )
    (batch,) = take(data, 1)
    assert data.classes == list(CLASSES)
    assert batch.keys() == {"query", "index", "label", "unreadable"}
    assert batch["label"].tolist() == [index // 12 for index in batch["index"].tolist()]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("NAME", ("v1", "v2")),
        ("SIZE", (16, 20)),
        ("CROP_SCALE", ((0.05, 0.1), (0.95, 1.0))),
        ("BLUR_SIGMA", ((0.1, 0.1), (9.0, 9.0))),
    ],
)
def test_the_settings_of_the_augmentation_reach_the_workers(make_config, key, values):
    image = Image.effect_mandelbrot((64, 48), (-2, -1.5, 1, 1.5), 100).convert("RGB")
    words = {"NAME": "name", "SIZE": "size", "CROP_SCALE": "crop_scale", "BLUR_SIGMA": "blur_sigma"}
    seen = []
    for value in values:
        settings = {"NAME": "v2", "SIZE": 16, "CROP_SCALE": (0.2, 1.0), "BLUR_SIGMA": (0.1, 2.0)}
        settings[key] = value
        cfg = make_config({f"MOCO.AUGMENTATION.{name}": of_it for name, of_it in settings.items()})
        transform = build_views(cfg)["make_views"].transform
        wanted = build_augmentation(**{words[name]: of_it for name, of_it in settings.items()})
        for seed in range(8):  # the blur is done to half of the views
            torch.manual_seed(seed)
            seen.append(transform(image))
            torch.manual_seed(seed)
            assert torch.equal(seen[-1], wanted(image))
    pairs = zip(seen[:8], seen[8:], strict=True)
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("where", ["workers", "device"])
def test_the_views_of_v3_are_made_differently(make_config, where):
    settings = {"MOCO.AUGMENTATION.WHERE": where, "MOCO.DICTIONARY.NAME": "MemoryBank"}
    cfg = make_config(settings, config="moco_v3_ViT_S_300ep.yaml")
    assert view_names(cfg) == ("query", "key")
    views = build_views(cfg)
    if where == "device":
        first, second = views["device_augmentation"], views["other_device_augmentations"]["key"]
        assert (first.recipe, second.recipe) == (AUGMENTATIONS["v3"], SECOND_VIEW["v3"])
        data = build_training_data(cfg)
        data.device_augmentation = lambda crops, generator: crops + 1
        data.other_device_augmentations = {"key": lambda crops, generator: crops + 2}
        seen = data.views({"query": torch.zeros(1), "key": torch.zeros(1)}, 0)
        assert (seen["query"].item(), seen["key"].item()) == (1, 2)
        return
    image = Image.effect_mandelbrot((64, 48), (-2, -1.5, 1, 1.5), 100).convert("RGB")
    for position in range(8):
        made = views["make_views"](image, position)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(Purpose.VIEWS, 1, position))
            for name, recipe in (("query", "v3"), ("key", SECOND_VIEW["v3"])):
                wanted = build_augmentation(recipe, size=32, crop_scale=(0.08, 1.0))(image)
                assert torch.equal(made[name], wanted)


def test_a_memory_bank_needs_one_view(make_config):
    bank = {"MOCO.DICTIONARY.NAME": "MemoryBank"}
    assert view_names(make_config()) == ("query", "key")
    assert view_names(make_config(bank)) == ("query",)
    assert view_names(make_config({**bank, "MOCO.SYMMETRIC": True})) == ("query", "key")
    assert view_names(make_config({"MOCO.PRETEXT": "supervised"})) == ("query",)


def test_views_of_the_device_follow_seed_iteration_and_rank(make_config):
    def first(iteration=0, rank=0, seed=1):
        cfg = make_config({"MOCO.AUGMENTATION.WHERE": "device", "SEED": seed})
        data = build_training_data(cfg, rank=rank, world_size=2)
        crops = {name: torch.full((4, 3, 8, 8), 90, dtype=torch.uint8) for name in ("query", "key")}
        crops["index"] = torch.arange(4)
        views = data.views(crops, iteration)
        assert torch.equal(views["index"], crops["index"])
        assert crops["query"].eq(90).all()
        return views["query"], views["key"]

    query, key = first()
    assert query.dtype == torch.float32 and torch.equal(query, first()[0])
    for other in (key, first(iteration=1)[0], first(rank=1)[0], first(seed=2)[0]):
        assert not torch.equal(query, other)


@pytest.mark.parametrize("pretext", ["moco", "supervised"])
@pytest.mark.parametrize("where", ["workers", "device"])
def test_views_travel_as_bytes(make_config, where, pretext):
    """A float would take four: 9.9 GB of shared memory for 16 workers with batches of 256."""
    cfg = make_config({"MOCO.AUGMENTATION.WHERE": where, "MOCO.PRETEXT": pretext})
    data = build_training_data(cfg)
    (batch,) = take(data, 1)
    views = [batch[name] for name in view_names(cfg)]
    travelling = sum(view.nbytes for view in views) / data.local_batch_size
    assert travelling == data.image_bytes == len(views) * 3 * cfg.MOCO.AUGMENTATION.SIZE**2
    others = [v for v in batch.values() if isinstance(v, torch.Tensor) and v.dim() < 4]
    assert sum(other.nbytes for other in others) <= 16 * data.local_batch_size
    finished = data.views(batch, 0)
    assert all(finished[name].dtype == torch.float32 for name in view_names(cfg))


@pytest.mark.parametrize(
    ("workers", "batch", "ahead"), [(0, 256, None), (2, 256, 2), (8, 256, 2), (16, 256, 1)]
)
def test_workers_of_one_process_share_at_most_2_5_gb(workers, batch, ahead):
    views = ViewMaker(torch.nn.Identity(), names=(), seed=0)
    images = ImageList([""] * batch, None, [])
    stream = {"total_batch": batch, "num_workers": workers, "image_bytes": 2 * 3 * 224**2}
    data = ListedData(images, make_views=views, **stream)
    loader = data.loader(0)
    assert data.prefetch_factor == loader.prefetch_factor == ahead
    assert data.shared_bytes(ahead or 0) <= 2.5e9
