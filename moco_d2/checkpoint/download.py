"""One file over HTTP, however often the connection breaks."""

import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO

from tqdm import tqdm

from moco_d2.errors import UserError
from moco_d2.version import __version__

_CHUNK = 1 << 18  # bytes
# Slower than this is a stall, although bytes arrive: 100 MB would take more than a day.
_MINIMAL_RATE = 1024  # bytes per second
# A connection that gets this much further than all before it begins the count of tries again.
_PROGRESS = 1 << 20  # bytes
_HTML = ("text/html", "application/xhtml+xml")
# Of the client errors (4xx), those that may pass. After 416 the file is started again.
_MAY_PASS = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
)


@dataclass(frozen=True)
class Patience:
    """When to give up.

    Args:
        stall: seconds without data, or at less than 1 KiB/s, after which a connection is dropped.
        tries: connections in a row that get less than 1 MiB further than all before them.
        pause: seconds before the second try; doubled before each further one.
    """

    stall: float = 30.0
    tries: int = 4
    pause: float = 1.0


class DownloadError(Exception):
    """The file cannot be had from this address. The message is a clause that says why."""


def download(url: str, file: Path, patience: Patience | None = None) -> bool:
    """Fetch `url` into `file`; what is in `file` already is taken for its beginning.

    After a failure `file` holds what has arrived, and the next call continues there (HTTP Range;
    from the start where the server knows none). Proxies and certificates are those of Python's
    urllib.

    Returns:
        whether `file` was put together from several answers, so that a wrong content may mean that
        they do not belong together.

    Raises:
        DownloadError: no network, no such file, a web page in its place, a server that stalls.
        UserError: `file` cannot be written.
    """
    patience = patience or Patience()
    pieced = _size(file) > 0
    best, failures = _size(file), 0
    while True:
        try:
            _receive(url, file, patience.stall)
            return pieced
        except (OSError, http.client.HTTPException) as error:
            reason = _reason(error, patience.stall)
            if _is_final(error):
                raise DownloadError(f"{url} {reason}") from error
        failures = 1 if _size(file) >= best + _PROGRESS else failures + 1
        if failures >= patience.tries:
            raise DownloadError(f"{url} {reason}")
        best = max(best, _size(file))
        pieced = best > 0
        time.sleep(patience.pause * 2 ** (failures - 1))


def _receive(url: str, file: Path, stall: float) -> None:
    """One connection: append what is missing in `file`, or start it again."""
    offset = _size(file)
    headers = {"User-Agent": f"moco_d2/{__version__}"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    # Not file: and the like; urllib follows no redirection to those either.
    if not url.startswith(("https://", "http://")):
        raise DownloadError(f"{url} is not an http or https address")
    request = urllib.request.Request(url, headers=headers)  # noqa: S310
    try:
        response = urllib.request.urlopen(request, timeout=stall)  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            if error.headers.get("Content-Range") == f"bytes */{offset}":
                return  # all of it had arrived
            file.unlink()
        raise
    with response:
        if response.headers.get_content_type() in _HTML:
            raise DownloadError(f"{url} leads to a web page, {response.url}, instead of the file")
        if not _continues(response, offset):
            offset = 0
        total = None if response.length is None else offset + response.length
        _append(file, offset, total, _chunks(response, stall))
    if total is not None and _size(file) < total:
        raise ConnectionError(f"{_size(file)} of {total} bytes arrived")


def _continues(response: http.client.HTTPResponse, offset: int) -> bool:
    """Whether the answer starts at `offset` of the file, and not at its start."""
    first = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return (
        response.status == HTTPStatus.PARTIAL_CONTENT
        and first is not None
        and int(first[1]) == offset
    )


def _chunks(response: http.client.HTTPResponse, stall: float) -> Iterator[bytes]:
    since, received = time.monotonic(), 0
    # read1 returns what has arrived; read would wait for a full chunk and never see a slow server.
    while chunk := response.read1(_CHUNK):
        yield chunk
        received += len(chunk)
        elapsed = time.monotonic() - since
        if elapsed >= stall:
            if received < _MINIMAL_RATE * elapsed:
                raise TimeoutError
            since, received = time.monotonic(), 0


def _append(file: Path, offset: int, total: int | None, chunks: Iterator[bytes]) -> None:
    with (
        _open(file, "ab" if offset else "wb") as f,
        # A bar on a terminal, nothing in a log.
        tqdm(
            desc=file.name.removesuffix(".part"),
            initial=offset,
            total=total,
            unit="B",
            unit_scale=True,
            disable=None,
        ) as bar,
    ):
        # Up to `total` and no further: some servers keep the connection open.
        while total is None or offset < total:
            chunk = next(chunks, None)
            if chunk is None:
                break
            try:
                f.write(chunk)
                f.flush()
            except OSError as error:
                raise _cannot_write(file, error) from error
            offset += len(chunk)
            bar.update(len(chunk))


def _open(file: Path, mode: str) -> IO[bytes]:
    try:
        return file.open(mode)
    except OSError as error:
        raise _cannot_write(file, error) from error


def _cannot_write(file: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {file}: {error.strerror}; check the permissions and free space")


def _is_final(error: Exception) -> bool:
    return (
        isinstance(error, urllib.error.HTTPError)
        and HTTPStatus.BAD_REQUEST <= error.code < HTTPStatus.INTERNAL_SERVER_ERROR
        and error.code not in _MAY_PASS
    )


def _reason(error: Exception, stall: float) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"answers {error.code} {error.reason}"
    what = "breaks off"
    cause: object = error
    if isinstance(error, urllib.error.URLError):
        what, cause = "cannot be reached", error.reason
    if isinstance(cause, TimeoutError):
        return f"stalls: next to no data in {stall:g} s"
    return f"{what}: {getattr(cause, 'strerror', None) or str(cause) or repr(cause)}"


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
