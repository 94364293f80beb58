"""Published checkpoints by name: ``MODEL.WEIGHTS moco://v2_800ep``, ``tools/convert.py
torchvision://resnet50``.

A name stands for one file of its authors, which is verified by its published hash. The file is
downloaded once, converted, proven and kept in `cache_folder`. Set `MIRROR_VARIABLE` if the authors'
servers cannot be reached. With a filled cache no network is needed.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import filelock
from iopath.common.file_io import PathHandler, get_cache_dir

from moco_d2.checkpoint.download import DownloadError, Patience, download
from moco_d2.errors import UserError, closest
from moco_d2.files import digest, sha256
from moco_d2.version import __version__

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "MOCO_D2_CACHE"
# Address of a folder that holds the files under their own names, e.g. https://example.org/weights.
MIRROR_VARIABLE = "MOCO_D2_MIRROR"

_HEAD = 512  # bytes that show whether a file is a web page
_CONTENT_DIGITS = 16  # of a converted file's sha256, in its name


@dataclass(frozen=True)
class Published:
    """A checkpoint as its authors published it.

    Args:
        name: ``scheme://short_name``.
        url: The authors' address.
        algorithm: The algorithm of the published hash, ``md5`` or ``sha256``.
        hash: The published first hexadecimal digits of the hash.
    """

    name: str
    url: str
    algorithm: str
    hash: str

    @property
    def file(self) -> str:
        """Return the authors' file name."""
        return self.url.rpartition("/")[2]

    @property
    def address(self) -> str:
        """Return the address to download from: the mirror's if it is set, else the authors'.

        Raises:
            UserError: If the mirror is no http address.
        """
        mirror = os.environ.get(MIRROR_VARIABLE, "")
        if not mirror:
            return self.url
        if urlsplit(mirror).scheme not in ("http", "https"):
            raise UserError(
                f"{MIRROR_VARIABLE} {mirror} is not an http or https address; set it to the "
                f"address of a folder that holds {self.file}, or unset it"
            )
        return f"{mirror.rstrip('/')}/{self.file}"


def _moco(name: str, md5: str) -> Published:
    # Addresses and md5: README of the official MoCo code.
    folder = f"https://dl.fbaipublicfiles.com/moco/moco_checkpoints/moco_{name}"
    return Published(f"moco://{name}", f"{folder}/moco_{name}_pretrain.pth.tar", "md5", md5)


def _torchvision(file: str) -> Published:
    # torchvision puts the sha256 into the file name.
    name, _, sha = file.removesuffix(".pth").rpartition("-")
    url = f"https://download.pytorch.org/models/{file}"
    return Published(f"torchvision://{name}", url, "sha256", sha)


# The torchvision weights are IMAGENET1K_V1: a simple recipe close to the original papers', and the
# supervised baseline of MoCo's time. IMAGENET1K_V2 is a later, longer, more regularized recipe.
PUBLISHED = (
    _moco("v1_200ep", "b251726a"),
    _moco("v2_200ep", "59fd9945"),
    _moco("v2_800ep", "a04e12f8"),
    _torchvision("resnet18-f37072fd.pth"),
    _torchvision("resnet34-b627a593.pth"),
    _torchvision("resnet50-0676ba61.pth"),
    _torchvision("resnet101-63fe2227.pth"),
    _torchvision("resnet152-394f9c45.pth"),
    _torchvision("resnext50_32x4d-7cdf4587.pth"),
    _torchvision("resnext101_32x8d-8ba56ff5.pth"),
    _torchvision("wide_resnet50_2-95faca4d.pth"),
    _torchvision("wide_resnet101_2-32ee1156.pth"),
)


def cache_folder() -> Path:
    """Return $MOCO_D2_CACHE, or the folder moco_d2 in iopath's cache.

    iopath's cache is $FVCORE_CACHE, or else ~/.torch/iopath_cache.
    """
    folder = os.environ.get(CACHE_VARIABLE)
    return Path(folder).expanduser() if folder else Path(get_cache_dir()) / "moco_d2"


class Catalog:
    """Finds files by name, in the cache or on the network.

    Any number of processes may need the same name at once: one downloads, the others wait.

    Examples:
    ::
        catalog = Catalog(PUBLISHED)
        catalog.source_file("moco://v2_800ep")   # .../moco_v2_800ep_pretrain.pth.tar
        catalog.weights_file("moco://v2_800ep")  # .../moco_v2_800ep-a04e12f8-0.1.0-....pth
    """

    def __init__(self, published: Iterable[Published], patience: Patience | None = None):
        """
        Args:
            published: All known checkpoints.
            patience: When to give up on a slow server.
        """
        self._published = {entry.name: entry for entry in published}
        self._patience = patience

    @property
    def schemes(self) -> list[str]:
        """Return the sorted schemes, e.g. ``["moco://", "torchvision://"]``."""
        return sorted({f"{urlsplit(name).scheme}://" for name in self._published})

    def source_file(self, name: str) -> Path:
        """Return the path of the authors' file in the cache.

        Raises:
            UserError: If the name is unknown, the file cannot be downloaded, or its hash is wrong.
        """
        entry = self._find(name)
        with _lock(entry):
            return self._source(entry)

    def weights_file(self, name: str) -> Path:
        """Return the path of the converted and proven weights in the cache.

        Raises:
            UserError: If `source_file` raises it, or the conversion fails.
        """
        entry = self._find(name)
        # A file that is there already needs neither a lock nor a writable cache.
        if (file := _converted(entry)) is not None:
            return file
        with _lock(entry):
            return _converted(entry) or _convert(entry, self._source(entry))

    def check_known_file(self, path: str | Path) -> None:
        """Refuse a file that has the name of a published file but other content.

        Raises:
            UserError: If the hash is wrong.
        """
        path = Path(path)
        for entry in self._published.values():
            if path.name == entry.file and path.is_file():
                _check_hash(entry, path)

    def _find(self, name: str) -> Published:
        if name not in self._published:
            hint = closest(name, self._published) or f"there are {', '.join(self._published)}"
            raise UserError(f"there are no published weights {name}; {hint}")
        return self._published[name]

    def _source(self, entry: Published) -> Path:
        file = cache_folder() / entry.file
        if file.is_file():
            _check_hash(entry, file)
        else:
            self._fetch(entry, file)
        return file

    def _fetch(self, entry: Published, file: Path) -> None:
        address, part = entry.address, file.with_name(f"{file.name}.part")
        # Printed, because a run's log begins after its checks.
        print(f"fetching {address}, once, to {file}", file=sys.stderr, flush=True)
        try:
            pieced = download(address, part, self._patience)
            if pieced and _difference(entry, part):
                part.unlink()  # perhaps pieces of two different files
                download(address, part, self._patience)
        except DownloadError as error:
            target = "it" if address == entry.url else entry.url
            raise UserError(
                f"cannot fetch {entry.name}: {error}; fetch {target} elsewhere and put it at "
                f"{file}, or set {MIRROR_VARIABLE} to the address of a folder that holds it"
            ) from error
        if difference := _difference(entry, part):
            part.unlink()
            raise UserError(
                f"{address} does not serve the published {entry.file}: {difference}; fetch "
                f"{entry.url} elsewhere and put it at {file}"
            )
        part.replace(file)


CATALOG = Catalog(PUBLISHED)


def source_file(source: str | Path) -> Path:
    """Return the path of the checkpoint to convert, from a published name or a path.

    Raises:
        UserError: If the published checkpoint cannot be downloaded, or a file has its name but
            other content.
    """
    if str(source).startswith(tuple(CATALOG.schemes)):
        return CATALOG.source_file(str(source))
    CATALOG.check_known_file(source)
    return Path(source)


class WeightsByName(PathHandler):
    """Resolves the names of a catalog to converted weights, for iopath's PathManager."""

    def __init__(self, catalog: Catalog):
        super().__init__()
        self._catalog = catalog

    def _get_supported_prefixes(self) -> list[str]:
        return self._catalog.schemes

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(self._catalog.weights_file(path))

    def _open(self, path: str, mode: str = "r", **kwargs: Any) -> Any:
        return Path(self._get_local_path(path)).open(mode)


def register_path_handler() -> None:
    """Teach Detectron2's PathManager the names of `PUBLISHED`. Idempotent."""
    from detectron2.utils.file_io import PathManager

    PathManager.register_handler(WeightsByName(CATALOG), allow_override=True)


def _check_hash(entry: Published, file: Path) -> None:
    if difference := _difference(entry, file):
        raise UserError(
            f"{file} is not the published {entry.file}: {difference}; rename it if it is another "
            f"file, or delete it and use {entry.name}"
        )


def _convert(entry: Published, source: Path) -> Path:
    from moco_d2.checkpoint.convert import convert

    stem = _stem(entry)
    whole = source.with_name(f"{stem}.pth")
    # The whole hash, of which only the first digits are published.
    hash_ = digest(source, entry.algorithm)
    published = {"name": entry.name, "algorithm": entry.algorithm, "hash": hash_}
    convert(source, whole, published=published)
    file = source.with_name(f"{stem}-{sha256(whole)[:_CONTENT_DIGITS]}.pth")
    for damaged in source.parent.glob(f"{stem}-*.pth"):
        damaged.unlink()
    whole.replace(file)
    logger.info("%s: converted and proven, kept at %s", entry.name, file)
    return file


def _converted(entry: Published) -> Path | None:
    """Return the converted file, or None.

    A file counts only if its content fits the hash in its name and it was made from the published
    file.
    """
    from moco_d2.checkpoint.io import read_provenance

    for file in sorted(cache_folder().glob(f"{_stem(entry)}-*.pth")):
        with contextlib.suppress(OSError, UserError):  # another process may be replacing it
            intact = sha256(file).startswith(file.stem.rpartition("-")[2])
            if intact and _made_from(entry, read_provenance(file) or {}):
                return file
    return None


def _made_from(entry: Published, provenance: dict[str, Any]) -> bool:
    """Return whether weights were made from the published file. Any file may have the name."""
    source = provenance.get("published")
    return (
        isinstance(source, dict)
        and (source.get("name"), source.get("algorithm")) == (entry.name, entry.algorithm)
        and str(source.get("hash")).startswith(entry.hash)
        and (entry.algorithm != "sha256" or source["hash"] == provenance.get("source_sha256"))
    )


def _stem(entry: Published) -> str:
    # The version is part of the name, since another converter may write other weights.
    label = entry.name.replace("://", "_")
    return f"{label}-{entry.hash}-{__version__}"


@contextlib.contextmanager
def _lock(entry: Published) -> Iterator[None]:
    """Hold a lock while a file is fetched and converted. It ends with its process."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / f".{entry.file}.lock")
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            print(f"waiting for the process that fetches {entry.name}", file=sys.stderr, flush=True)
            lock.acquire()
    except OSError as error:
        raise UserError(
            f"cannot write to the cache {folder}: {error.strerror}; set {CACHE_VARIABLE} to a "
            "folder that you can write to"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _difference(entry: Published, file: Path) -> str:
    """Return how `file` differs from the published file, as a clause; empty if it does not."""
    try:
        actual = digest(file, entry.algorithm)
        if actual.startswith(entry.hash):
            return ""
        with file.open("rb") as f:
            page = f.read(_HEAD).lstrip().startswith(b"<")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; check its permissions") from error
    return (
        f"its {entry.algorithm} begins with {actual[: len(entry.hash)]}, not {entry.hash}"
        f"{', and it is a web page' if page else ''}"
    )
