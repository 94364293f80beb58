import itertools

import pytest
import torch
from PIL import Image
from toy_data import CLASSES

from moco_d2.errors import UserError
from moco_d2.pretrain.augmentation import build_augmentation
from moco_d2.pretrain.data import (
    EndlessBatches,
    Views,
    build_loader,
    list_images,
    list_training_images,
    read_image,
)


def save_images(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)


def test_class_folders_give_sorted_labels(tmp_path):
    save_images(tmp_path / "b" / "deep", "1.jpg")
    save_images(tmp_path / "a", "2.png", "1.PNG")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "empty").mkdir()
    images = list_images(tmp_path)
    assert images.paths == [str(tmp_path / name) for name in ("a/1.PNG", "a/2.png", "b/deep/1.jpg")]
    assert (images.labels, images.classes, len(images)) == ([0, 0, 1], ["a", "b"], 3)


def test_images_beside_class_folders_are_refused(tmp_path):
    save_images(tmp_path / "cat", "a.png")
    save_images(tmp_path, "stray.png")
    with pytest.raises(UserError, match=r"images \(stray.png\) beside class folders \(cat\)"):
        list_images(tmp_path)


def test_flat_folder_has_no_labels(tmp_path):
    save_images(tmp_path, "b.png", "a.jpg")
    images = list_images(tmp_path)
    assert images.paths == [str(tmp_path / "a.jpg"), str(tmp_path / "b.png")]
    assert (images.labels, images.classes) == (None, [])


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=f"dataset folder {tmp_path}/no does not exist"):
        list_images(tmp_path / "no")


def test_folder_without_images_is_named(tmp_path):
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "x.txt").write_text("x")
    with pytest.raises(UserError, match=f"no images in {tmp_path}"):
        list_images(tmp_path)


def test_training_images_are_checked_against_what_the_run_needs(make_config, images, tmp_path):
    assert list_training_images(make_config()).classes == list(CLASSES)
    with pytest.raises(UserError, match=r"24 images, less than one batch of 32.*IMS_PER_BATCH"):
        list_training_images(make_config({"SOLVER.IMS_PER_BATCH": 32}))
    with pytest.raises(UserError, match=r"set DATASETS\.TRAIN.*names 2 now"):
        list_training_images(make_config({"DATASETS.TRAIN": (str(images),) * 2}))
    save_images(tmp_path / "flat", *(f"{i}.png" for i in range(8)))
    flat = {"DATASETS.TRAIN": (str(tmp_path / "flat"),)}
    assert len(list_training_images(make_config(flat))) == 8
    with pytest.raises(UserError, match="supervised pretraining needs labels"):
        list_training_images(make_config({**flat, "MOCO.PRETEXT": "supervised"}))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "I;16", "1"])
def test_every_kind_of_picture_is_read_as_rgb(tmp_path, mode):
    Image.new(mode, (5, 4)).save(tmp_path / "x.png")
    image = read_image(str(tmp_path / "x.png"))
    assert (image.mode, image.size) == ("RGB", (5, 4))


def test_a_file_that_does_not_decode_is_named(tmp_path):
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match=f"image {damaged} does not decode"):
        read_image(str(damaged))
    Image.effect_noise((64, 64), 50).save(damaged)
    damaged.write_bytes(damaged.read_bytes()[:-500])
    with pytest.raises(UserError, match=f"image {damaged} does not decode"):
        read_image(str(damaged))


def test_a_picture_too_large_to_be_one_is_named(tmp_path, monkeypatch):
    Image.new("RGB", (30, 30)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"bomb\.png does not decode"):
        read_image(str(tmp_path / "bomb.png"))


def take(batches: EndlessBatches, count: int) -> list[list[tuple[int, int]]]:
    return list(itertools.islice(batches, count))


def test_every_image_comes_at_most_once_an_epoch_in_a_new_order():
    epochs = []
    found = take(EndlessBatches(23, 5, seed=1), 3 * 4)  # 4 full batches an epoch, 3 images left
    for epoch in range(3):
        indices = [index for batch in found[4 * epoch : 4 * epoch + 4] for _, index in batch]
        assert len(set(indices)) == 20 and set(indices) <= set(range(23))
        epochs.append(indices)
    assert len({tuple(indices) for indices in epochs}) == 3
    assert [position for batch in found for position, _ in batch] == list(range(60))
    assert take(EndlessBatches(23, 5, seed=1), 12) == found
    assert take(EndlessBatches(23, 5, seed=2), 12) != found


@pytest.mark.parametrize("start", [1, 3, 4, 9])
def test_starting_at_an_iteration_is_skipping_to_it(start):
    straight = take(EndlessBatches(23, 5, seed=1), 12)
    resumed = EndlessBatches(23, 5, seed=1, start_iteration=start)
    assert take(resumed, 12 - start) == straight[start:]


def test_processes_share_a_batch_in_rank_order():
    whole = take(EndlessBatches(23, 6, seed=1), 7)
    shares = [take(EndlessBatches(23, 6, seed=1, rank=rank, world_size=2), 7) for rank in range(2)]
    assert [first + second for first, second in zip(*shares, strict=True)] == whole
    assert all(len(batch) == 3 for share in shares for batch in share)


def test_a_batch_that_does_not_divide_among_processes_is_refused():
    with pytest.raises(UserError, match=r"IMS_PER_BATCH 6 does not divide among 4 processes"):
        EndlessBatches(23, 6, seed=1, rank=0, world_size=4)


def views(folder, seed=7) -> Views:
    return Views(
        list_images(folder),
        build_augmentation("v2", size=16),
        names=("query", "key"),
        seed=seed,
    )


def test_views_do_not_depend_on_the_workers(images):
    results = []
    for workers in (0, 2):
        torch.manual_seed(workers)  # what the process has drawn before has no influence either
        batches = EndlessBatches(24, 8, seed=7)
        loader = build_loader(views(images), batches, num_workers=workers)
        results.append(list(itertools.islice(loader, 4)))
    for alone, with_workers in zip(*results, strict=True):
        assert alone.keys() == with_workers.keys() == {"query", "key", "label"}
        assert alone["query"].shape == (8, 3, 16, 16)
        for name, tensor in alone.items():
            assert torch.equal(tensor, with_workers[name])


def test_views_follow_seed_and_position(images):
    sample = views(images)[3, 5]
    again = views(images)[3, 5]
    assert all(torch.equal(sample[name], again[name]) for name in ("query", "key"))
    assert not torch.equal(sample["query"], sample["key"])
    assert not torch.equal(sample["query"], views(images)[4, 5]["query"])
    assert not torch.equal(sample["query"], views(images, seed=8)[3, 5]["query"])
    assert sample["label"] == 0 and views(images)[3, 20]["label"] == 1


def test_reading_leaves_the_process_generator_alone(images):
    """The order in which keys are shuffled comes from it, and must survive a resume."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for workers in (0, 1):
        loader = build_loader(views(images), EndlessBatches(24, 8, seed=7), num_workers=workers)
        next(iter(loader))
        assert torch.equal(torch.get_rng_state(), before)
