"""Makes damaged and odd images from a seed, for the reader of pretraining and for whole runs."""

import dataclasses
import io
import os
import random
import re
import signal
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from support.toy_data import make_class_folders, make_voc

from fault_kinds.case import BrokenPromiseError, Kind, Outcome, check
from fault_kinds.jobs import Job
from fault_kinds.machine import one_sentence
from fault_kinds.workloads import FineTuning, Pretraining
from moco_d2.pretrain.data.images import UnreadableImageError, read_image
from moco_d2.pretrain.data.sources import list_images

LIMIT_S = 20  # time for one image
_DECODES, _REFUSED, _EITHER = "decodes", "refused", "either"

#: Random generator -> the file's bytes, its suffix, its expected outcome.
Maker = Callable[[random.Random], tuple[bytes, str, str]]


def _pixels(rng: random.Random, *, width: int = 0, height: int = 0) -> Image.Image:
    width, height = width or rng.randint(8, 300), height or rng.randint(8, 300)
    noise = np.random.default_rng(rng.getrandbits(32)).integers(
        0, 256, (height, width, 3), np.uint8
    )
    return Image.fromarray(noise)


def _encode(image: Image.Image, format: str, **more: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **more)
    return file.getvalue()


_FORMATS = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "BMP": ".bmp",
    "WEBP": ".webp",
    "TIFF": ".tif",
    "PPM": ".ppm",
}


def _sound(rng: random.Random) -> tuple[bytes, str]:
    format = rng.choice(list(_FORMATS))
    return _encode(_pixels(rng), format), _FORMATS[format]


def _truncated(rng: random.Random) -> tuple[bytes, str, str]:
    content, suffix = _sound(rng)
    return content[: rng.randrange(1, len(content))], suffix, _EITHER


def _half(rng: random.Random) -> tuple[bytes, str, str]:
    """Make half of a JPEG or PNG, in which pixels are missing in any case."""
    format = rng.choice(("JPEG", "PNG"))
    content = _encode(_pixels(rng, width=200, height=200), format)
    return content[: len(content) // 2], _FORMATS[format], _REFUSED


def _flipped(rng: random.Random) -> tuple[bytes, str, str]:
    content, suffix = _sound(rng)
    content = bytearray(content)
    for _ in range(rng.choice((1, 3, 30))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content), suffix, _EITHER


def _noise(rng: random.Random) -> tuple[bytes, str, str]:
    return rng.randbytes(rng.randint(1, 5000)), rng.choice(list(_FORMATS.values())), _REFUSED


def _head_only(rng: random.Random) -> tuple[bytes, str, str]:
    """Make a file of a magic number and noise."""
    content, suffix = _sound(rng)
    return content[:16] + rng.randbytes(rng.randint(0, 500)), suffix, _EITHER


def _empty(rng: random.Random) -> tuple[bytes, str, str]:
    return b"", rng.choice(list(_FORMATS.values())), _REFUSED


def _zeros(rng: random.Random) -> tuple[bytes, str, str]:
    return bytes(rng.randint(1, 5000)), ".jpg", _REFUSED


def _text(rng: random.Random) -> tuple[bytes, str, str]:
    page = rng.choice((b"<html><body>404 Not Found</body></html>", b"<svg xmlns='x'/>", b"{}"))
    return page, ".jpg", _REFUSED


def _wrong_suffix(rng: random.Random) -> tuple[bytes, str, str]:
    content, suffix = _sound(rng)
    return content, rng.choice([s for s in _FORMATS.values() if s != suffix]), _DECODES


def _of_mode(mode: str, *formats: str) -> Maker:
    def make(rng: random.Random) -> tuple[bytes, str, str]:
        format = rng.choice(formats)
        return _encode(_pixels(rng).convert(mode), format), _FORMATS[format], _DECODES

    return make


def _deep(rng: random.Random) -> tuple[bytes, str, str]:
    """Make a gray image with 16 bits per pixel."""
    values = np.random.default_rng(rng.getrandbits(32)).integers(0, 65536, (40, 50), np.uint16)
    format = rng.choice(("PNG", "TIFF"))
    return _encode(Image.fromarray(values), format), _FORMATS[format], _DECODES


def _float(rng: random.Random) -> tuple[bytes, str, str]:
    values = np.full((20, 20), rng.choice((0.5, np.nan, np.inf, -1e30)), np.float32)
    return _encode(Image.fromarray(values), "TIFF"), ".tif", _REFUSED


def _transparent(rng: random.Random) -> tuple[bytes, str, str]:
    """Make an image with a palette with one transparent entry."""
    image = _pixels(rng).convert("P")
    return _encode(image, "PNG", transparency=rng.randrange(256)), ".png", _DECODES


def _rotated(rng: random.Random) -> tuple[bytes, str, str]:
    exif = Image.Exif()
    exif[0x0112] = rng.choice((0, 2, 3, 5, 6, 8, 9))  # orientation
    return _encode(_pixels(rng), "JPEG", exif=exif), ".jpg", _DECODES


def _bad_exif(rng: random.Random) -> tuple[bytes, str, str]:
    garbage = b"Exif\0\0" + rng.randbytes(rng.randint(1, 200))
    return _encode(_pixels(rng), "JPEG", exif=garbage), ".jpg", _DECODES


def _tiny(rng: random.Random) -> tuple[bytes, str, str]:
    format = rng.choice(list(_FORMATS))
    return _encode(_pixels(rng, width=1, height=1), format), _FORMATS[format], _DECODES


def _thin(rng: random.Random) -> tuple[bytes, str, str]:
    sides = rng.sample((1, rng.choice((2000, 20_000))), 2)
    return _encode(_pixels(rng, width=sides[0], height=sides[1]), "PNG"), ".png", _DECODES


def _wide(rng: random.Random) -> tuple[bytes, str, str]:
    """Make an image that is 20,000 pixels wide."""
    return _encode(Image.new("RGB", (20_000, 50), (9, 9, 9)), "PNG"), ".png", _DECODES


def _bomb(rng: random.Random) -> tuple[bytes, str, str]:
    """Make a small file whose header declares gigabytes of pixels."""
    side = rng.choice((20_000, 60_000, 2**31 - 1))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data, ".png", _REFUSED


def _large(rng: random.Random) -> tuple[bytes, str, str]:
    """Make an image with more pixels than allowed, but below Pillow's own limit."""
    image = Image.new("1", (12_000, 12_000))
    return _encode(image, "PNG"), ".png", _REFUSED


def _text_bomb(rng: random.Random) -> tuple[bytes, str, str]:
    """Make a PNG whose comment unpacks to 100 MB."""
    plain = _encode(_pixels(rng), "PNG")
    data = b"Comment\0\0" + zlib.compress(bytes(100 << 20), 9)
    crc = zlib.crc32(b"zTXt" + data)
    extra = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", crc)
    return plain[:33] + extra + plain[33:], ".png", _EITHER  # behind IHDR


def _animated(rng: random.Random) -> tuple[bytes, str, str]:
    frames = [_pixels(rng, width=30, height=30) for _ in range(rng.randint(2, 6))]
    format = rng.choice(("WEBP", "PNG", "TIFF"))
    content = _encode(frames[0], format, save_all=True, append_images=frames[1:])
    return content, _FORMATS[format], _DECODES


def _gif(rng: random.Random) -> tuple[bytes, str, str]:
    frames = [_pixels(rng, width=30, height=30) for _ in range(3)]
    content = _encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    return content, ".png", _DECODES


def _progressive(rng: random.Random) -> tuple[bytes, str, str]:
    return _encode(_pixels(rng), "JPEG", progressive=True), ".JPEG", _DECODES


def _trailing(rng: random.Random) -> tuple[bytes, str, str]:
    content, suffix = _sound(rng)
    return content + rng.randbytes(rng.randint(1, 5000)), suffix, _DECODES


def _script(rng: random.Random) -> tuple[bytes, str, str]:
    """Make a PostScript file, which Pillow by default passes to Ghostscript."""
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) print showpage\n%%EOF\n"
    return content, ".jpg", _REFUSED


MAKERS: dict[str, Maker] = {
    "truncated": _truncated,
    "half": _half,
    "flipped bits": _flipped,
    "noise": _noise,
    "magic number and noise": _head_only,
    "zero bytes": _empty,
    "full of zeros": _zeros,
    "a web page": _text,
    "PostScript": _script,
    "wrong extension": _wrong_suffix,
    "CMYK": _of_mode("CMYK", "JPEG", "TIFF"),
    "YCbCr": _of_mode("YCbCr", "JPEG", "TIFF"),
    "Lab": _of_mode("LAB", "TIFF"),
    "gray": _of_mode("L", "JPEG", "PNG", "BMP", "TIFF"),
    "gray and alpha": _of_mode("LA", "PNG", "TIFF"),
    "alpha": _of_mode("RGBA", "PNG", "WEBP", "TIFF"),
    "one bit": _of_mode("1", "PNG", "BMP", "TIFF"),
    "palette": _of_mode("P", "PNG", "BMP", "TIFF"),
    "transparent palette": _transparent,
    "16 bit": _deep,
    "floating point": _float,
    "EXIF-rotated": _rotated,
    "garbage in EXIF": _bad_exif,
    "1x1": _tiny,
    "one pixel thin": _thin,
    "20,000 pixels wide": _wide,
    "decompression bomb": _bomb,
    "144 million pixels": _large,
    "comment of 100 MB": _text_bomb,
    "animated": _animated,
    "GIF": _gif,
    "progressive": _progressive,
    "bytes behind the end": _trailing,
}


class _SlowError(Exception):
    pass


def image(rng: random.Random, folder: Path, i: int) -> Outcome:
    """Read one image with read_image: it must be RGB, or refused with one sentence, in time."""
    name = list(MAKERS)[i % len(MAKERS)]
    content, suffix, expected = MAKERS[name](rng)
    path = folder / f"image{suffix}"
    path.write_bytes(content)

    def expire(*_: object) -> None:
        raise _SlowError

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(LIMIT_S)
    started = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read = read_image(path)
        check(read.mode == "RGB" and min(read.size) > 0, f"{name}: {read.mode}, {read.size}")
        outcome = _DECODES
    except UnreadableImageError as error:
        check("\n" not in str(error), f"{name}: not one sentence: {error}")
        check(str(path) in str(error), f"{name}: the file is not named: {error}")
        outcome = _REFUSED
    except _SlowError as error:
        raise BrokenPromiseError(f"{name}: more than {LIMIT_S} s") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    check(expected in (_EITHER, outcome), f"{name}: {outcome}, but it should be {expected}")
    took = time.monotonic() - started
    return Outcome(f"{name}{suffix}: {outcome} in {took:.2f} s", 1, {outcome: 1})


@dataclasses.dataclass(frozen=True)
class _Set:
    """A class folder of sound and odd images, and the names of those that do not decode."""

    folder: Path
    images: int
    unreadable: frozenset[str]


# Images that take too long, and those with which a set is refused before training.
_NOT_IN_SETS = ("20,000 pixels wide", "floating point")


def _odd_set(root: Path, seed: int) -> _Set:
    """Make 24 sound images, two images of every odd kind, and loops, folders and pipes."""
    make_class_folders(root, 12)
    odd = root / "odd"
    odd.mkdir()
    unreadable = set()
    for name, make in MAKERS.items():
        if name in _NOT_IN_SETS:
            continue
        for n in range(2):
            rng = random.Random(f"{seed}/{name}/{n}")
            content, suffix, _ = make(rng)
            path = odd / f"{name.replace(' ', '_').replace(',', '')}{n}{suffix}"
            path.write_bytes(content)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    read_image(path)
            except UnreadableImageError:
                unreadable.add(path.name)
    (odd / "loop.jpg").symlink_to("loop.jpg")
    (odd / "broken.jpg").symlink_to("nowhere.jpg")
    (odd / "folder.jpg").mkdir()
    (odd / "around").symlink_to("..")
    os.mkfifo(odd / "pipe.jpg")
    listed = list_images(root)
    # A broken link may lead to a folder that is not mounted, so it counts. Loops and pipes do not.
    unreadable |= {Path(p).name for p in listed.paths if not Path(p).is_file()}
    return _Set(root, len(listed), frozenset(unreadable))


def pretraining(rng: random.Random, folder: Path, i: int) -> Outcome:
    """Pretrain on an odd set: the run counts unreadable images, or stops at the default limit."""
    odd = _odd_set(folder / "images", rng.getrandbits(32))
    epoch = odd.images // 8
    workload = Pretraining(
        "odd images",
        **{
            "DATASETS.TRAIN": f"('{odd.folder}',)",
            "MOCO.DATA.MAX_UNREADABLE": 1.0 if i % 2 == 0 else 0.01,
            "DATALOADER.NUM_WORKERS": i % 3,
            "SOLVER.MAX_ITER": 3 * epoch,
            "SOLVER.CHECKPOINT_PERIOD": 0,
        },
    )
    job = Job(**workload.start_words(folder / "out"), before=workload.before)
    if i % 2 == 0:
        code, output = job.wait(), job.output()
        check(code == 0, f"exit code {code}: {output[-400:]}")
        skipped = set(re.findall(r"cannot be read: \S*/([^/\s]+)", output))
        missed = odd.unreadable - skipped
        check(skipped <= odd.unreadable, f"skipped although sound: {skipped - odd.unreadable}")
        # In three epochs, the rest of an epoch's images may remain for the next one.
        check(len(missed) <= 2, f"not counted: {missed}")
        what = f"{odd.images} images of which {len(skipped)} are skipped and named: goes on"
        return Outcome(what, 1, {"images in runs": odd.images, "skipped": len(skipped)})
    sentence = one_sentence(job, "cannot be read", "MOCO.DATA.MAX_UNREADABLE")
    return Outcome(f"{odd.images} images: {sentence[:110]}", 1, {"images in runs": odd.images})


def fine_tuning(rng: random.Random, folder: Path, i: int) -> Outcome:
    """Fine-tune on an odd image: the run trains on it, or names it in a one-sentence error."""
    name = list(MAKERS)[i % len(MAKERS)]
    content, _, expected = MAKERS[name](rng)
    root = make_voc(folder / "VOC2007")
    for file in sorted((root / "JPEGImages").glob("trainval*.jpg")):
        file.write_bytes(content)
    workload = FineTuning(
        name,
        **{
            "DATASETS.TRAIN": f"('voc:{root}:trainval',)",
            "DATASETS.TEST": f"('voc:{root}:test',)",
            "SOLVER.MAX_ITER": 1,
            "SOLVER.STEPS": "()",
            "SOLVER.CHECKPOINT_PERIOD": 0,
            "TEST.EVAL_PERIOD": 0,
        },
    )
    job = Job(**workload.start_words(folder / "out"), before=workload.before)
    if job.wait() == 0:
        check(expected != _REFUSED, f"{name}: trained on")
        return Outcome(f"{name}: trained on", 1, {"trained on": 1})
    sentence = one_sentence(job, "trainval00")
    return Outcome(f"{name}: {sentence[:130]}", 1, {"refused": 1})


KINDS = (
    Kind(
        "image",
        "Any file is read as RGB, or is refused with one sentence that names it, within "
        f"{LIMIT_S} s. The readable files are those that the official code reads.",
        17 * len(MAKERS),
        image,
    ),
    Kind(
        "odd images in pretraining",
        "Unreadable images are skipped, named and counted. If they exceed "
        "MOCO.DATA.MAX_UNREADABLE, the run stops with one sentence.",
        6,
        pretraining,
    ),
    Kind(
        "odd image in fine-tuning",
        "An annotated image that cannot be read, or contradicts its annotation, stops the run with "
        "one sentence that names it.",
        len(MAKERS),
        fine_tuning,
    ),
)
