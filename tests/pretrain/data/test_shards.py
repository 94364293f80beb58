import gzip
import logging
import re
import tarfile

import pytest
from support.toy_shards import make_shards, png, write_shard

from moco_d2.errors import UserError
from moco_d2.pretrain.data.build import build_training_data
from moco_d2.pretrain.data.samples import read_shard
from moco_d2.pretrain.data.shards import count_images, list_shards


def test_images_are_read_from_front_to_back(tmp_path):
    make_shards(tmp_path, [3], labels=True)
    found = list(read_shard(f"{tmp_path}/0.tar", first_index=10))
    assert [image.content for image in found] == [png(i) for i in range(3)]
    assert [(image.index, image.label) for image in found] == [(10, 0), (11, 1), (12, 2)]
    assert found[2].name == f"{tmp_path}/0.tar/0002.png"


def test_a_folder_of_shards_is_no_shard(tmp_path):
    with pytest.raises(UserError, match=r"is a folder: name its shards in DATASETS.TRAIN, as in"):
        list_shards(str(tmp_path))


def test_members_of_a_sample_that_are_no_images_are_passed_over(tmp_path):
    members = {"a.json": b"{}", "a.PNG": png(1), "a.txt": b"", "b.json": b"{}", "c.d/e.webp": b"?"}
    write_shard(tmp_path / "0.tar", members)
    assert [image.name for image in read_shard(str(tmp_path / "0.tar"))] == [
        f"{tmp_path}/0.tar/a.png",
        f"{tmp_path}/0.tar/c.d/e.webp",
    ]
    assert list(list_shards(str(tmp_path / "0.tar")).counts) == [2]


def names(path):
    return [image.name.removeprefix(f"{path}/") for image in read_shard(str(path))]


@pytest.mark.parametrize(
    "members, images",
    [
        (["photo.2020.0.jpg", "photo.2020.1.jpg"], ["photo.2020.0.jpg", "photo.2020.1.jpg"]),
        (["x.jpg", "y.0.jpg", "y.1.jpg"], ["x.jpg", "y.0.jpg", "y.1.jpg"]),
        (["./v1.0/x.jpg", "./v1.0/y.jpg"], ["./v1.0/x.jpg", "./v1.0/y.jpg"]),
        (["x0.input.jpg", "x1.input.jpg"], ["x0.input.jpg", "x1.input.jpg"]),
        (["x.jpg", "x.seg.png", "y.seg.png", "y.jpg"], ["x.jpg", "y.jpg"]),
        (["._x.jpg", "x.jpg", "__MACOSX/._y.jpg", "__MACOSX/y.jpg", ".git/z.jpg"], ["x.jpg"]),
        (["x.JPEG", "y.GIF", "z.pgm"], ["x.jpeg", "y.gif", "z.pgm"]),
    ],
)
def test_dots_in_names_hide_no_image(tmp_path, members, images):
    path = write_shard(tmp_path / "0.tar", {name: png(0) for name in members})
    assert names(path) == images
    assert count_images(str(path)).images == len(images)


def test_labels_of_names_with_dots(tmp_path):
    members = {}
    for i in range(2):
        members |= {f"a.{i}.jpg": png(i), f"a.{i}.cls": b"%d" % i}
        members |= {f"b{i}.cls": b"%d" % (i + 2), f"b{i}.left.jpg": png(i)}
    path = write_shard(tmp_path / "0.tar", members)
    assert [image.label for image in read_shard(str(path))] == [0, 2, 1, 3]
    assert list_shards(str(path)).num_classes == 4


@pytest.mark.parametrize("num_workers", [0, 1])
def test_two_images_of_which_neither_is_the_samples_are_refused(tmp_path, num_workers):
    members = {"x.jpg": png(0), "y.input.jpg": png(0), "y.target.jpg": png(1)}
    path = write_shard(tmp_path / "0.tar", members)
    with pytest.raises(
        UserError, match=r"^shard .*0\.tar has the images y\.input\.jpg and y\.targ"
    ):
        list_shards(str(path), num_workers=num_workers)
    with pytest.raises(UserError, match="rename the image of a sample to y.jpg"):
        names(path)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "zip"])
def test_a_tar_of_archives_says_how_to_unpack_it(tmp_path, suffix):
    members = {f"n0144{i}.{suffix}": b"x" for i in range(3)}
    path = write_shard(tmp_path / "ILSVRC2012_img_train.tar", members)
    with pytest.raises(UserError, match=r"train\.tar holds 3 archives and no image.*unpack each"):
        list_shards(str(path))


def test_the_log_has_the_numbers_of_images_and_of_what_was_passed_over(tmp_path, caplog):
    # Detectron2's setup_logger, run by whichever test, cuts loggers off from the one pytest reads.
    caplog.set_level(logging.INFO)
    members = {"x.jpg": png(0), "x.seg.png": png(0), "x.json": b"{}", "n0.tar": b"", "._x.jpg": b""}
    path = str(write_shard(tmp_path / "0.tar", members))
    with tarfile.open(path, "a") as shard:
        link = tarfile.TarInfo("y.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "x.jpg"
        shard.addfile(link)
    list_shards(path)
    assert f"{path}: 1 images in 1 shards" in caplog.text
    (line,) = {m for m in caplog.messages if m.startswith(f"passed over in {path}: ")}
    assert set(line.partition(f"{path}: ")[2].split("; ")) == {
        "1 archives inside of shards",
        "1 links and other special members",
        "2 members without an image or a class",
        "1 further images of a sample (x.seg.png beside x.jpg)",
    }


@pytest.mark.parametrize("compression", ["", "gz"])
def test_counts_and_classes_of_local_shards(tmp_path, compression):
    pattern = make_shards(tmp_path, [5, 1, 7], labels=True)
    if compression:
        for number in range(3):
            with tarfile.open(tmp_path / f"{number}.tar") as plain:
                members = {m.name: plain.extractfile(m).read() for m in plain}
            with tarfile.open(tmp_path / f"{number}.tar", "w:gz") as packed:
                for name, content in members.items():
                    (tmp_path / name).write_bytes(content)
                    packed.add(tmp_path / name, name)
    shards = list_shards(pattern)
    assert list(shards.urls) == [f"{tmp_path}/{i}.tar" for i in range(3)]
    assert (list(shards.counts), shards.num_classes) == ([5, 1, 7], 3)
    assert [len(list(read_shard(url))) for url in shards.urls] == [5, 1, 7]


def test_workers_and_processes_share_the_counting(tmp_path, monkeypatch, caplog):
    counts = [5, 1, 0, 7, 2]
    pattern = make_shards(tmp_path, counts, labels=True)
    assert list(list_shards(pattern, num_workers=2).counts) == counts

    read = []
    monkeypatch.setattr("moco_d2.pretrain.data.shards.comm.get_world_size", lambda: 2)
    monkeypatch.setattr("moco_d2.pretrain.data.shards.comm.get_rank", lambda: 1)

    def gather(mine):
        read.extend(mine)
        return [[count_images(f"{tmp_path}/{i}.tar") for i in (0, 2, 4)], mine]

    monkeypatch.setattr("moco_d2.pretrain.data.shards.comm.all_gather", gather)
    with caplog.at_level(logging.WARNING):
        shards = list_shards(pattern)
    assert [shard.images for shard in read] == [1, 7]
    assert (list(shards.counts), shards.num_classes) == (counts, 3)
    assert "2.tar has no image" in caplog.text  # of the other process' part


def test_one_image_without_a_label_and_there_are_no_classes(tmp_path):
    make_shards(tmp_path, [4], labels=True)
    write_shard(tmp_path / "1.tar", {"a.png": png(0)})
    assert list_shards(f"{tmp_path}/{{0,1}}.tar").num_classes == 0


def test_a_stated_number_of_images_is_dealt_out_evenly():
    shards = list_shards("pipe:cat {0..2}.tar", num_images=8)
    assert list(shards.urls) == [f"pipe:cat {i}.tar" for i in range(3)]
    assert list(shards.counts) == [3, 3, 2]


@pytest.mark.parametrize("cut", range(0, 3 * 1024, 100))
def test_reading_gives_what_was_counted_wherever_a_shard_is_cut(tmp_path, cut, caplog):
    """A member here is a kilobyte, an image and its label two."""
    make_shards(tmp_path, [4], labels=True)
    path = tmp_path / "0.tar"
    path.write_bytes(path.read_bytes()[: 4 * 1024 + cut])
    with caplog.at_level(logging.WARNING):
        (count,) = list_shards(str(path)).counts
    found = []
    try:
        for image in read_shard(str(path)):
            found.append(image)
    except tarfile.TarError:
        assert f"{path} is damaged after {count} images" in caplog.text
    # Where only the padding is missing, reading gives one more.
    assert count + 1 >= len(found) >= count >= 1
    assert [image.content for image in found] == [png(i) for i in range(len(found))]


def test_empty_and_damaged_shards_are_named(tmp_path, caplog):
    pattern = make_shards(tmp_path, [6, 0, 6, 6])
    cut = tmp_path / "2.tar"
    cut.write_bytes(cut.read_bytes()[: 3 * 1024 + 512 + 20])  # a member is a kilobyte
    (tmp_path / "3.tar").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert list(list_shards(pattern).counts) == [6, 0, 2, 0]
    assert "1.tar has no image" in caplog.text
    assert "2.tar is damaged after 2 images" in caplog.text
    assert "3.tar is damaged after 0 images" in caplog.text


@pytest.mark.parametrize("command", ["cat {}", "cat {} | cat", "cat {}; true"])
def test_a_command_may_be_left_before_it_has_written_all(tmp_path, command):
    path = write_shard(tmp_path / "0.tar", {f"{i}.png": png(i) + bytes(200_000) for i in range(9)})
    images = read_shard("pipe:" + command.format(path))
    assert next(images).content.startswith(png(0))
    images.close()


def test_a_command_that_fails_is_an_error(tmp_path):
    make_shards(tmp_path, [2])
    with pytest.raises(OSError, match="exit 3"):
        list(read_shard(f"pipe:cat {tmp_path}/0.tar; exit 3"))


def test_patterns_that_cannot_work_are_one_sentence(tmp_path):
    make_shards(tmp_path, [0, 0])
    for pattern, message in (
        (f"{tmp_path}/7.tar", r"7\.tar does not exist"),
        (f"{tmp_path}/{{0..1.tar", "cannot be expanded"),
        (f"{tmp_path}/\0{{0..1}}.tar", "has a zero byte"),
        (
            f"{tmp_path}/{{0..1}}.tar",
            r"none of the 2 shards of .* has an image \(shard .*0\.tar has no image\)",
        ),
        ("pipe:cat {0..1}.tar", r"set MOCO\.DATA\.SHARD_IMAGES"),
    ):
        with pytest.raises(UserError, match=message):
            list_shards(pattern)


def _sparse_shard(path, name, size, *, kind=tarfile.REGTYPE):
    """Three sound images, and a member of `size` bytes, which are a hole in the file."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    write_shard(path, {f"{i}.png": png(i) for i in range(3)})
    with path.open("r+b") as file:
        file.seek(3 * 1024)
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(3 * 1024 + 512 + size + 10240)
    return str(path)


@pytest.mark.parametrize(
    ("member", "kind", "message"),
    [
        ("3.png", tarfile.REGTYPE, r"member 3\.png has 100,000,000,000 bytes"),
        ("2.cls", tarfile.REGTYPE, r"member 2\.cls has 100,000,000,000 bytes, more than 1,024"),
        ("long", tarfile.GNUTYPE_LONGNAME, "an extra header has 100,000,000,000 bytes"),
        ("pax", tarfile.XHDTYPE, "an extra header has 100,000,000,000 bytes"),
        ("pax", tarfile.XGLTYPE, "an extra header has 100,000,000,000 bytes"),
    ],
)
def test_a_member_of_a_hundred_gigabytes_is_not_read(tmp_path, member, kind, message):
    path = _sparse_shard(tmp_path / "0.tar", member, 100_000_000_000, kind=kind)
    count = count_images(path)
    assert re.search(message, count.problem) and "\n" not in count.problem
    for url in (path, f"pipe:cat {path}"):
        found = []
        with pytest.raises(tarfile.TarError, match=message):
            for image in read_shard(url):
                found.append(image.content)
        assert count.images <= len(found) <= count.images + 1
        assert found == [png(0), png(1), png(2)][: len(found)] and found


def test_a_name_that_comes_twice_is_damage_in_plain_words(tmp_path):
    path = write_shard(tmp_path / "0.tar", {"a.png": png(0), "b.png": png(0), "b.PNG": png(1)})
    problem = count_images(str(path)).problem
    assert "(b.PNG: duplicate file name in tar file png): only" in problem
    with pytest.raises(UserError, match="has an image .shard .*duplicate file name"):
        list_shards(str(write_shard(tmp_path / "1.tar", {"b.png": png(0), "b.PNG": png(1)})))


def test_members_that_are_not_read_may_be_large(tmp_path):
    path = write_shard(tmp_path / "0.tar", {"a.json": bytes(3 << 20), "a.png": png(0)})
    assert [image.content for image in read_shard(str(path))] == [png(0)]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (b"1000000", "at most 1,000,000 classes"),
        (b"9" * 1000, "at most 1,000,000 classes"),
        (b"cat", "a label is b'cat', and labels are class indices"),
        (b"1.0", "a label is b'1.0', and labels are class indices"),
        (b"", "a label is b'', and labels are class indices"),
        (b"-1", "a label is b'-1', and classes count from 0"),
    ],
)
def test_text_that_is_no_label_costs_only_the_labels(tmp_path, make_config, label, message):
    members = {"a.png": png(0), "a.cls": b"0", "b.png": png(1), "b.cls": label}
    path = write_shard(tmp_path / "0.tar", members)
    shards = list_shards(str(path))
    assert (list(shards.counts), shards.num_classes) == ([2], 0)
    assert message in shards.label_problem
    assert [image.label for image in read_shard(str(path))] == [0, None]
    run = {"DATASETS.TRAIN": (f"shards:{path}",), "SOLVER.IMS_PER_BATCH": 2}
    assert build_training_data(make_config(run)).num_images == 2
    with pytest.raises(UserError, match=f"0.tar has none \\(in shard .*{re.escape(message)}"):
        build_training_data(make_config({**run, "MOCO.PRETEXT": "supervised"}))


@pytest.mark.parametrize("packer", ["", "gz"])
@pytest.mark.parametrize("end", [0, 100, 511])
def test_a_shard_without_its_end_is_damaged(tmp_path, packer, end):
    """Cut at a member's boundary or within its header: the image before it may lack a member."""
    make_shards(tmp_path, [4])
    path = tmp_path / "0.tar"
    content = path.read_bytes()[: 3 * 1024 + end]  # a member is a kilobyte
    path.write_bytes(gzip.compress(content) if packer else content)
    count = count_images(str(path))
    assert count.images == 1
    assert "damaged after 1 images (it is truncated: it has no end of archive)" in count.problem
    with pytest.raises(tarfile.TarError, match="it is truncated"):
        list(read_shard(str(path)))


@pytest.mark.parametrize("first, second", [("png", "jpg"), ("bmp", "webp"), ("tif", "png")])
@pytest.mark.parametrize("turn", [1, -1])
def test_of_two_images_the_photo_is_used_and_the_log_says_so(tmp_path, caplog, first, second, turn):
    members = [(f"x.{first}", png(0)), (f"x.{second}", png(1))][::turn]
    path = write_shard(tmp_path / "0.tar", dict(members))
    with caplog.at_level(logging.WARNING):
        list_shards(str(path))
    used, other = (second, first) if second != "png" else ("png", "tif")
    assert names(path) == [f"x.{used}"]
    assert f"1 images .{other} beside .{used}, which is used" in caplog.text


@pytest.mark.parametrize("stated, found", [(12, 5), (8, 5)])
def test_a_stated_number_is_compared_with_the_first_shard(tmp_path, caplog, stated, found):
    pattern = make_shards(tmp_path, [5, 5])
    with caplog.at_level(logging.WARNING):
        list_shards(pattern, num_images=10)
        assert not caplog.messages
        list_shards(pattern, num_images=stated)
    (line,) = caplog.messages
    assert f"SHARD_IMAGES {stated} means {stated // 2} images in the first shard, but" in line
    assert f"0.tar has {found}: missing" in line
