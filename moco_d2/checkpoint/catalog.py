"""Published checkpoints by name: ``MODEL.WEIGHTS moco://v2_800ep``, ``tools/convert.py
torchvision://resnet50``.

A name stands for one file of its authors, told by its published hash. The file is fetched once,
converted, proven and kept; see `cache_folder` for where, and `MIRROR_VARIABLE` for networks that
do not reach the authors' servers. With a filled cache no network is needed.
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
# Address of a folder that holds the files under their own names, https://example.org/weights.
MIRROR_VARIABLE = "MOCO_D2_MIRROR"

_HEAD = 512  # bytes that tell a web page
_CONTENT_DIGITS = 16  # of a converted file's sha256, in its name


@dataclass(frozen=True)
class Published:
    """A checkpoint as its authors published it.

    Args:
        name: ``scheme://short_name``.
        url: the authors' address.
        algorithm: of the published hash, ``md5`` or ``sha256``.
        hash: its published first digits, hexadecimal.
    """

    name: str
    url: str
    algorithm: str
    hash: str

    @property
    def file(self) -> str:
        """The authors' file name."""
        return self.url.rpartition("/")[2]

    @property
    def address(self) -> str:
        """Where to fetch it: from the mirror if there is one, else from the authors.

        Raises:
            UserError: the mirror is no http address.
        """
        mirror = os.environ.get(MIRROR_VARIABLE, "")
        if not mirror:
            return self.url
        if urlsplit(mirror).scheme not in ("http", "https"):
            raise UserError(
                f"{MIRROR_VARIABLE} {mirror} is not an http or https address; set it to that of a "
                f"folder which holds {self.file}, or unset it"
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


# torchvision's are IMAGENET1K_V1, its simple recipe close to the original papers': the supervised
# baseline of MoCo's time. IMAGENET1K_V2 comes from a later recipe, longer and more regularised.
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
    """$MOCO_D2_CACHE, or moco_d2/ in iopath's cache: $FVCORE_CACHE, else ~/.torch/iopath_cache."""
    ours = os.environ.get(CACHE_VARIABLE)
    return Path(ours).expanduser() if ours else Path(get_cache_dir()) / "moco_d2"


class Catalog:
    """Files by name, from the cache or from the network.

    Any number of processes may ask for the same name at once: one fetches, the others wait.

    Examples:
    ::
        catalog = Catalog(PUBLISHED)
        catalog.source_file("moco://v2_800ep")   # .../moco_v2_800ep_pretrain.pth.tar
        catalog.weights_file("moco://v2_800ep")  # .../moco_v2_800ep-a04e12f8-0.1.0-....pth
    """

    def __init__(self, published: Iterable[Published], patience: Patience | None = None):
        """
        Args:
            published: what there is.
            patience: with slow servers.
        """
        self._published = {entry.name: entry for entry in published}
        self._patience = patience

    @property
    def schemes(self) -> list[str]:
        """``["moco://", "torchvision://"]``"""
        return sorted({f"{urlsplit(name).scheme}://" for name in self._published})

    def source_file(self, name: str) -> Path:
        """The authors' file, in the cache.

        Raises:
            UserError: the name is unknown, the file cannot be had, or its hash is wrong.
        """
        entry = self._find(name)
        with _lock(entry):
            return self._source(entry)

    def weights_file(self, name: str) -> Path:
        """The same, converted for ``MODEL.WEIGHTS`` and proven, in the cache.

        Raises:
            UserError: as `source_file`, or the conversion fails.
        """
        entry = self._find(name)
        if (file := _converted(entry)) is not None:  # needs neither lock nor a writable cache
            return file
        with _lock(entry):
            return _converted(entry) or _convert(entry, self._source(entry))

    def check_known_file(self, path: str | Path) -> None:
        """Refuse a file that has the name of a published one and not its content.

        Raises:
            UserError: the hash is wrong.
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
        # Not only to the log: a run's log begins when its checks are over.
        print(f"fetching {address}, once, to {file}", file=sys.stderr, flush=True)
        try:
            pieced = download(address, part, self._patience)
            if pieced and _difference(entry, part):
                part.unlink()  # perhaps pieces of two different files
                download(address, part, self._patience)
        except DownloadError as error:
            what = "it" if address == entry.url else entry.url
            raise UserError(
                f"cannot fetch {entry.name}: {error}; fetch {what} elsewhere and put it at "
                f"{file}, or set {MIRROR_VARIABLE} to the address of a folder that holds it"
            ) from error
        if difference := _difference(entry, part):
            part.unlink()
            raise UserError(
                f"what {address} serves is not the published {entry.file}: {difference}; fetch "
                f"{entry.url} elsewhere and put it at {file}"
            )
        part.replace(file)


CATALOG = Catalog(PUBLISHED)


def source_file(source: str | Path) -> Path:
    """What tools/convert.py converts: a published checkpoint by name, or a file.

    Raises:
        UserError: the published checkpoint cannot be had, or a file with its name is not it.
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
    convert(source, whole, published=_published(entry, source))
    file = source.with_name(f"{stem}-{sha256(whole)[:_CONTENT_DIGITS]}.pth")
    for damaged in source.parent.glob(f"{stem}-*.pth"):
        damaged.unlink()
    whole.replace(file)
    logger.info("%s: converted and proven, kept at %s", entry.name, file)
    return file


def _published(entry: Published, source: Path) -> dict[str, str]:
    """What provenance says of the published file that weights were made from."""
    hash_ = digest(source, entry.algorithm)
    return {"name": entry.name, "algorithm": entry.algorithm, "hash": hash_}


def _converted(entry: Published) -> Path | None:
    """The converted file, if it is there, has the content that its name says, and was made from the
    published one.
    """
    from moco_d2.checkpoint.io import read_provenance

    for file in sorted(cache_folder().glob(f"{_stem(entry)}-*.pth")):
        with contextlib.suppress(OSError, UserError):  # another process may be replacing it
            whole = sha256(file).startswith(file.stem.rpartition("-")[2])
            if whole and _is_of(entry, read_provenance(file) or {}):
                return file
    return None


def _is_of(entry: Published, provenance: dict[str, Any]) -> bool:
    """Whether weights were made from the published file: a name in a folder is anybody's."""
    source = provenance.get("published")
    return (
        isinstance(source, dict)
        and (source.get("name"), source.get("algorithm")) == (entry.name, entry.algorithm)
        and str(source.get("hash")).startswith(entry.hash)
        and (entry.algorithm != "sha256" or source["hash"] == provenance.get("source_sha256"))
    )


def _stem(entry: Published) -> str:
    # The version, since another converter may write other weights.
    label = entry.name.replace("://", "_")
    return f"{label}-{entry.hash}-{__version__}"


@contextlib.contextmanager
def _lock(entry: Published) -> Iterator[None]:
    """Held while a file is fetched and converted; the system releases it if its holder dies."""
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
    """What tells `file` from the published one, as a clause; empty if nothing does."""
    try:
        found = digest(file, entry.algorithm)
        if found.startswith(entry.hash):
            return ""
        with file.open("rb") as f:
            page = f.read(_HEAD).lstrip().startswith(b"<")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; check its permissions") from error
    return (
        f"its {entry.algorithm} begins with {found[: len(entry.hash)]}, not {entry.hash}"
        f"{', and it is a web page' if page else ''}"
    )
