"""Names of checkpoints on the Hugging Face hub, and their places in the cache."""

import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moco_d2.checkpoint.cache import cache_folder
from moco_d2.errors import UserError
from moco_d2.files import read_plain_json

SCHEME = "hf://"
DEFAULT_REVISION = "main"
#: The file in a folder of the cache that says what was fetched, and at which commit.
ORIGIN = ".moco_d2.json"
_MOST_BYTES = 1 << 20  # of that file
_NAME = re.compile(
    r"hf://(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:/(?P<file>[^@\\]+))?(?:@(?P<revision>[\w./-]+))?"
)
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubName:
    """A name on the hub.

    Attributes:
        text: The whole name.
        repo: ``user/repo``.
        file: The path of the file in the repository; None for the one of FILES that it has.
        revision: A branch, tag or commit.
    """

    text: str
    repo: str
    file: str | None
    revision: str


def parse(text: str) -> HubName:
    """Return the parts of a name.

    Raises:
        UserError: If `text` is no such name.
    """
    match = _NAME.fullmatch(text)
    revision = (match and match["revision"]) or DEFAULT_REVISION
    parts = [*(((match and match["file"]) or "file").split("/")), *revision.split("/")]
    # A part like ".." would leave the folder of the cache.
    if match is None or not all(part.strip(". ") and part.isprintable() for part in parts):
        raise UserError(
            f"{text:.200} is no name on the Hugging Face hub: write hf://USER/REPO, "
            "hf://USER/REPO/FILE or hf://USER/REPO/FILE@REVISION"
        )
    return HubName(text, match["repo"], match["file"], revision)


def folder_of(name: HubName) -> Path:
    """Return the folder of the cache that holds the files of a repository at a revision."""
    return cache_folder() / "hub" / name.repo / urllib.parse.quote(name.revision, safe="")


def origin_of(path: Path) -> dict[str, str] | None:
    """Return where a file of the cache comes from: its full name and the commit; None for a file
    that was not fetched from the hub.

    Returns:
        ``{"name": "hf://user/repo/file@revision", "commit": 40 hexadecimal digits}``. A file that
        the user has put into the cache has no commit.
    """
    try:
        parts = path.relative_to(cache_folder() / "hub").parts
    except ValueError:
        return None
    if len(parts) < 4:
        return None
    user, repo, revision, *file = parts
    inside = "/".join(file)
    origin = {"name": f"{SCHEME}{user}/{repo}/{inside}@{urllib.parse.unquote(revision)}"}
    known = read_origin(path.parents[len(file) - 1])
    if inside in known["fetched"]:
        origin["commit"] = known["commit"]
    return origin


def read_origin(folder: Path) -> dict[str, Any]:
    """Return ``{"commit": commit or "", "fetched": files}`` of a folder of the cache."""
    try:
        content = read_plain_json(folder / ORIGIN, _MOST_BYTES)
        commit, fetched = content["commit"], content["fetched"]
        if COMMIT.fullmatch(commit) and all(isinstance(file, str) for file in fetched):
            return {"commit": commit, "fetched": list(fetched)}
    except (OSError, ValueError, LookupError, TypeError):
        pass
    return {"commit": "", "fetched": []}
