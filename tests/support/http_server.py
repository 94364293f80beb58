"""An HTTP server on this machine, for downloads."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar


class LocalHandler(http.server.BaseHTTPRequestHandler):
    """Answers of a server; a subclass handles GET."""

    def head(self, status: int, length: int, **headers: str) -> None:
        """Send the status and the headers, whose names have "_" for "-"."""
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


class LocalServer(http.server.ThreadingHTTPServer):
    """A server at a free port.

    Attributes:
        files: path -> content.
        requests: what was asked for; the handler fills it.
    """

    daemon_threads = True

    def __init__(self, handler: type[LocalHandler]):
        super().__init__(("127.0.0.1", 0), handler)
        self.files: dict[str, bytes] = {}
        self.requests: list = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


Server = TypeVar("Server", bound=LocalServer)


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Let a server answer in a thread of its own, until the block ends."""
    with server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.02))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
