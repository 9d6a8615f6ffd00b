"""A Redis-compatible server that is as slow, silent or strange as a test wants it, over real sockets.

test ─▶ RedisStore ─▶ FakeRedis (asyncio, a thread of its own): answers, waits, says nothing, talks nonsense, is gone
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.conftest import PATIENCE_S

# What a client asks when it connects: the protocol's version, and the settings that it wants to make.
HELLO = b"%3\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.4.0\r\n$5\r\nproto\r\n:3\r\n"


@dataclass
class FakeRedis:
    """One server. `how` is what it does with commands: "answer", "wait" (before GET and SET), "silence", "nonsense"."""

    how: str = "answer"
    values: dict[bytes, bytes] = field(default_factory=dict)
    asked: list[bytes] = field(default_factory=list)  # the names of commands
    port: int = 0
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Listens, at the port that it had before."""
        asyncio.run_coroutine_threadsafe(self._start(), self.loop).result(PATIENCE_S)

    def stop(self) -> None:
        """Vanishes: its port is closed and every connection breaks."""
        asyncio.run_coroutine_threadsafe(self._stop(), self.loop).result(PATIENCE_S)

    def looks(self) -> int:
        """How many GETs there were."""
        return self.asked.count(b"GET")

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for _ in range(200):
            if not self._writers:
                return
            await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        nothing = b"$-1\r\n"
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                words = await _command(reader)
                self.asked.append(words[0].upper())
                nothing = b"_\r\n" if self.asked[-1] == b"HELLO" else nothing  # of the protocol that was chosen
                if (answer := await self._answer(words, nothing)) is not None:
                    writer.write(answer)
        writer.close()
        self._writers.discard(writer)

    async def _answer(self, words: list[bytes], nothing: bytes) -> bytes | None:
        name = words[0].upper()
        if self.how == "silence":
            return None
        if self.how == "nonsense":
            return b"HTTP/1.1 400 Bad Request\r\n\r\n"
        while self.how == "wait" and name in (b"GET", b"SET"):
            await asyncio.sleep(0.01)
        match name:
            case b"HELLO":
                return HELLO
            case b"PING":
                return b"+PONG\r\n"
            case b"GET":
                value = self.values.get(words[1])
                return nothing if value is None else b"$%d\r\n%b\r\n" % (len(value), value)
            case b"SET":
                self.values[words[1]] = words[2]
        return b"+OK\r\n"


async def _command(reader: asyncio.StreamReader) -> list[bytes]:
    """The words of one command: `*2`, `$3`, `GET`, `$1`, `x`, a line each."""
    count = int((await reader.readuntil(b"\r\n"))[1:])
    words = []
    for _ in range(count):
        size = int((await reader.readuntil(b"\r\n"))[1:])
        words.append((await reader.readexactly(size + 2))[:-2])
    return words


@contextlib.contextmanager
def fake_redis(how: str = "answer") -> Iterator[FakeRedis]:
    """A server that listens."""
    made = FakeRedis(how)
    thread = threading.Thread(target=made.loop.run_forever, daemon=True)
    thread.start()
    made.start()
    try:
        yield made
    finally:
        made.how = "answer"
        made.stop()
        tasks = asyncio.run_coroutine_threadsafe(_end_all(), made.loop)
        tasks.result(PATIENCE_S)
        made.loop.call_soon_threadsafe(made.loop.stop)
        thread.join(PATIENCE_S)
        made.loop.close()


async def _end_all() -> None:
    """Ends what still waits on this loop."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
