"""Checkpoints of the Hugging Face hub by name: ``hf://user/repo[/file][@revision]``.

The huggingface_hub library (extra ``hub``) fetches a file once, into `folder_of` its name. From
then on a branch stays at the commit that it had, and no network is needed. The file passes the same
reader, converter and proof as a local file.

A name on the hub may be anybody's, so only a name that the user has typed is fetched (`allow`).
Config files and suites can use what has been fetched.
"""

import os
import shutil
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from iopath.common.file_io import PathHandler

from moco_d2.checkpoint.cache import cache_folder, locked
from moco_d2.checkpoint.conversions import keep_converted, kept_converted
from moco_d2.checkpoint.convert import AlreadyConvertedError
from moco_d2.checkpoint.hub_names import (
    COMMIT,
    ORIGIN,
    SCHEME,
    HubName,
    folder_of,
    origin_of,
    parse,
    read_origin,
)
from moco_d2.errors import UserError, closest, printable
from moco_d2.files import sha256, sha256_of_json, write_json
from moco_d2.version import __version__

#: If no file is named, a repository must have files of exactly one row, and the first is taken.
#: Both files of the first row hold the same weights in transformers and timm.
FILES = (
    ("model.safetensors", "pytorch_model.bin"),
    ("checkpoint.pth.tar",),
    ("checkpoint_final.pth.tar",),
    ("checkpoint.pth",),
    ("model.pth",),
    ("model_final.pth",),
    ("backbone.pth",),
)
# What they say about the network is read together with the weights; see stated.py.
_BESIDE = ("config.json", "preprocessor_config.json", "config.yaml")
_MOST_BYTES_BESIDE = 1 << 20  # the limit of stated.py
_SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".safetensors", ".npz", ".pkl", ".ckpt", ".pyth")
_UNCHECKED = ".unchecked"  # folder of files whose hash has not been compared
_MOST_NAMED = 8  # files in an error
_DIGITS = 16  # of a sha256, in the name of a converted file
_REASON = 200  # characters of another library's error
_TRUE = ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads them

_allowed: set[str] = set()


def allow(name: str) -> None:
    """Allow this process to fetch a name, because the user has typed it."""
    _allowed.add(name)


def source_file(text: str) -> Path:
    """Return the path of the file in the cache. It is fetched if it is not there and `allow` was
    called with its name.

    Raises:
        UserError: If the name cannot be read, there is no such file, or it cannot be fetched.
    """
    name = parse(text)
    if (file := _cached(name)) is not None:
        return file
    if text not in _allowed:
        raise UserError(
            f"{text:.200} is not in the cache {folder_of(name)}, and a config or a suite may not "
            "fetch from the hub: read what it names, and set MODEL.WEIGHTS on the command line, or "
            f"fetch it with tools/convert.py {text:.200} weights/NAME.pth"
        )
    with locked(cache_folder() / "hub", "fetching", text):
        return _cached(name) or _fetch(name)


def weights_file(text: str) -> Path:
    """Return the path of the converted and proven weights in the cache, or of the file itself if
    it is in Detectron2's format.

    Raises:
        UserError: If `source_file` raises it, or the conversion fails.
    """
    source = source_file(text)
    hash_, origin = sha256(source), origin_of(source)
    folder = cache_folder() / "hub"
    # The same content may have two names, and each record names its own.
    label = f"{parse(text).repo.replace('/', '--')}-{sha256_of_json(origin)[:_DIGITS]}"
    stem = f"{label}-{hash_[:_DIGITS]}-{__version__}"

    def fits(provenance: dict[str, Any]) -> bool:
        made_from = provenance.get("published"), provenance.get("source_sha256")
        return made_from == (origin, hash_)

    if (file := kept_converted(folder, stem, fits)) is not None:
        return file
    with locked(folder, stem, text):
        try:
            return kept_converted(folder, stem, fits) or keep_converted(
                source, folder, stem, origin
            )
        except AlreadyConvertedError:
            return source


class HubWeights(PathHandler):
    """Resolves names on the hub to converted weights, for iopath's PathManager."""

    def _get_supported_prefixes(self) -> list[str]:
        return [SCHEME]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(weights_file(path))

    def _open(self, path: str, mode: str = "r", **kwargs: Any) -> Any:
        return Path(self._get_local_path(path)).open(mode)


def _cached(name: HubName) -> Path | None:
    folder = folder_of(name)
    if name.file is not None:
        return file if (file := folder / name.file).is_file() else None
    present = [f for row in FILES for f in row if (folder / f).is_file()]
    return folder / _choose(name, present) if present else None


def _choose(name: HubName, files: list[str]) -> str:
    """Return the file of FILES that a repository has.

    Raises:
        UserError: If it has none, or files of several rows.
    """
    rows = [[f for f in row if f in files] for row in FILES]
    found = [row[0] for row in rows if row]
    if len(found) == 1:
        return found[0]
    candidates = found or [f for f in files if f.endswith(_SUFFIXES)]
    listed = ", ".join(candidates[:_MOST_NAMED]) or "none that looks like a checkpoint"
    more = f" and {len(candidates) - _MOST_NAMED} more" if len(candidates) > _MOST_NAMED else ""
    kind = "several checkpoints" if found else "no checkpoint with a usual name"
    raise UserError(
        printable(
            f"{name.text:.200}: the repository has {kind} (its files: {listed}{more}); name the "
            f"file, as in hf://{name.repo}/FILE@{name.revision}"
        )
    )


def _fetch(name: HubName) -> Path:
    """Fetch the file, and what stands beside it about the network."""
    folder = folder_of(name)
    known = read_origin(folder)
    hub = _library(name)
    try:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE:
            raise hub.errors.OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
        endpoint = os.environ.get("HF_ENDPOINT") or None
        info = hub.HfApi(endpoint=endpoint).model_info(
            name.repo, revision=known["commit"] or name.revision, files_metadata=True
        )
        files = {file.rfilename: file for file in info.siblings or ()}
        chosen = name.file or _choose(name, sorted(files))
        if chosen not in files:
            hint = closest(chosen, files) or "see its page for the files"
            raise UserError(
                printable(
                    f"{name.text:.200}: the repository has no file {chosen!r} at {name.revision}; "
                    f"{hint}"
                )
            )
        commit = str(info.sha)
        if not COMMIT.fullmatch(commit) or (
            COMMIT.fullmatch(name.revision) and name.revision != commit
        ):
            raise UserError(f"{name.text:.200}: the hub names no commit of {name.revision}")
        # Printed, because a run's log begins after its checks.
        print(
            f"fetching {SCHEME}{name.repo}/{chosen} at commit {commit}, once, to {folder}",
            file=sys.stderr,
            flush=True,
        )
        beside = [str(PurePosixPath(chosen).with_name(other)) for other in _BESIDE]
        beside = [file for file in beside if file in files and file != chosen]
        unchecked = folder / _UNCHECKED
        for file in (*beside, chosen):  # the weights last: once they are there, nothing is fetched
            _check_size(name, file, files[file], beside)
            hub.hf_hub_download(
                name.repo, file, revision=commit, local_dir=str(unchecked), endpoint=endpoint
            )
            _check_hash(name, unchecked / file, files[file])
            known["fetched"] = sorted({*known["fetched"], file})
            write_json(folder / ORIGIN, {"commit": commit, "fetched": known["fetched"]})
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (unchecked / file).replace(folder / file)
        shutil.rmtree(unchecked)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # the library and its HTTP client have many classes of their own
        raise _explained(name, error) from error
    return folder / chosen


def _library(name: HubName) -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise UserError(
            f"{name.text:.200} needs huggingface_hub, which is not installed: pip install "
            f"'moco_d2[hub]', or fetch the file elsewhere and put it into {folder_of(name)}"
        ) from error
    return huggingface_hub


def _check_size(name: HubName, file: str, known: Any, beside: list[str]) -> None:
    if file in beside and (known.size or 0) > _MOST_BYTES_BESIDE:
        raise UserError(
            f"{name.text:.200}: its {file} has {known.size} bytes, which no config has; fetch the "
            f"checkpoint elsewhere and put it into {folder_of(name)}"
        )


def _check_hash(name: HubName, path: Path, known: Any) -> None:
    """Compare a large file with the sha256 that the hub has of it; small files have none."""
    expected = getattr(known.lfs, "sha256", None) if known.lfs else None
    if expected and sha256(path) != expected:
        path.unlink()
        raise UserError(
            f"{name.text:.200}: the server does not serve the hub's {path.name}: its sha256 is not "
            f"{expected}; fetch it elsewhere and put it into {folder_of(name)}"
        )


def _explained(name: HubName, error: Exception) -> UserError:
    kind = type(error).__name__
    place = folder_of(name) / (name.file or "")
    if kind == "OfflineModeIsEnabled":
        reason = "HF_HUB_OFFLINE is set"
    elif kind == "GatedRepoError":
        reason = "its authors must grant you access on its page, and `hf auth login` must be called"
    elif kind in ("RepositoryNotFoundError", "RevisionNotFoundError"):
        what = "repository" if kind.startswith("Rep") else f"revision {name.revision}"
        return UserError(
            f"{name.text:.200}: there is no such {what} on the hub, or you may not see it; correct "
            "the name, or call `hf auth login`"
        )
    else:
        reason = printable(" ".join(str(error).split()))[:_REASON] or kind
    what = name.file or "its checkpoint (" + ", ".join(row[0] for row in FILES) + ")"
    return UserError(
        f"cannot fetch {name.text:.200}: {reason}; fetch {what} of https://huggingface.co/"
        f"{name.repo}/tree/{name.revision} elsewhere, with its config.json if it has one, and put "
        f"it at {place}, or set HF_ENDPOINT to the address of a mirror"
    )
