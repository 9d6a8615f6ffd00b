"""Servers of this machine that answer as a test wants them to, and keep what they were sent."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[BaseHTTPRequestHandler, bytes], int]


@contextlib.contextmanager
def listening(answer: Answer, text: Callable[[], bytes] = lambda: b"", location: str = "") -> Iterator[str]:
    """A server of this machine that answers with that status and text; gives its address. A redirection is to
    `location`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            with contextlib.suppress(ConnectionError):
                status, content = answer(self, body), text()
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                if status // 100 == 3:
                    self.send_header("location", location)
                self.end_headers()
                self.wfile.write(content)

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Receiver:
    """Takes what is posted, and answers with one status after the other, the last one for ever."""

    def __init__(self, *statuses: int) -> None:
        self.statuses, self.taken = list(statuses or (200,)), list[dict[str, Any]]()

    def __call__(self, _: BaseHTTPRequestHandler, body: bytes) -> int:
        self.taken.append(json.loads(body))
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
