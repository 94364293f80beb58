"""Published checkpoints by name: ``MODEL.WEIGHTS moco://v2_800ep``, ``tools/convert.py
torchvision://resnet50``.

A name stands for one file of its authors, which is verified by its published hash if there is one.
The file is downloaded once, converted, proven and kept in `cache_folder`. Set `MIRROR_VARIABLE` if
the authors' servers cannot be reached. With a filled cache no network is needed.
"""

import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from iopath.common.file_io import PathHandler

from moco_d2.checkpoint import hub
from moco_d2.checkpoint.cache import cache_folder, locked
from moco_d2.checkpoint.conversions import keep_converted, kept_converted
from moco_d2.checkpoint.download import DownloadError, Patience, download
from moco_d2.checkpoint.hub_names import SCHEME
from moco_d2.checkpoint.published import MIRROR_VARIABLE, PUBLISHED, Published
from moco_d2.errors import UserError, closest
from moco_d2.files import digest
from moco_d2.version import __version__

_HEAD = 512  # bytes that show whether a file is a web page


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
        with locked(cache_folder(), entry.file, entry.name):
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
        with locked(cache_folder(), entry.file, entry.name):
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
    """Return the path of the checkpoint to convert, from a name or a path that the user typed.

    Args:
        source: A published name, a name on the Hugging Face hub (see hub.py), or a path.

    Raises:
        UserError: If the checkpoint cannot be downloaded, or a file has the name of a published
            one but other content.
    """
    if str(source).startswith(SCHEME):
        hub.allow(str(source))
        return hub.source_file(str(source))
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
    """Teach Detectron2's PathManager the names of `PUBLISHED`, and those of the hub. Idempotent."""
    from detectron2.utils.file_io import PathManager

    PathManager.register_handler(WeightsByName(CATALOG), allow_override=True)
    PathManager.register_handler(hub.HubWeights(), allow_override=True)


def _check_hash(entry: Published, file: Path) -> None:
    if difference := _difference(entry, file):
        raise UserError(
            f"{file} is not the published {entry.file}: {difference}; rename it if it is another "
            f"file, or delete it and use {entry.name}"
        )


def _convert(entry: Published, source: Path) -> Path:
    # The whole hash, of which only the first digits are published.
    hash_ = digest(source, entry.algorithm)
    published = {"name": entry.name, "algorithm": entry.algorithm, "hash": hash_}
    return keep_converted(source, source.parent, _stem(entry), published)


def _converted(entry: Published) -> Path | None:
    return kept_converted(cache_folder(), _stem(entry), partial(_made_from, entry))


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
    return f"{label}-{entry.hash or 'unconfirmed'}-{__version__}"


def _difference(entry: Published, file: Path) -> str:
    """Return how `file` differs from the published file, as a clause; empty if it does not."""
    try:
        with file.open("rb") as f:
            page = f.read(_HEAD).lstrip().startswith(b"<")
        if not entry.hash:
            return "it is a web page" if page else ""
        actual = digest(file, entry.algorithm)
        if actual.startswith(entry.hash):
            return ""
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; check its permissions") from error
    return (
        f"its {entry.algorithm} begins with {actual[: len(entry.hash)]}, not {entry.hash}"
        f"{', and it is a web page' if page else ''}"
    )
