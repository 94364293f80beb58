"""Files that would run code, exhaust the machine or end the process: nothing of it happens."""

import builtins
import os
import pickle
import struct
import time
import zipfile

import numpy as np
import pytest
import torch
from support.commands import run_python

from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.errors import UserError


class Calls:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("name", ["c.pth", "c.pkl", "c.npz", "c.safetensors"])
@pytest.mark.parametrize("container", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("gadget", [os.system, builtins.eval, builtins.exec])
def test_no_gadget_runs_in_any_reader(tmp_path, name, container, gadget):
    marker, path = tmp_path / "executed", tmp_path / name
    code = f"touch {marker}" if gadget is os.system else f"open({str(marker)!r}, 'w')"
    content = {"state_dict": Calls(gadget, code)}
    if container == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(UserError):
        load_checkpoint(path)
    assert not marker.exists()


def test_fifo_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "c.pth")
    with pytest.raises(UserError, match="is not a file"):
        load_checkpoint(tmp_path / "c.pth")


def text(value):
    """Opcode of a string, in protocol 2."""
    return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()


def encoded(value, codec):
    return b"c_codecs\nencode\n" + text(value) + text(codec) + pickle.TUPLE2 + pickle.REDUCE


def as_value(opcodes):
    """A dict with the one thing that the opcodes make."""
    return b"\x80\x02}" + text("a") + opcodes + b"s."


def tuples(opcode=b"", count=300_000):
    """A dict whose key is an empty tuple in tuples; the hash of so many overflows C's stack."""
    return b"\x80\x02}" + b")" + (pickle.TUPLE1 + opcode) * count + b"K\x01s."


def torch_file(path, content):
    """A torch archive with this pickle."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, content if name.endswith("data.pkl") else data)


def legacy_file(path, content):
    torch.save({}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"\x80\x02}q\x00.", content, 1))


WRITERS = {"torch": torch_file, "legacy": legacy_file, "pickle": lambda p, c: p.write_bytes(c)}


@pytest.mark.parametrize("writer", WRITERS)
def test_the_files_of_these_tests_are_read_when_sound(tmp_path, writer):
    WRITERS[writer](tmp_path / "c.pth", as_value(encoded("é", "latin1")))
    assert load_checkpoint(tmp_path / "c.pth") == {"a": b"\xe9"}
    WRITERS[writer](tmp_path / "c.pth", tuples(count=3))
    assert load_checkpoint(tmp_path / "c.pth") == {((((),),),): 1}


# Each file is read by a process of its own, which it may end, forked from one that has imported
# what takes long.
READ_EACH = """if True:
    import os, sys
    from moco_d2.checkpoint.io import load_checkpoint
    from moco_d2.errors import UserError
    for path in sys.argv[1:]:
        if os.fork() == 0:
            try:
                load_checkpoint(path)
            except UserError as error:
                os._exit(2 if "more than tensors and plain values" in str(error) else 3)
            os._exit(4)
        print(path, os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.parametrize("writer", WRITERS)
def test_what_the_unpickler_would_not_survive(tmp_path, writer):
    contents = {
        # Python's slowest codec takes hours for a megabyte of different letters.
        "slow codec": as_value(encoded("".join(map(chr, range(0x4E00, 0x9FFF))) * 20, "punycode")),
        "codec": as_value(encoded("a", "rot13")),
        # The function itself, for someone else to call.
        "function": as_value(b"c_codecs\nencode\n"),
        "tuples": tuples(),
        # What looks like a use leaves the tuple as it is.
        "built": tuples(pickle.NONE + pickle.BUILD),
        "appended": tuples(pickle.MARK + pickle.APPENDS),
        "remembered": tuples(pickle.BINPUT + b"\x00" + pickle.POP + pickle.BINGET + b"\x00"),
    }
    for name, content in contents.items():
        WRITERS[writer](tmp_path / name, content)
    done = run_python("-c", READ_EACH, *contents, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name} 2" for name in contents]


def laughs(leaf):
    node = {"a": leaf}
    for _ in range(60):
        node = {"a": node, "b": node}
    return node


def test_a_few_hundred_bytes_that_unfold_to_billions(tmp_path):
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(laughs(np.ones(3))))
    torch.save(laughs(torch.ones(3)), tmp_path / "c.pth")
    started = time.perf_counter()
    for file in tmp_path.iterdir():
        assert load_checkpoint(file).keys() == {"a", "b"}
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("shape", [(1 << 32,), (1 << 45,)])
def test_an_array_larger_than_its_file(tmp_path, shape):
    (tmp_path / "c.pkl").write_bytes(pickle.dumps({"a": Calls(np.ndarray, shape, np.dtype("u1"))}))
    with pytest.raises(UserError):
        load_checkpoint(tmp_path / "c.pkl")


@pytest.mark.parametrize("name", ["c.pth", "c.npz"])
def test_an_archive_that_unpacks_to_far_more_than_it_weighs(tmp_path, name):
    member = "a.npy" if name == "c.npz" else "archive/data/0"
    with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, bytes(64 << 20))
    with pytest.raises(UserError, match="would unpack to 67108864"):
        load_checkpoint(tmp_path / name)


def test_an_archive_of_more_members_than_any(tmp_path):
    with zipfile.ZipFile(tmp_path / "c.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        for i in range(20_000):
            archive.writestr(f"archive/data/{i}", b"")
    with pytest.raises(UserError, match="20001 entries"):
        load_checkpoint(tmp_path / "c.pth")


def test_a_storage_larger_than_its_record(tmp_path):
    path = tmp_path / "c.pth"
    torch.save({"a": torch.arange(4.0), "b": torch.arange(4.0)}, path)
    with zipfile.ZipFile(path) as archive:
        content = archive.read("c/data.pkl")
    more = pickle.BININT + struct.pack("<i", 1 << 20)
    torch_file(path, content.replace(b"K\x04", more))
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_every_protocol_are_read(tmp_path, protocol):
    torch.save({"a": torch.ones(1)}, tmp_path / "c.pth", pickle_protocol=protocol)
    (tmp_path / "c.pkl").write_bytes(pickle.dumps({"a": np.ones(1)}, protocol=protocol))
    for name in ("c.pth", "c.pkl"):
        assert load_checkpoint(tmp_path / name)["a"].tolist() == [1]
