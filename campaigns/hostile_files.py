"""Makes hostile files for campaigns/fuzz_checkpoints.py, each from a seed.

* Programs: pickles that use names which the reader allows (and sometimes names which it forbids),
  with arguments and states that no writer uses: addresses, offsets, strides, object types, huge
  sizes.
* Lying archives: zip files whose directory, headers and members contradict each other.
* Headers: safetensors and NumPy headers with the types, shapes and offsets of other data.
* Exhausting files: a few bytes that take gigabytes or hours to read.
"""

import io
import json
import pickle
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moco_d2.checkpoint.pickle_stubs import allowed_names

Write = Callable[[Any, str, Path], None]
_MARKER = "@@a program is put here@@"
_FORBIDDEN = (
    "os.system", "builtins.eval", "builtins.getattr", "builtins.exec", "numpy.load", "torch.load",
    "numpy.memmap", "ctypes.string_at", "operator.attrgetter", "importlib.import_module",
    "torch.storage._load_from_bytes", "torch.UntypedStorage.from_file", "numpy.core.numeric.array",
    "torch._utils._rebuild_nested_tensor", "codecs.decode", "copyreg._reconstructor",
)  # fmt: skip


# ---- programs ------------------------------------------------------------------------------------


class Program:
    """Makes opcodes of protocol 2 that leave one object on the stack."""

    def __init__(self, rng: random.Random, marker: Path, keys: list[str]):
        """
        Args:
            rng: The random generator.
            marker: A file that no program may create.
            keys: The keys of the file's storages.
        """
        self.rng, self.marker, self.keys = rng, marker, keys

    def value(self, depth: int = 4) -> bytes:
        """Make any value."""
        rng = self.rng
        if depth <= 0:
            return self.plain()
        kinds = (self.plain, self.call, self.call, self.call, self.container, self.filled)
        kind = rng.choice(kinds)
        return kind() if kind == self.plain else kind(depth)

    def plain(self) -> bytes:
        """Make a number, text or bytes."""
        rng = self.rng
        numbers = (0, 1, 4, -1, 255, 1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63), 0xDEAD)
        return rng.choice(
            (
                lambda: pickle.dumps(rng.choice(numbers), protocol=2)[2:-1],
                lambda: pickle.dumps(rng.choice((0.5, float("nan"), 1e300)), protocol=2)[2:-1],
                lambda: text(
                    rng.choice(("f4", "O", "V8", "U9", "b", "latin1", "rot13", "cpu", "<"))
                ),
                lambda: text(f"touch {self.marker}"),
                lambda: _bytes(rng.randbytes(rng.choice((0, 1, 4, 8, 16)))),
                lambda: rng.choice((b"N", b"\x88", b"\x89", b")", b"]", b"}")),
                self.sizes,
                self.storage,
            )
        )()

    def sizes(self) -> bytes:
        """Make a tuple of integers."""
        rng = self.rng
        few = (0, 1, 2, 4, -1, 1 << 16, 1 << 31, 1 << 33, (1 << 62) + 1)
        many = rng.choice((0, 1, 1, 2, 2, 4, 70))
        return pickle.dumps(tuple(rng.choice(few) for _ in range(many)), protocol=2)[2:-1]

    def storage(self) -> bytes:
        """Make a persistent id, of a storage that may or may not exist."""
        rng = self.rng
        key = rng.choice([*self.keys, "9999", "../0", "data.pkl"])
        kind = rng.choice(("FloatStorage", "LongStorage", "QInt8Storage", "FloatTensor"))
        count = rng.choice((0, 1, 4, 64, 1 << 20, 1 << 40, -1))
        named = b"c" + f"torch\n{kind}\n".encode()
        rest = pickle.dumps(count, protocol=2)[2:-1]
        return b"(" + text("storage") + named + text(key) + text("cpu") + rest + b"NtQ"

    def name(self) -> bytes:
        """Make the name of a class or function."""
        full = self.rng.choice(allowed_names() if self.rng.random() < 0.95 else _FORBIDDEN)
        module, _, attribute = full.rpartition(".")
        return b"c" + f"{module}\n{attribute}\n".encode()

    def call(self, depth: int) -> bytes:
        """Make a call, either close to that of a writer or with random arguments."""
        rng = self.rng
        if rng.random() < 0.5:
            return rng.choice(_NEAR)(self)
        arguments = b"(" + b"".join(self.value(depth - 2) for _ in range(rng.randrange(8))) + b"t"
        return self.name() + arguments + rng.choice((b"R", b"R", b"\x81"))

    def container(self, depth: int) -> bytes:
        """Make a list, tuple or dict."""
        rng = self.rng
        items = [self.value(depth - 1) for _ in range(rng.randrange(4))]
        kind = rng.choice("ltd")
        if kind == "l":
            return b"](" + b"".join(items) + b"e"
        if kind == "t":
            return b"(" + b"".join(items) + b"t"
        pairs = b"".join(text(str(i)) + item for i, item in enumerate(items))
        return b"}(" + pairs + b"u"

    def filled(self, depth: int) -> bytes:
        """Make an object and set a state or items that it does not expect."""
        rng = self.rng
        thing = rng.choice((self.name, lambda: self.call(depth), self.storage))()
        return rng.choice(
            (
                lambda: thing + self.value(depth - 1) + b"b",
                lambda: thing + b"N" + b"}" + text("shape") + self.value(1) + b"s\x86b",
                lambda: thing + self.value(1) + b"a",
                lambda: thing + text("x") + self.value(1) + b"s",
                lambda: thing + b"2" + b"b",  # the object is its own state
            )
        )()


def text(value: str) -> bytes:
    """Return the opcode of a string."""
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _bytes(data: bytes) -> bytes:
    return b"c_codecs\nencode\n" + text(data.decode("latin1")) + text("latin1") + b"\x86R"


def _dtype(program: Program) -> bytes:
    code = program.rng.choice(
        ("f4", "f8", "u1", "i8", "O", "O8", "V8", "U4", "S4", "M8[s]", "f4,O")
    )
    made = b"cnumpy\ndtype\n" + text(code) + b"\x89\x88\x87R"
    if program.rng.random() < 0.3:
        return made
    state = (3, program.rng.choice("<>|=O"), None, None, None, -1, -1, 0)
    if program.rng.random() < 0.3:
        state = (3, "<", None, ("a",), {"a": 1}, 1 << 40, 1, 63)
    return made + pickle.dumps(state, protocol=2)[2:-1] + b"b"


def _array(program: Program) -> bytes:
    """Make a call of NumPy's constructors, nearly as in its pickles."""
    rng = program.rng
    data = _bytes(rng.randbytes(rng.choice((0, 4, 8, 16, 64))))
    module = rng.choice(("numpy._core.multiarray", "numpy.core.multiarray"))
    empty = (
        f"c{module}\n_reconstruct\ncnumpy\nndarray\n".encode() + b"K\x00\x85" + text("b") + b"\x87R"
    )
    return rng.choice(
        (
            lambda: b"cnumpy\nndarray\n(" + program.sizes() + _dtype(program) + data
            + program.plain() + rng.choice((b"", program.sizes())) + b"tR",
            lambda: b"cnumpy\nndarray\n" + program.sizes() + b"\x85R",
            lambda: empty + b"(K\x01" + program.sizes() + _dtype(program) + b"\x89" + data + b"tb",
            lambda: empty + b"(K\x01" + program.sizes() + _dtype(program) + b"\x89](" + data
            + b"etb",
            lambda: f"c{module}\nscalar\n".encode() + _dtype(program) + data + b"\x86R",
            lambda: f"c{module.replace('multiarray', 'numeric')}\n_frombuffer\n(".encode() + data
            + _dtype(program) + program.sizes() + text(rng.choice("CFA")) + b"tR",
        )
    )()  # fmt: skip


def _tensor(program: Program) -> bytes:
    """Make a call of torch's functions, nearly as in files of torch.save."""
    rng = program.rng
    function = rng.choice(
        ("_rebuild_tensor_v2", "_rebuild_tensor", "_rebuild_tensor_v3", "_rebuild_qtensor")
    )
    parts = [program.storage(), program.plain(), program.sizes(), program.sizes(), b"\x89", b"}"]
    if function == "_rebuild_tensor_v3":
        parts.append(b"ctorch\n" + rng.choice((b"float32", b"complex128", b"bool")) + b"\n")
    tensor = f"ctorch._utils\n{function}\n(".encode() + b"".join(parts) + b"tR"
    return rng.choice(
        (
            lambda: tensor,
            lambda: tensor + b"(" + program.storage() + b"K\x00" + program.sizes() * 2 + b"tb",
            lambda: b"ctorch._utils\n_rebuild_parameter\n" + tensor + b"\x88}\x87R",
            lambda: b"ctorch._utils\n_rebuild_sparse_tensor\nN(" + tensor * 2 + b"t\x86R",
            lambda: b"ctorch._tensor\n_rebuild_from_type_v2\n(" + program.name() + program.name()
            + b"(" + tensor + b"t}tR",
        )
    )()  # fmt: skip


_NEAR = (_array, _tensor, _dtype)


def program_beside(
    rng: random.Random, state: Any, container: str, path: Path, write: Write
) -> None:
    """Write a sound network with a program as another entry."""
    _with_program(rng, {"state_dict": state, "extra": _MARKER}, container, path, write)


def program_within(
    rng: random.Random, state: Any, container: str, path: Path, write: Write
) -> None:
    """Write a network with a program instead of one tensor."""
    name = rng.choice([k for k, v in state.items() if v.is_floating_point()])
    _with_program(rng, {"state_dict": {**state, name: _MARKER}}, container, path, write)


def program_alone(rng: random.Random, state: Any, container: str, path: Path, write: Write) -> None:
    """Write a file that is only a program."""
    _with_program(rng, _MARKER, container, path, write)


def _with_program(
    rng: random.Random, content: Any, container: str, path: Path, write: Write
) -> None:
    write(content, container, path)
    data = path.read_bytes()
    keys = ["0", "1"]
    if container == ".legacy.pth":
        keys = [op[1] for op in pickletools.genops(data[data.index(b"\x80\x02", 100):])
                if isinstance(op[1], str) and op[1].isdecimal()][:2] or keys  # fmt: skip
    program = Program(rng, path.parent / "executed", keys).value()
    if container == ".pth":
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, old in members.items():
                new = old.replace(text(_MARKER), program) if name.endswith("data.pkl") else old
                archive.writestr(name, new)
    else:
        path.write_bytes(data.replace(text(_MARKER), program))


# ---- archives ------------------------------------------------------------------------------------

_ENTRY, _LOCAL, _END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"


def lying_directory(rng: random.Random, data: bytes) -> bytes:
    """Change a field of the directory: method, checksum, sizes, offset, lengths."""
    fields = ((8, "H"), (10, "H"), (16, "I"), (20, "I"), (24, "I"), (28, "H"), (30, "H"), (42, "I"))
    return _changed(rng, data, _ENTRY, fields)


def lying_header(rng: random.Random, data: bytes) -> bytes:
    """Change a field of a member's local header."""
    fields = ((6, "H"), (8, "H"), (14, "I"), (18, "I"), (22, "I"), (26, "H"), (28, "H"))
    return _changed(rng, data, _LOCAL, fields)


def lying_end(rng: random.Random, data: bytes) -> bytes:
    """Change the offset or the size in the end record of the directory."""
    return _changed(rng, data, _END, ((8, "H"), (10, "H"), (12, "I"), (16, "I"), (20, "H")))


def _changed(
    rng: random.Random, data: bytes, signature: bytes, fields: tuple[tuple[int, str], ...]
) -> bytes:
    positions = [i for i in range(len(data)) if data.startswith(signature, i)]
    if not positions:
        return data[:-1]
    out, at = bytearray(data), rng.choice(positions)
    for _ in range(rng.choice((1, 1, 2))):
        offset, code = rng.choice(fields)
        size = struct.calcsize(code)
        if at + offset + size > len(out):
            continue
        (old,) = struct.unpack_from(f"<{code}", out, at + offset)
        limit = (1 << 8 * size) - 1
        new = rng.choice(
            (0, 1, 8, old + 1, old - 1, old // 2, old * 2, limit, rng.randrange(limit))
        )
        struct.pack_into(f"<{code}", out, at + offset, new & limit)
    return bytes(out)


def two_archives(rng: random.Random, data: bytes) -> bytes:
    """Join two archives: readers disagree about which of them is the right one."""
    first, second = (data, _other(data)) if rng.random() < 0.5 else (_other(data), data)
    return first + rng.randbytes(rng.choice((0, 0, 7))) + second


def _other(data: bytes) -> bytes:
    """Return the archive with changed numbers and correct checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        for member in old.infolist():
            content = bytearray(old.read(member))
            if "/data/" in member.filename and content:
                content[0] ^= 1
            new.writestr(member.filename, bytes(content))
    return file.getvalue()


def members_of_other_names(rng: random.Random, data: bytes) -> bytes:
    """Add a member: a second content, a folder, another case, a name outside of the archive."""
    file = io.BytesIO(data)
    with zipfile.ZipFile(file, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        name = rng.choice(
            (
                "other/data.pkl", f"{root}/DATA.PKL", f"{root}/data/../data.pkl", "data.pkl",
                f"{root}/constants.pkl", f"{root}/byteorder", f"{root}/data/0/", "a.npy",
                "../../escaped", "/escaped", f"{root}/data/\x00",
            )
        )  # fmt: skip
        archive.writestr(name, rng.choice((b"", b"big", b"\x80\x02}.", rng.randbytes(64))))
    return file.getvalue()


# ---- headers -------------------------------------------------------------------------------------


def lying_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Change types, shapes or offsets in the header."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    change = rng.choice(("dtype", "shape", "data_offsets", "twice", "metadata", "length", "deep"))
    if change == "dtype":
        entry["dtype"] = rng.choice(("I64", "F64", "BOOL", "F8_E4M3", "O", "", "X" * 10_000))
    elif change == "shape":
        entry["shape"] = rng.choice(([1 << 40], [1 << 62, 4], [-1], [0], [], [1] * 10_000, "x"))
    elif change == "data_offsets":
        entry["data_offsets"] = rng.choice(
            ([0, 1 << 62], [-8, 0], [8, 0], [0, 4], [1 << 70, 1], [])
        )
    elif change == "twice":
        other = rng.choice(list(header))
        header[name] = header[other]
    elif change == "metadata":
        header["__metadata__"] = rng.choice(({"a": 1}, {"provenance": "[" * 50_000}, [], "x"))
    body = json.dumps(header).encode()
    if change == "deep":
        body = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    size = rng.choice((0, 1 << 40, (1 << 64) - 1, length // 2)) if change == "length" else len(body)
    return struct.pack("<Q", size) + body + data[8 + length :]


def lying_npy(rng: random.Random, data: bytes) -> bytes:
    """Change the type, shape or order in an array's header, with a correct checksum."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        chosen = rng.choice([m.filename for m in old.infolist() if m.filename.endswith(".npy")])
        for member in old.infolist():
            content = old.read(member)
            if member.filename == chosen:
                content = _npy(rng, content)
            new.writestr(member.filename, content)
    return file.getvalue()


def _npy(rng: random.Random, content: bytes) -> bytes:
    start = content.index(b"\n") + 1
    array = np.load(io.BytesIO(content))
    descr = rng.choice(
        ("'<f4'", "'|O'", "'<M8[s]'", "'|V0'", "'|S0'", "[('a', '|O')]",
         "[('a', '<f4', (9999999,))]", "'<f4,<f4'", "(" * 500 + "1" + ")" * 500,
         "__import__('os')", "'<f16'")
    )  # fmt: skip
    shape = rng.choice((str(array.shape), "(1099511627776,)", "(4611686018427387904, 4)", "(-1,)",
                        "()", "(True,)", "'x'", "(0, 99999999999)"))  # fmt: skip
    header = f"{{'descr': {descr}, 'fortran_order': {rng.choice(('False', 'True', '2'))}, 'shape': "
    text_ = (header + shape + ", }").encode() + b"\n"
    version = bytes((rng.choice((1, 1, 1, 2, 3, 9)), 0))
    return b"\x93NUMPY" + version + struct.pack("<H", len(text_)) + text_ + content[start:]


# ---- files that exhaust --------------------------------------------------------------------------


def exhausting_program(rng: random.Random) -> bytes:
    """Return a pickle without a network that takes much work for its size."""
    many = rng.choice((1_000, 100_000, 3_000_000))
    a = text("a")
    return rng.choice(
        (
            lambda: b"\x80\x02}" + a + b"]" * many + b".",
            lambda: b"\x80\x02}" + a + b"]" * many + b"a" * (many - 1) + b"s.",
            lambda: b"\x80\x02" + b"}" * many + b".",
            lambda: b"\x80\x02}" + b")" + b"\x85" * many + b"K\x01s.",
            lambda: b"\x80\x02}" + a + b"N" + b"\x85" * many + b"s.",
            lambda: b"\x80\x02}" + a + b"]q\x00" + b"(h\x00h\x00h\x00h\x00e" * (many // 10)
            + b"s.",
            lambda: b"\x80\x02}r" + struct.pack("<I", rng.randrange(1 << 32)) + b".",
            lambda: b"\x80\x02}" + a + b"\x8b" + struct.pack("<i", many) + b"\x01" * many + b"s.",
            lambda: b"\x80\x02}" + a + b"L" + b"9" * many + b"L\ns.",
            lambda: b"\x80\x02}" + a + b"X" + struct.pack("<I", 0xFFFFFFFF) + b"x" * many + b"s.",
            lambda: b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"}.",
            lambda: b"\x80\x04}\x8e" + struct.pack("<Q", 1 << 60) + b"x.",
            lambda: b"\x80\x05}\x96" + struct.pack("<Q", 1 << 40) + b"x.",
            lambda: pickle.dumps({(i, -i): i for i in range(min(many, 60_000))}, protocol=2),
            lambda: b"\x80\x02}q\x00" + b"h\x00" * many + b".",
            lambda: b"\x80\x02}" + b"(" * many + b".",
            lambda: b"\x80\x02}" + b"2" * many + b".",
            lambda: pickle.dumps({"." * min(many, 100_000) + f"layer1.{i}.conv1.weight": np.ones(1)
                                  for i in range(3)}, protocol=2),
        )
    )()  # fmt: skip


def exhausting_tensors(rng: random.Random, state: Any) -> Any:
    """Return a sound network beside tensors, dicts and lists that unpack from a few bytes."""
    one = torch.ones(1)
    node: Any = "x"
    for _ in range(60):
        node = rng.choice(([node] * 9, {"a": node, "b": node}))
    extra = rng.choice(
        (
            one.expand(6 << 28),
            one.expand(1 << 40),
            {f"a{i}": one.expand(1 << 22) for i in range(100)},
            node,
            {f"{i}.weight": one for i in range(3000)},
            {f"{i}.layer1.0.conv1.weight": one for i in range(300)},
        )
    )
    where = rng.choice(("extra", "epoch", "moco_d2", "optimizer", "config"))
    if where == "moco_d2":
        extra = {"config": extra, "version": extra, "scaling": extra}
    return {"state_dict": state, where: extra}
