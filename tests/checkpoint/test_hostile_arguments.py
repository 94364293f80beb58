"""Files that name only what the reader allows, and give it what no writer gives."""

import argparse
import collections
import dataclasses
import datetime
import io
import json
import pickle
import pickletools
import struct
import sys
import types
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from support.commands import run_python
from yacs.config import CfgNode

from moco_d2.checkpoint import pickle_stubs
from moco_d2.checkpoint.backbone import load_backbone
from moco_d2.checkpoint.convert import convert
from moco_d2.checkpoint.io import load_checkpoint, read_provenance
from moco_d2.checkpoint.pickle_stubs import allowed_names
from moco_d2.errors import UserError

# The module that NumPy's own pickles name, numpy._core.multiarray or numpy.core.multiarray.
multiarray = sys.modules[np.zeros(1).__reduce__()[0].__module__]
# Each file is read, and every number in it touched, by a process that a file may end: the next one
# is then read by a new process, forked from one that has imported what takes long. A signal is a
# negative number; 9 is memory beyond 2 GiB.
READ_EACH = """if True:
    import mmap, os, resource, signal, sys
    import numpy, torch
    from moco_d2.checkpoint.io import load_checkpoint
    from moco_d2.errors import UserError

    def touch(node, seen):
        if id(node) in seen:
            return
        seen.add(id(node))
        if isinstance(node, dict):
            for value in node.values():
                touch(value, seen)
        elif isinstance(node, (list, tuple)):
            for value in node:
                touch(value, seen)
        elif isinstance(node, torch.Tensor):
            node.sum(), node.clone()
        elif isinstance(node, numpy.ndarray):
            repr(node.copy())

    def code_of(path):
        signal.alarm(20)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), resource.RLIM_INFINITY))
        try:
            touch(load_checkpoint(path), set())
        except UserError:
            return 2
        except MemoryError:
            os._exit(9)
        return 0

    torch.set_num_threads(1)
    paths = sys.argv[1:]
    codes = mmap.mmap(-1, len(paths))  # shared with the children
    codes[:] = bytes([255]) * len(paths)
    first = 0
    while first < len(paths):
        if os.fork() == 0:
            for index in range(first, len(paths)):
                codes[index] = code_of(paths[index])
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.wait()[1])
        done = codes[:].find(255)
        last = len(paths) if done < 0 else done
        for path, code in zip(paths[first:last], codes[first:last]):
            print(path, code)
        if done >= 0:
            print(paths[last], ended)
        first = last + 1
"""
REFUSED, READ = 2, 0


def outcomes(folder):
    """Exit code of each file's reader, by file name."""
    files = sorted(path.name for path in folder.iterdir())
    done = run_python("-c", READ_EACH, *files, cwd=folder)
    assert done.returncode == 0, done.stderr
    return {name: int(code) for name, code in map(str.split, done.stdout.splitlines())}


class Calls:
    """Its pickle calls a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Fills:
    """Its pickle calls a function and gives what it returns a state."""

    def __init__(self, make, state):
        self.make, self.state = make, state

    def __reduce__(self):
        return (*self.make, self.state)


U1, F4, OBJECT = np.dtype("u1"), np.dtype("f4"), np.dtype("O")
EMPTY = multiarray._reconstruct, (np.ndarray, (0,), b"b")
ADDRESS = (0xDEAD).to_bytes(8, "little")
ARRAYS = {
    "memory_before_a_buffer": Calls(np.ndarray, (64,), U1, b"x" * 8, -64),
    "memory_behind_a_buffer": Calls(np.ndarray, (8,), U1, b"x" * 8, 4096),
    "a_buffer": Calls(np.ndarray, (8,), U1, b"x" * 8),
    "strides": Calls(np.ndarray, (8,), U1, b"x" * 8, 0, (1 << 40,)),
    "objects_over_bytes": Calls(np.ndarray, (1,), OBJECT, ADDRESS),
    "uninitialized": Calls(np.ndarray, (1 << 20,), F4),
    "an_object_of_an_address": Calls(multiarray.scalar, OBJECT, ADDRESS),
    "a_scalar_of_fewer_bytes": Calls(multiarray.scalar, np.dtype("f8"), b"x"),
    "a_scalar_of_more_bytes": Calls(multiarray.scalar, F4, b"x" * 9),
    "reconstructed_objects": Calls(multiarray._reconstruct, np.ndarray, (4,), b"O"),
    "reconstructed_of_a_size": Calls(multiarray._reconstruct, np.ndarray, (1 << 20,), b"d"),
    "another_class": Calls(multiarray._reconstruct, np.dtype, (0,), b"b"),
    "never_filled": Calls(multiarray._reconstruct, np.ndarray, (0,), b"b"),
    "a_state_of_addresses": Fills(EMPTY, (1, (1,), OBJECT, False, ADDRESS)),
    "a_state_of_objects": Fills(EMPTY, (1, (2,), OBJECT, False, ["a", "b"])),
    "a_state_beyond_its_bytes": Fills(EMPTY, (1, (1 << 20,), F4, False, b"x" * 8)),
    "a_state_before_its_bytes": Fills(EMPTY, (1, (-1,), F4, False, b"")),
    "a_state_that_overflows": Fills(EMPTY, (1, (1 << 33, 1 << 33), F4, False, b"")),
    "a_state_with_a_name_for_a_type": Fills(EMPTY, (1, (2,), "f4", False, b"x" * 8)),
    "a_short_state": Fills(EMPTY, (1, (2,))),
    "fields": Fills(
        (np.dtype, ("V8", False, True)), (3, "<", None, ("a",), {"a": (F4, 1 << 40)}, 8, 4, 0)
    ),
    "a_type_of_a_size": Fills(
        (np.dtype, ("f4", False, True)), (3, "<", None, None, None, 1 << 40, 1 << 40, 63)
    ),
    "a_subarray": Fills(
        (np.dtype, ("V4", False, True)), (3, "|", (F4, (1 << 40,)), None, None, 4, 1, 0)
    ),
}


def pickled(value):
    return pickle.dumps({"state_dict": {"a": value}}, protocol=2)


def test_arrays_consist_of_their_own_bytes(tmp_path):
    for name, value in ARRAYS.items():
        content = pickled(value)
        (tmp_path / f"{name}.pkl").write_bytes(content)
        archive_with(tmp_path / f"{name}.pth", content)
        legacy_with(tmp_path / f"{name}.old.pth", content)
    found = outcomes(tmp_path)
    assert len(found) == 3 * len(ARRAYS)
    assert {name: code for name, code in found.items() if code != REFUSED} == {}


# ---- tensors -------------------------------------------------------------------------------------

STORAGE = torch.arange(4.0).storage()


class Tensor:
    """Its pickle rebuilds a tensor as torch does, from a storage that is there."""

    def __init__(self, offset, size, stride, *, state=None, old=False):
        more = () if old else (False, {})
        function = torch._utils._rebuild_tensor if old else torch._utils._rebuild_tensor_v2
        self.call = function, (STORAGE, offset, size, stride, *more)
        self.state = state

    def __reduce__(self):
        return self.call if self.state is None else (*self.call, self.state)


SOUND = Tensor(0, (2, 2), (2, 1))
TENSORS = {
    "before_its_storage": Tensor(-8, (4,), (1,)),
    "behind_its_storage": Tensor(0, (5,), (1,)),
    "behind_by_its_offset": Tensor(1 << 20, (4,), (1,)),
    "behind_by_its_stride": Tensor(0, (2,), (1 << 30,)),
    "a_negative_stride": Tensor(3, (4,), (-1,)),
    "a_negative_size": Tensor(0, (-4,), (1,)),
    "sizes_that_overflow": Tensor(0, (1 << 32, 1 << 32), (0, 0)),
    "strides_that_overflow": Tensor(0, (3,), (1 << 63,)),
    "6_GiB_of_one_number": Tensor(0, (6 << 28,), (0,)),
    "more_sizes_than_strides": Tensor(0, (2, 2), (1,)),
    "a_hundred_dimensions": Tensor(0, (1,) * 100, (1,) * 100),
    "another_place_by_its_state": Tensor(0, (4,), (1,), state=(STORAGE, 0, (1 << 28,), (1,))),
    "data_by_its_state": Tensor(0, (4,), (1,), state=(1, 2, 3, 4, 5)),
    "attributes_by_its_state": Tensor(0, (4,), (1,), state=(None, {"shape": 1})),
    "text_for_numbers": Tensor("0", (4,), (1,)),
    "the_old_function": Tensor(0, (1 << 30,), (1,), old=True),
    "a_parameter_of_nothing": Calls(torch._utils._rebuild_parameter, None, False, {}),
    "nested": Calls(torch._utils._rebuild_nested_tensor, SOUND, SOUND, SOUND, SOUND),
    "a_subclass": Calls(
        torch._utils._rebuild_wrapper_subclass, torch.Tensor, torch.float32, (1 << 40,), (1,), 0,
        torch.strided, "cpu", False,
    ),
}  # fmt: skip
_KEY = "0"


def torch_pickle(value, *, count=4, legacy=False):
    """With a persistent id in a storage's place, as torch.save writes it."""
    more = (None,) if legacy else ()

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            named = isinstance(obj, torch.storage.TypedStorage)
            return ("storage", torch.FloatStorage, _KEY, "cpu", count, *more) if named else None

    file = io.BytesIO()
    Pickler(file, protocol=2).dump(value)
    return file.getvalue()


def archive_with(path, content, **members):
    """A torch archive with this pickle, and a storage of four numbers."""
    torch.save({"b": torch.arange(4.0)}, path)
    with zipfile.ZipFile(path) as archive:
        kept = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**kept, "data.pkl": content, **members}.items():
            archive.writestr(f"archive/{name}", data)


def legacy_with(path, content, *, count=4):
    """A file of torch before 1.6 with this pickle, and the same storage."""
    parts = io.BytesIO()
    torch.save({"b": torch.arange(4.0)}, parts, _use_new_zipfile_serialization=False)
    parts.seek(0)
    for _ in range(3):
        list(pickletools.genops(parts))
    order = pickle.dumps([_KEY], protocol=2)
    numbers = struct.pack("<q", count) + np.arange(4, dtype="f4").tobytes()
    path.write_bytes(parts.getvalue()[: parts.tell()] + content + order + numbers)


def test_tensors_stay_in_their_storage(tmp_path):
    for name, value in {**TENSORS, "sound": SOUND}.items():
        archive_with(tmp_path / f"{name}.pth", torch_pickle({"a": value}))
        legacy_with(tmp_path / f"{name}.old.pth", torch_pickle({"a": value}, legacy=True))
    found = outcomes(tmp_path)
    assert len(found) == 2 * (len(TENSORS) + 1)
    sound = {name: code for name, code in found.items() if name.startswith("sound")}
    assert sound == dict.fromkeys(sound, READ)
    assert {n: code for n, code in found.items() if n not in sound and code != REFUSED} == {}


def test_a_sound_tensor_is_read_as_torch_reads_it(tmp_path):
    archive_with(tmp_path / "a.pth", torch_pickle({"a": SOUND}))
    legacy_with(tmp_path / "b.pth", torch_pickle({"a": SOUND}, legacy=True))
    for name in ("a.pth", "b.pth"):
        found = load_checkpoint(tmp_path / name)["a"]
        assert found.tolist() == [[0, 1], [2, 3]]
        assert torch.equal(found, torch.load(tmp_path / name, weights_only=True)["a"])


@pytest.mark.parametrize("count", [0, 3, 5, 1 << 20, -1])
def test_a_record_has_the_size_that_is_declared(tmp_path, count):
    """A record that is shorter would take the bytes behind it."""
    value = {"a": Tensor(0, (2,), (1,)), "b": Tensor(0, (count,), (1,))}
    archive_with(tmp_path / "a.pth", torch_pickle(value, count=count))
    legacy_with(tmp_path / "b.pth", torch_pickle(value, count=count, legacy=True))
    legacy_with(tmp_path / "c.pth", torch_pickle({"a": SOUND}, legacy=True), count=count)
    for name in ("a.pth", "b.pth", "c.pth"):
        with pytest.raises(UserError):
            load_checkpoint(tmp_path / name)


def test_the_checksums_are_those_of_the_data(tmp_path):
    """Two archives in one file: each reader of archives finds its own."""
    files = []
    for number in (0.0, 7.0):
        torch.save({"a": torch.full((4,), number)}, tmp_path / f"{number}.pth")
        files.append((tmp_path / f"{number}.pth").read_bytes())
    first, second = files
    # The end of the directory names where it begins: of the second archive, counted from its own
    # start, as torch does, or from the end of the file, as Python does.
    (tmp_path / "both.pth").write_bytes(first + second)
    with zipfile.ZipFile(tmp_path / "both.pth") as archive:
        name = next(n for n in archive.namelist() if n.endswith("data/0"))
        seen = np.frombuffer(archive.read(name), "f4")[0]
    try:
        found = load_checkpoint(tmp_path / "both.pth")["a"][0].item()
    except UserError:
        return
    assert found == seen


def test_a_stored_member_of_two_lengths(tmp_path):
    """As long as it says in one place, and as long as its checksum is for in the other."""
    path = tmp_path / "c.pth"
    torch.save({"a": torch.arange(4.0), "b": torch.full((4,), 5.0)}, path)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        (member,) = (m for m in archive.infolist() if m.filename.endswith("data/0"))
        short = archive.read(member)[:8]
    entry = data.rindex(member.filename.encode()) - 46  # in the directory
    struct.pack_into("<III", data, entry + 16, zipfile.crc32(short), 8, 16)
    path.write_bytes(data)
    with pytest.raises(UserError):
        load_checkpoint(path)


# ---- states --------------------------------------------------------------------------------------


def text(value):
    """Opcode of a string, in protocol 2."""
    return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()


@pytest.mark.parametrize("slots", [False, True])
def test_states_for_what_is_named(tmp_path, slots):
    """BUILD sets attributes of whatever is on the stack: of nothing that the next file meets."""
    before = {name: vars(value).copy() for name, value in vars_of_the_table()}
    state = b"}" + text("__setstate__") + text("x") + b"s" + text("__call__") + text("x") + b"s"
    if slots:
        state = b"N" + state + pickle.TUPLE2
    for index, name in enumerate(allowed_names()):
        module, _, attribute = name.rpartition(".")
        named = b"c" + f"{module}\n{attribute}\n".encode()
        content = b"\x80\x02}" + text("a") + named + state + b"bs."
        (tmp_path / f"{index}.pkl").write_bytes(content)
        with pytest.raises(UserError):
            load_checkpoint(tmp_path / f"{index}.pkl")
    assert {name: vars(value).copy() for name, value in vars_of_the_table()} == before


def vars_of_the_table():
    """What the table holds that has attributes."""
    return [(n, v) for n, v in pickle_stubs.TABLE.items() if hasattr(v, "__dict__")]


def test_every_name_called_with_every_kind_of_argument(tmp_path):
    arguments = {
        "nothing": b")",
        "none": b"N\x85",
        "a_number": pickle.LONG1 + b"\x08" + b"\xff" * 7 + b"\x7f" + b"\x85",
        "text": text("O") + b"\x85",
        "a_list": b"]\x85",
        "a_size": b"K\xff\x85\x85",
        "itself": b"2\x85",
        "five": b"(K\x01K\x01K\x01K\x01K\x01t",
    }
    for index, name in enumerate(allowed_names()):
        module, _, attribute = name.rpartition(".")
        named = b"c" + f"{module}\n{attribute}\n".encode()
        for kind, opcodes in arguments.items():
            for how, call in (("R", b"R"), ("N", b"\x81")):
                content = b"\x80\x02}" + text("a") + named + opcodes + call + b"s."
                (tmp_path / f"{index}_{kind}_{how}.pkl").write_bytes(content)
    found = outcomes(tmp_path)
    assert len(found) == len(allowed_names()) * len(arguments) * 2
    assert {name: code for name, code in found.items() if code not in (READ, REFUSED)} == {}


# ---- time and memory -----------------------------------------------------------------------------


def exhausting():
    """Pickles that a short program fills with work."""
    nested = b"\x80\x02}" + text("a") + b"]" * 5_000_000 + b"."
    shared = b"\x80\x02]q\x00" + b"(h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00e" * 3 + b"."
    return {
        "lists": nested,
        "dicts": b"\x80\x02" + b"}" * 5_000_000 + b".",
        "shared_lists": shared,
        "a_place_in_the_memo": b"\x80\x02}r" + struct.pack("<I", 0xFFFFFFF0) + b".",
        "a_number": b"\x80\x02}" + pickle.LONG4 + struct.pack("<i", 1 << 22) + b"\x01" * (1 << 22)
        + b"K\x01s.",
        "many_keys": pickle.dumps({(i, i): i for i in range(20_000)}, protocol=2),
        "an_extension": b"\x80\x02}\x82\x01s.",
        "an_instance": b"\x80\x02(ibuiltins\nlist\n.",
    }  # fmt: skip


def test_programs_that_would_fill_the_memory(tmp_path):
    for name, content in exhausting().items():
        (tmp_path / f"{name}.pkl").write_bytes(content)
        archive_with(tmp_path / f"{name}.pth", content)
    found = outcomes(tmp_path)
    assert {name: code for name, code in found.items() if code != REFUSED} == {}


def test_one_storage_under_many_names(tmp_path):
    """10,000 tensors of one record take 10,000 times its bytes once they are used."""
    shared = torch.ones(1 << 20)
    torch.save({f"a{i}": shared.view(-1) for i in range(1000)}, tmp_path / "c.pth")
    with pytest.raises(UserError, match="unpacks to tensors of"):
        load_checkpoint(tmp_path / "c.pth")
    few = {f"a{i}": shared.view(-1) for i in range(5)}
    torch.save(few, tmp_path / "few.pth")
    assert load_checkpoint(tmp_path / "few.pth").keys() == few.keys()


def test_long_programs_of_any_opcode(tmp_path):
    """The count is of all opcodes, those of the memo included."""
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02}q\x00" + b"h\x00" * 2_100_000 + b".")
    with pytest.raises(UserError, match="more than tensors and plain values"):
        load_checkpoint(tmp_path / "a.pkl")


# ---- a sound network, and what is beside it ------------------------------------------------------


def unfolding(depth=60):
    """A list that prints as billions."""
    node = "ha"
    for _ in range(depth):
        node = [node] * 9
    return node


def deep(depth=3000):
    node = []
    for _ in range(depth):
        node = [node]
    return node


def itself():
    node = {}
    node["again"] = node
    return node


BESIDE = {
    "unfolding": unfolding,
    "deep": deep,
    "itself": itself,
    "a large text": lambda: "x" * 2_000_000,
    "a tensor": lambda: torch.ones(3),
    "a number that is none": lambda: float("nan"),
    "a large number": lambda: 10**4000,
    "odd keys": lambda: {(1, 2): 3, 1: 2, None: 4},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", BESIDE)
def test_a_sound_network_is_converted_whatever_is_beside_it(tmp_path, small, kind, legacy):
    value = BESIDE[kind]()
    content = {"state_dict": small, "epoch": value, "arch": value, "optimizer": {"state": value}}
    content["moco_d2"] = dict.fromkeys(
        ("version", "pretext", "iteration", "made_with", "scaling", "metrics", "processes"), value
    )
    content["moco_d2"]["config"] = {"MOCO": value, "SOLVER": value}
    # Deep lists need a deep stack, which Python 3.12 has only for a pickler that is not in C.
    pickler = types.SimpleNamespace(**(vars(pickle) | {"Pickler": pickle._Pickler}))
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)
    try:
        torch.save(content, tmp_path / "c.pth", pickler, _use_new_zipfile_serialization=not legacy)
    finally:
        sys.setrecursionlimit(before)
    if kind == "a large number":  # no generator's state, no step
        with pytest.raises(UserError):
            convert(tmp_path / "c.pth", tmp_path / "w.pth")
        return
    report = convert(tmp_path / "c.pth", tmp_path / "w.pth")
    assert report["tensors_found"] == report["tensors_expected"]
    assert len(json.dumps(report)) < 100_000
    *_, origin = load_backbone(tmp_path / "c.pth")
    assert len(json.dumps(dataclasses.asdict(origin))) < 100_000


ONE = torch.ones(1)
NAMES = {
    "a long name": lambda: {"." * 1_000_000 + "layer1.0.conv1.weight": ONE},
    "long names": lambda: {"a." * 300 + f"{i}.layer1.0.conv1.weight": ONE for i in range(1000)},
    "many names": lambda: {f"{i}.weight": torch.ones(1) for i in range(30_000)},
    "many networks": lambda: {f"{i}.layer1.0.conv1.weight": ONE for i in range(15_000)},
}


@pytest.mark.parametrize("kind", NAMES)
def test_names_that_would_take_hours_are_refused_at_once(tmp_path, kind):
    torch.save(NAMES[kind](), tmp_path / "c.pth")
    with pytest.raises(UserError, match=r"it holds [0-9]+|[0-9]+ entries") as caught:
        convert(tmp_path / "c.pth", tmp_path / "w.pth")
    assert len(str(caught.value)) < 1000


def named(name):
    module, _, attribute = name.rpartition(".")
    return b"c" + f"{module}\n{attribute}\n".encode()


def multiplying():
    """Calls that each copy what one object holds."""
    long_text = pickle.BINUNICODE + struct.pack("<I", 1 << 20) + b"x" * (1 << 20) + b"q\x01"
    many = b"](" + b"".join(b"K" + bytes([i % 256]) for i in range(200_000)) + b"eq\x01"
    pairs = b"](" + b"".join(text(str(i)) + b"K\x01\x86" for i in range(50_000)) + b"eq\x01"
    state = b"}(" + b"".join(text(str(i)) + b"N" for i in range(50_000)) + b"uq\x01"
    tuple_ = b"(" + b"N" * 200_000 + b"tq\x01"
    colliding = [(k * ((1 << 61) - 1), None) for k in range(60_000)]
    ordered = named("collections.OrderedDict")
    times = 2000
    return {
        "encoded": b"\x80\x02" + long_text + b"0](" + (named("_codecs.encode") + b"h\x01"
        + text("latin1") + b"\x86R") * times + b"e.",
        "scalars": b"\x80\x02" + long_text + b"0](" + (named("numpy.core.multiarray.scalar")
        + named("numpy.dtype") + text("S1048576") + b"\x85Rh\x01\x86R") * times + b"e.",
        "dicts": b"\x80\x02" + pairs + b"0](" + (ordered + b"h\x01\x85R") * times + b"e.",
        "states": b"\x80\x02" + state + b"0](" + (named("argparse.Namespace") + b")\x81h\x01b")
        * times + b"e.",
        "arguments": b"\x80\x02" + tuple_ + b"0](" + (named("argparse.Namespace") + b"h\x01R")
        * times + b"e.",
        "collisions": pickle.dumps(Calls(collections.OrderedDict, colliding), protocol=2),
        "lists": b"\x80\x02" + many + b"0](" + (ordered + b"h\x01\x85R") * times + b"e.",
    }  # fmt: skip


def test_calls_that_multiply_what_they_are_given(tmp_path):
    """A short program may copy one long text, dict or tuple thousands of times."""
    for name, content in multiplying().items():
        (tmp_path / f"{name}.pkl").write_bytes(content)
    found = outcomes(tmp_path)
    assert {name: code for name, code in found.items() if code != REFUSED} == {}


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_entry_that_unpacks_to_more_than_it_declares(tmp_path, method):
    """zipfile unpacks all of it before it compares the size."""
    path = tmp_path / "c.pth"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data/0", bytes(4 << 20))
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(signature) + offset, 1000)
    path.write_bytes(data)
    with pytest.raises(UserError, match="packed by method"):
        load_checkpoint(path)


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_training_code_keeps_beside_its_tensors(tmp_path, protocol):
    node = CfgNode({"MODEL": {"D": 3}})
    content = {
        "w": torch.ones(2),
        "nothing": b"",
        "history": np.zeros((0, 3)),
        "config": node,
        "started": datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc),
        "took": datetime.timedelta(seconds=3),
        "last": collections.deque([1, 2], maxlen=5),
        "epochs": range(3),
        "options": types.SimpleNamespace(lr=1),
        "type": np.float32,
    }
    torch.save(content, tmp_path / "c.pth", pickle_protocol=protocol)
    loaded = load_checkpoint(tmp_path / "c.pth")
    assert torch.equal(loaded["w"], torch.ones(2)) and loaded["nothing"] == b""
    assert loaded["history"].shape == (0, 3)
    assert loaded["config"] == {"MODEL": {"D": 3}} and type(loaded["config"]) is dict
    assert loaded["options"].lr == 1


def test_the_sentence_says_what_is_not_plain(tmp_path):
    torch.save({"a": np.array([None, 1], dtype=object)}, tmp_path / "c.pth")
    with pytest.raises(UserError, match=r"arrays of the type 'O8' is not allowed"):
        load_checkpoint(tmp_path / "c.pth")


# ---- what is written out again -------------------------------------------------------------------

ESCAPE = "\x1b]0;x\x07\nerror: forged"


@pytest.mark.parametrize("place", ["tensor", "prefix", "container"])
def test_names_that_are_no_text_reach_no_terminal(tmp_path, small, place):
    state = {
        "tensor": {**small, ESCAPE: torch.ones(1)},
        "prefix": {f"{ESCAPE}.{k}": v for k, v in small.items()},
        "container": {ESCAPE: small},
    }[place]
    torch.save(state, tmp_path / "c.pth")
    with pytest.raises(UserError, match="which is not printable text") as caught:
        convert(tmp_path / "c.pth", tmp_path / "w.pth")
    assert str(caught.value).isprintable()


def test_a_pattern_for_a_prefix_is_no_pattern(tmp_path, small):
    """Else "*." would make every tensor a known companion."""
    state = {f"*.{k}": v for k, v in small.items()} | {"other.fc.weight": torch.ones(1)}
    torch.save({"state_dict": state}, tmp_path / "c.pth")
    with pytest.raises(UserError, match=r"unknown \(other\.fc\.weight"):
        convert(tmp_path / "c.pth", tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "provenance",
    [
        {"a": float("nan")},
        {"a": "\x1b[31m"},
        {"a": "\ud800"},
        {"k" * 400: 1},
        {"a": "x" * 200_000},
        {"a": argparse.Namespace(x=1)},
        {"a": torch.ones(1)},
        {"a": b"x"},
        {"a": unfolding(5)},
        {"a": deep(100)},
        itself(),
    ],
    ids=lambda value: str(type(next(iter(value.values()))).__name__) + next(iter(value))[:3],
)
def test_a_report_in_a_file_of_weights_is_json_or_none(tmp_path, provenance, suffix):
    """It goes into checkpoints and the record of a run, which it would spoil at its end."""
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save({"model": {}, "provenance": provenance}, path)
    else:
        try:
            metadata = {"provenance": json.dumps(provenance)}
            safetensors.torch.save_file({"a": torch.ones(1)}, path, metadata=metadata)
        except (TypeError, ValueError, UnicodeError, MemoryError):
            pytest.skip("JSON has no such value")
    assert read_provenance(path) is None
