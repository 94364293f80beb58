"""Shards that stand for more than they weigh: sparse members, compressed ones, endless headers."""

import bz2
import gzip
import io
import lzma
import os
import re
import struct
import tarfile

import pytest
import torch
from support.toy_shards import make_shards, png, write_shard

from moco_d2.errors import UserError
from moco_d2.pretrain.data import decompression, sharded_stream
from moco_d2.pretrain.data.decompression import BoundedReader
from moco_d2.pretrain.data.samples import read_shard
from moco_d2.pretrain.data.sharded_stream import ShardedData
from moco_d2.pretrain.data.shards import count_images, list_shards
from moco_d2.pretrain.data.stream import ViewMaker

PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


def _header(name, size, kind, *fields):
    """A tar header, with fields at places of ours."""
    header = bytearray(512)
    places = [(0, name.encode()), (100, b"0000644\0"), (124, b"%011o\0" % size), (156, kind)]
    for place, content in [*places, (257, b"ustar  \0"), *fields]:
        header[place : place + len(content)] = content
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _gnu_sparse(blocks):
    """An image of 399 MB that is one hole; its list of parts goes on in further blocks."""
    more = (482, b"\1" if blocks else b"\0")
    header = _header("b.png", 0, b"S", more, (483, b"%011o\0" % 399_000_000))
    entry = b"%011o\0" % 1 * 2
    return header + b"".join(
        (entry * 21 + (b"\1" if i < blocks - 1 else b"\0")).ljust(512, b"\0") for i in range(blocks)
    )


def _pax_sparse(headers, data):
    member = tarfile.TarInfo("b.png")
    member.size, member.pax_headers = len(data), headers | {"GNU.sparse.realsize": "399000000"}
    return member.tobuf(tarfile.PAX_FORMAT) + data


SPARSE = {
    "GNU": _gnu_sparse(0),
    "GNU, with a long list": _gnu_sparse(1000),
    "pax 0.1": _pax_sparse({"GNU.sparse.map": "0,1", "GNU.sparse.size": "399000000"}, b""),
    "pax 1.0": _pax_sparse(
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, b"100\n".ljust(512, b"0")
    ),
}


def _tar(*members):
    """Members as bytes between two sound images."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as shard:
        for name in ("a.png", "c.png"):
            info = tarfile.TarInfo(name)
            info.size = len(png(0))
            shard.addfile(info, io.BytesIO(png(0)))
    whole = file.getvalue()
    return whole[:1024] + b"".join(members) + whole[1024:]


@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.parametrize("packer", [None, "gz"])
def test_a_sparse_member_is_passed_over(tmp_path, kind, packer):
    shard, content = tmp_path / "0.tar", _tar(SPARSE[kind])
    shard.write_bytes(PACKERS[packer](content) if packer else content)
    assert count_images(str(shard)) == (2, 0, "", {"sparse members": 1}, "")
    for url in (str(shard), f"pipe:cat {shard}"):
        assert [image.content for image in read_shard(url)] == [png(0)] * 2


@pytest.mark.parametrize("packer", PACKERS)
def test_a_compressed_shard_is_read_as_a_plain_one(tmp_path, packer):
    make_shards(tmp_path, [30], labels=True)
    plain, packed = tmp_path / "0.tar", tmp_path / f"1.tar.{packer}"
    content = plain.read_bytes()
    # Compressed in parts, as parallel programs do, and padded.
    parts = (PACKERS[packer](content[i : i + 10_000]) for i in range(0, len(content), 10_000))
    packed.write_bytes(b"".join(parts) + bytes(512))
    assert count_images(str(packed)) == count_images(str(plain)) == (30, 3, "", {}, "")
    expected = [(image.content, image.label) for image in read_shard(str(plain))]
    for url in (str(packed), f"pipe:cat {packed}"):
        assert [(image.content, image.label) for image in read_shard(url)] == expected
    (cut := tmp_path / "2.tar").write_bytes(packed.read_bytes()[:-700])
    count = count_images(str(cut))
    assert count.images < 30 and "truncated within its compressed data" in count.problem


@pytest.mark.parametrize("packer", PACKERS)
def test_damage_of_a_compressed_shard_is_one_sentence(tmp_path, packer):
    make_shards(tmp_path, [30])
    content = bytearray(PACKERS[packer]((tmp_path / "0.tar").read_bytes()))
    content[12:] = b"\xff" * 2000
    (tmp_path / "1.tar").write_bytes(content)
    count = count_images(str(tmp_path / "1.tar"))
    assert re.search(r"1\.tar is damaged after \d+ images", count.problem)
    assert "\n" not in count.problem


@pytest.mark.parametrize("packer", PACKERS)
def test_a_compressed_shard_unpacks_to_a_bounded_number_of_bytes(tmp_path, monkeypatch, packer):
    monkeypatch.setattr(decompression, "SMALL", 1 << 20)
    zeros = 4 << 20
    shard = tmp_path / "0.tar"
    shard.write_bytes(PACKERS[packer](_tar(_header("b.json", zeros, b"0") + bytes(zeros))))
    message = r"it unpacks from .* to \d,\d\d\d,\d\d\d bytes, more than 100 times"
    count = count_images(str(shard))
    assert count.images <= 1 and re.search(message, count.problem)
    for url in (str(shard), f"pipe:cat {shard}"):
        with pytest.raises(OSError, match=message):
            list(read_shard(url))
    # What images do is far within.
    monkeypatch.setattr(decompression, "SMALL", 0)
    shard.write_bytes(PACKERS[packer](_tar(_header("b.bin", 1 << 20, b"0") + os.urandom(1 << 20))))
    assert count_images(str(shard)).images == 2


def test_xz_gets_no_more_memory_than_its_presets_need(tmp_path, monkeypatch):
    monkeypatch.setattr(decompression, "MAX_XZ_MEMORY", 1 << 20)
    (tmp_path / "0.tar").write_bytes(lzma.compress(_tar()))
    assert "emory usage limit" in count_images(str(tmp_path / "0.tar")).problem
    monkeypatch.undo()
    (tmp_path / "0.tar").write_bytes(lzma.compress(_tar(), preset=9 | lzma.PRESET_EXTREME))
    assert count_images(str(tmp_path / "0.tar")).images == 2


def test_reading_in_pieces_gives_the_whole():
    content = os.urandom(300_000)
    for packed in (content, gzip.compress(content), bz2.compress(content), b"", b"\x1f"):
        reader, pieces = BoundedReader(io.BytesIO(packed)), []
        while piece := reader.read(7_001):
            pieces.append(piece)
        assert b"".join(pieces) == (content if len(packed) > 1 else packed)


def test_headers_of_all_members_together_are_bounded(tmp_path):
    def said(number):
        value = b"x" * 400_000
        record = b" k%d=%s\n" % (number, value)
        record = b"%d%s" % (len(record) + 6, record)
        return _header("g", len(record), b"g") + record.ljust(-(-len(record) // 512) * 512, b"\0")

    member = _header("x.bin", 0, b"0")
    (tmp_path / "0.tar").write_bytes(_tar(*(said(i) + member for i in range(2))))
    assert count_images(str(tmp_path / "0.tar")).images == 2
    (tmp_path / "0.tar").write_bytes(_tar(*(said(i) + member for i in range(4))))
    problem = count_images(str(tmp_path / "0.tar")).problem
    assert "its global headers have more than 1,048,576 bytes" in problem


@pytest.mark.parametrize("kind", [b"0", b"L", b"x", b"g"])
def test_a_member_of_less_than_no_bytes_is_damage(tmp_path, kind):
    negative = (124, b"\xff" * 4 + struct.pack(">q", -1024))
    (tmp_path / "0.tar").write_bytes(_tar(_header("b.png", 0, kind, negative)))
    count = count_images(str(tmp_path / "0.tar"))
    assert count.images <= 1 and "is damaged after" in count.problem


@pytest.mark.parametrize("label", [b"-5", b"-1\n", b"-" + b"9" * 500])
def test_a_negative_label_is_none(tmp_path, label):
    write_shard(tmp_path / "0.tar", {"a.png": png(0), "b.png": png(1), "b.cls": label})
    count = count_images(str(tmp_path / "0.tar"))
    assert "and classes count from 0" in count.label_problem
    assert (count.images, count.num_classes, count.problem) == (2, 0, "")
    assert [image.label for image in read_shard(str(tmp_path / "0.tar"))] == [None, None]


def test_damage_between_members_is_not_the_end(tmp_path):
    path = tmp_path / "0.tar"
    path.write_bytes(_tar(b"\x07" * 512))
    assert "a header in it is damaged" in count_images(str(path)).problem
    with pytest.raises(tarfile.TarError, match="a header in it is damaged"):
        list(read_shard(str(path)))


def test_a_block_of_too_many_bytes_names_the_setting(tmp_path, monkeypatch):
    shards = list_shards(make_shards(tmp_path, [150]))
    views = ViewMaker(torch.nn.Identity(), names=("query",), seed=0)
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    monkeypatch.setattr(sharded_stream, "MAX_BLOCK_BYTES", 110 * len(png(0)))
    for shuffle, workers, fix in (
        (140, 0, r"lower MOCO\.DATA\.SHARD_SHUFFLE$"),
        (140, 1, r"lower MOCO\.DATA\.SHARD_SHUFFLE$"),
        (20, 0, None),
    ):
        data = ShardedData(
            shards, shuffle=shuffle, make_views=views, total_batch=4, num_workers=workers
        )
        batches = data.batches()
        if fix is None:
            assert len(next(batches)["index"]) == 4
        else:
            with pytest.raises(UserError, match=rf"^MOCO\.DATA\.SHARD_SHUFFLE 140 is too.*{fix}"):
                next(batches)
        batches.close()
    monkeypatch.setattr(sharded_stream, "MAX_BLOCK_BYTES", 50 * len(png(0)))
    data = ShardedData(shards, shuffle=20, make_views=views, total_batch=4)
    with pytest.raises(UserError, match=r"MOCO\.DATA\.SHARD_SHUFFLE.*; shrink the images$"):
        next(data.batches())
