"""Downloads a file over HTTP, also when the connection breaks several times."""

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
# Anything slower counts as a stall: 100 MB would take more than a day.
_MINIMAL_RATE = 1024  # bytes per second
# The count of tries starts again when a connection gets this much further than all before it.
_PROGRESS = 1 << 20  # bytes
_HTML = ("text/html", "application/xhtml+xml")
# Client errors (4xx) that may be temporary. After 416 the file is started again.
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
        stall: Seconds without data, or with less than 1 KiB/s, before a connection is dropped.
        tries: Most connections in a row that get less than 1 MiB further than all before them.
        pause: Seconds before the second try, doubled before each further try.
    """

    stall: float = 30.0
    tries: int = 4
    pause: float = 1.0


class DownloadError(Exception):
    """The file cannot be downloaded from this address. The message is a clause with the reason."""


def download(url: str, file: Path, patience: Patience | None = None) -> bool:
    """Download `url` into `file`. Existing content of `file` counts as its beginning.

    After a failure `file` holds the bytes that arrived, and the next call continues there with HTTP
    Range, or from the start if the server does not support it. Proxies and certificates are those
    of Python's urllib.

    Returns:
        Whether `file` was put together from several responses. If its content is wrong, they may
        come from different files.

    Raises:
        DownloadError: If there is no network or no such file, if a web page comes instead, or if
            the server stalls.
        UserError: If `file` cannot be written.
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
    """Open one connection, and append the missing bytes to `file` or start it again."""
    offset = _size(file)
    headers = {"User-Agent": f"moco_d2/{__version__}"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    # file: and the like are refused. urllib follows no redirection to those either.
    if not url.startswith(("https://", "http://")):
        raise DownloadError(f"{url} is not an http or https address")
    request = urllib.request.Request(url, headers=headers)  # noqa: S310
    try:
        response = urllib.request.urlopen(request, timeout=stall)  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            if error.headers.get("Content-Range") == f"bytes */{offset}":
                return  # the file is complete
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
    """Return whether the response continues the file at `offset`."""
    first = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return (
        response.status == HTTPStatus.PARTIAL_CONTENT
        and first is not None
        and int(first[1]) == offset
    )


def _chunks(response: http.client.HTTPResponse, stall: float) -> Iterator[bytes]:
    since, received = time.monotonic(), 0
    # read1 returns the bytes that have arrived. read would wait for a full chunk, so a slow server
    # would go unnoticed.
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
        # disable=None shows the bar on a terminal only, not in a log.
        tqdm(
            desc=file.name.removesuffix(".part"),
            initial=offset,
            total=total,
            unit="B",
            unit_scale=True,
            disable=None,
        ) as bar,
    ):
        # It stops at `total`, because some servers keep the connection open.
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
    problem = "breaks off"
    cause: object = error
    if isinstance(error, urllib.error.URLError):
        problem, cause = "cannot be reached", error.reason
    if isinstance(cause, TimeoutError):
        return f"stalls: almost no data in {stall:g} s"
    return f"{problem}: {getattr(cause, 'strerror', None) or str(cause) or repr(cause)}"


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
