import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from moco_d2.config.load import load_config
from moco_d2.errors import UserError
from moco_d2.transfer.data.registered import register_datasets
from moco_d2.transfer.data.training_data import TrainingBatches, build_training_batches, seeded

IMAGES = 10


def dataset():
    """Every third is a portrait."""
    sizes = [(40, 60) if i % 3 == 0 else (60, 40) for i in range(IMAGES)]
    return [
        {"file_name": f"{i}.jpg", "index": i, "width": w, "height": h}
        for i, (w, h) in enumerate(sizes)
    ]


def draw(sample):
    """A mapper with the randomness of all three generators."""
    drawn = (random.random(), float(np.random.rand()), float(torch.rand(())))
    return {**sample, "drawn": drawn}


def batches(count, *, start=0, workers=0, seed=3, mapper=draw, **kwargs):
    data = TrainingBatches(
        dataset(),
        mapper=mapper,
        build_sampler=lambda seed: TrainingSampler(IMAGES, seed=seed),
        batch_size=2,
        seed=seed,
        num_workers=workers,
        **kwargs,
    )
    data.start = start
    return [[(s["index"], s["drawn"]) for s in batch] for batch in itertools.islice(data, count)]


def test_a_start_further_on_gives_the_rest():
    whole = batches(23)
    assert batches(6, start=17) == whole[17:]
    assert len({drawn for batch in whole for _, drawn in batch}) == 46


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(workers):
    assert batches(7, start=2, workers=workers) == batches(7, start=2)


def test_processes_share_the_images_and_no_choice(monkeypatch):
    ranks = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        ranks.append([sample for batch in batches(20) for sample in batch])
    first, second = ([drawn for _, drawn in samples] for samples in ranks)
    assert not set(first) & set(second)
    assert [index for index, _ in ranks[0]] != [index for index, _ in ranks[1]]


def test_portraits_and_landscapes_are_apart():
    for batch in batches(20):
        assert len({index % 3 == 0 for index, _ in batch}) == 1


def test_the_seed_is_of_order_and_augmentation():
    other = batches(10, seed=4)
    assert [[i for i, _ in b] for b in batches(10)] != [[i for i, _ in b] for b in other]
    assert not {d for b in batches(10) for _, d in b} & {d for b in other for _, d in b}


def test_another_stream_starts_anew_and_shares_no_choice():
    data = TrainingBatches(
        dataset(),
        mapper=draw,
        build_sampler=lambda seed: TrainingSampler(IMAGES, seed=seed),
        batch_size=2,
        seed=3,
    )
    first, again = ([s for b in itertools.islice(data.other(1), 5) for s in b] for _ in range(2))
    assert first == again
    training = {s["drawn"] for batch in itertools.islice(data, 20) for s in batch}
    assert not training & {sample["drawn"] for sample in first}


def test_generators_of_the_process_stay_as_they_are():
    def state():
        numpy = np.random.get_state()
        return random.getstate(), numpy[1].tolist(), numpy[2], torch.get_rng_state().tolist()

    before = state()
    batches(3)
    assert state() == before


def test_seeded_restores_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(KeyError), seeded(1):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_sizes_that_the_dataset_leaves_out_are_read_from_the_images(tmp_path):
    files = []
    for i, size in enumerate([(40, 60), (60, 40), (40, 60), (60, 40)]):
        files.append({"file_name": str(tmp_path / f"{i}.png"), "index": i})
        Image.new("RGB", size).save(files[-1]["file_name"])
    data = TrainingBatches(
        files,
        mapper=dict,
        build_sampler=lambda seed: TrainingSampler(4, seed=seed),
        batch_size=2,
        seed=1,
    )
    for batch in itertools.islice(data, 6):
        assert len({sample["index"] % 2 for sample in batch}) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_used_is_named(workers):
    def fail(sample):
        raise OSError("image file is truncated")

    with pytest.raises(UserError, match=r"^training image \d\.jpg cannot be used \(image file is"):
        batches(1, mapper=fail, workers=workers)


def test_an_image_at_which_pillows_reader_stumbles_is_named(tmp_path):
    """Over a comment that unpacks to more than Pillow allows: a ValueError."""
    comment = PngInfo()
    comment.add_text("Comment", "\0" * (2 << 20), zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=comment)
    with pytest.raises(UserError, match=r"^training image .* \(Decompressed data too large"):
        batches(1, mapper=lambda sample: Image.open(tmp_path / "x.png").load())


def test_a_mistake_of_the_program_keeps_its_name():
    def fail(sample):
        raise ValueError("of ours")

    with pytest.raises(ValueError, match="^of ours"):
        batches(1, mapper=fail)


@pytest.fixture
def cfg(tiny, words, voc):
    def cfg(*overrides):
        cfg = load_config("voc_C4_random.yaml", [*tiny, *words(voc), *overrides])
        register_datasets(cfg.DATASETS.TRAIN)
        return cfg

    return cfg


def test_the_order_is_detectron2s(cfg):
    """Its TrainingSampler and AspectRatioGroupedDataset, given our seed."""
    settings = cfg("SOLVER.IMS_PER_BATCH", "4", "SEED", "9")
    ours = build_training_batches(settings)
    theirs = build_detection_train_loader(settings, sampler=TrainingSampler(6, seed=9))
    for batch, expected in itertools.islice(zip(ours, theirs, strict=False), 8):
        assert [s["file_name"] for s in batch] == [s["file_name"] for s in expected]
        assert {"image", "instances", "width"} <= set(batch[0])


def test_a_pass_has_its_part_of_the_batch(cfg):
    data = build_training_batches(cfg("SOLVER.IMS_PER_BATCH", "6", "MOCO.ACCUMULATION", "3"))
    assert len(next(iter(data))) == 2


def test_the_seed_of_the_config_is_that_of_the_order(cfg):
    def files(seed):
        data = build_training_batches(cfg("SEED", seed))
        return [s["file_name"] for batch in itertools.islice(data, 6) for s in batch]

    assert files("3") == files("3") != files("4")


def test_images_of_rare_classes_are_repeated(cfg):
    rare = ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler")
    data = build_training_batches(cfg(*rare, "DATALOADER.REPEAT_THRESHOLD", "2.0"))
    files = [s["file_name"] for batch in itertools.islice(data, 6) for s in batch]
    # Both classes are in half of the images: repeated sqrt(2 / 0.5) = 2 times.
    assert sorted(files) == sorted(2 * list(set(files))) and len(set(files)) == 6


def test_an_unknown_sampler_is_refused(cfg):
    """Today's main has one more, which reads a key that nothing defines."""
    with pytest.raises(UserError, match="'WeightedTrainingSampler' is not supported"):
        build_training_batches(cfg("DATALOADER.SAMPLER_TRAIN", "WeightedTrainingSampler"))
