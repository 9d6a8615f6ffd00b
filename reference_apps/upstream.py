"""From the gateway to its replicas: pooled connections that stay open, one request at a time on each.

    post ──▶ an idle connection of that replica, or a new one ──▶ request … answer ──▶ idle again
                                                                    └─ broken off: closed

HTTP/1.1 over plain TCP, parsed by httptools as uvicorn does on the other side; a general client costs a request more
than the rest of the gateway together. How long the whole may take, and how many requests are under way to a replica,
is the caller's to say: a caller that is cancelled closes its connection. It does not model TLS, redirects and cookies.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from typing import NamedTuple, cast

import httptools

# A replica closes idle connections after 75 s; ours go first, so that none breaks under a request.
KEEP_ALIVE_S = 30.0
IDLE_MAX = 512  # connections to one replica that are kept open for the next requests
ANSWER_MAX_BYTES = 67_108_864
_HEADERS = frozenset((b"content-type", b"x-rung-record", b"retry-after"))


class Address(NamedTuple):
    """Where a replica listens."""

    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Address:
        """The address of `http://host:port`. Raises ValueError for anything else."""
        scheme, _, rest = url.partition("://")
        host, _, port = rest.rpartition(":")
        if scheme != "http" or not host or not port.isdigit():
            raise ValueError(f"{url}: must be http://HOST:PORT")
        return cls(host.strip("[]"), int(port))


class LostError(ConnectionError):
    """No answer came. `reason` is one of stages.outcomes.REASONS; `sent` says whether the request went out."""

    def __init__(self, reason: str, sent: bool, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.sent = sent


class Reply(NamedTuple):
    """What a replica answered; a header that it did not send is empty."""

    status: int
    content: bytes
    content_type: bytes = b""
    record: bytes = b""
    retry_after: bytes = b""


class Upstream:
    """The connections to all replicas. Made, used and closed on one event loop."""

    def __init__(self, connect_timeout_s: float) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._idle: dict[Address, deque[Connection]] = {}
        self._open: set[Connection] = set()

    async def post(self, address: Address, path: bytes, headers: list[tuple[bytes, bytes]], body: bytes) -> Reply:
        """One request and its whole answer. Raises LostError when there is none."""
        named = b"".join(b"%b: %b\r\n" % header for header in headers)
        head = b"POST %b HTTP/1.1\r\nhost: %b:%d\r\ncontent-length: %d\r\n%b\r\n"
        return await self._ask(address, head % (path, address.host.encode(), address.port, len(body), named) + body)

    async def get(self, address: Address, path: bytes) -> Reply:
        """The answer to GET `path`. Raises LostError when there is none."""
        head = b"GET %b HTTP/1.1\r\nhost: %b:%d\r\n\r\n"
        return await self._ask(address, head % (path, address.host.encode(), address.port))

    def forget(self, address: Address) -> None:
        """The replica there is gone: its idle connections are closed."""
        for connection in self._idle.pop(address, ()):
            connection.close()

    async def close(self) -> None:
        """Closes every connection, and waits until they are."""
        for connection in list(self._open):
            connection.close()
        for _ in range(100):
            if not self._open:
                return
            await asyncio.sleep(0.01)

    async def _ask(self, address: Address, message: bytes) -> Reply:
        idle = self._idle.get(address)
        if idle is None:
            idle = self._idle[address] = deque(maxlen=IDLE_MAX)
        connection = _fresh(idle) or await self._connect(address, idle)
        try:
            reply = await connection.ask(message)
        except BaseException:
            connection.close()
            raise
        if connection.reusable and self._idle.get(address) is idle and len(idle) < IDLE_MAX:
            idle.append(connection)
        else:
            connection.close()
        return reply

    async def _connect(self, address: Address, idle: deque[Connection]) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(lambda: Connection(loop, self._open, idle), *address)
        except TimeoutError:
            raise LostError("upstream_timeout", False, f"{address}: no connection in time") from None
        except OSError as error:
            raise LostError("connection", False, f"{address}: {error}") from None
        return connection


def _fresh(idle: deque[Connection]) -> Connection | None:
    """The connection that was used last, if it is young enough; older ones are closed."""
    now_s = time.monotonic()
    while idle:
        connection = idle.pop()
        if now_s - connection.idle_since_s < KEEP_ALIVE_S:
            return connection
        connection.close()
    return None


class Connection(asyncio.Protocol):
    """One connection, with at most one request under way."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connections: set[Connection], idle: deque[Connection]) -> None:
        self.idle_since_s = 0.0
        self.reusable = False
        self._loop = loop
        self._connections = connections
        self._idle = idle
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Reply] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._parts: list[bytes] = []
        self._size = 0

    async def ask(self, message: bytes) -> Reply:
        """Sends a request and waits for its answer. Raises LostError when there is none."""
        if self._transport is None or self._transport.is_closing():
            raise LostError("connection", False, "the connection was closed")
        self.reusable = False
        self._answer = self._loop.create_future()
        self._transport.write(message)
        return await self._answer

    def close(self) -> None:
        """Breaks off whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    # ---- asyncio.Protocol ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass of it
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._lost(f"its answer is no HTTP: {error}")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        self._connections.discard(self)
        with contextlib.suppress(ValueError):
            self._idle.remove(self)
        self._lost(f"the connection broke: {exc}")

    # ---- httptools ----

    def on_header(self, name: bytes, value: bytes) -> None:
        if (lower := name.lower()) in _HEADERS:
            self._headers[lower] = value

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > ANSWER_MAX_BYTES:
            self._lost(f"its answer is longer than {ANSWER_MAX_BYTES} bytes")
            self.close()
        else:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        headers, status = self._headers, self._parser.get_status_code()
        reply = Reply(
            status,
            b"".join(self._parts),
            headers.get(b"content-type", b""),
            headers.get(b"x-rung-record", b""),
            headers.get(b"retry-after", b""),
        )
        self._headers, self._parts, self._size = {}, [], 0
        if self._answer is not None and not self._answer.done():
            self.reusable = self._parser.should_keep_alive()
            self.idle_since_s = time.monotonic()
            self._answer.set_result(reply)
        else:  # nobody had asked
            self.close()

    def _lost(self, why: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(LostError("upstream_lost", True, why))
