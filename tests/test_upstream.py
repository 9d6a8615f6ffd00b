"""The gateway's connections to its replicas: pooled, bounded in age, broken off cleanly, answers in any pieces."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_apps import upstream
from reference_apps.upstream import Address, Connection, LostError, Reply, Upstream
from tests.conftest import PATIENCE_S
from tests.fake_replicas import FakeReplica

CONTENT = b'{"label": 7}'
PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: a/b\r\nX-Rung-Record: r=1\r\ncontent-length: 12\r\n\r\n" + CONTENT
CHUNKED = (
    b"HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\nretry-after: 4\r\n\r\n5\r\n" + CONTENT[:5] + b"\r\n7\r\n"
    + CONTENT[5:] + b"\r\n0\r\n\r\n"
)  # fmt: skip


def on_loop(work: Callable[[Upstream], Awaitable[None]]) -> None:
    """Runs `work` with an Upstream, and leaves no connection behind."""

    async def run() -> None:
        pool = Upstream(connect_timeout_s=5.0)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await work(pool)
        finally:
            await pool.close()

    asyncio.run(run())


class Wire(asyncio.Transport):
    """Takes what is sent and has no other end."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.aborted = False

    def write(self, data: Any) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


async def ask_on(wire: Wire, pieces: list[bytes], then: Callable[[Connection], None] = lambda _: None) -> Reply:
    """The reply that a connection makes of these pieces."""
    connection = Connection(asyncio.get_running_loop(), set(), deque())
    connection.connection_made(wire)
    asking = asyncio.ensure_future(connection.ask(b"a request"))
    await asyncio.sleep(0)
    for piece in pieces:
        connection.data_received(piece)
    then(connection)
    return await asking


@given(st.sampled_from([(PLAIN, Reply(200, CONTENT, b"a/b", b"r=1")), (CHUNKED, Reply(503, CONTENT, b"", b"", b"4"))]),
       st.sets(st.integers(1, min(len(PLAIN), len(CHUNKED)) - 1)))  # fmt: skip
def test_an_answer_is_the_same_in_whatever_pieces_it_comes(case: tuple[bytes, Reply], cuts: set[int]) -> None:
    message, wanted = case
    places = [0, *sorted(cuts), len(message)]
    pieces = [message[a:b] for a, b in itertools.pairwise(places)]
    wire = Wire()
    assert asyncio.run(ask_on(wire, pieces)) == wanted
    assert wire.sent == b"a request"
    assert not wire.aborted


@pytest.mark.parametrize("length", [0, 1, 20, len(PLAIN) - 1])
def test_an_answer_that_breaks_off_is_lost(length: int) -> None:
    with pytest.raises(LostError) as caught:
        asyncio.run(ask_on(Wire(), [PLAIN[:length]], lambda connection: connection.connection_lost(None)))
    assert (caught.value.reason, caught.value.sent) == ("upstream_lost", True)


def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "ANSWER_MAX_BYTES", 100)
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 101\r\n\r\n"
    wire = Wire()
    with pytest.raises(LostError, match="longer than 100 bytes"):
        asyncio.run(ask_on(wire, [head, b"x" * 101]))
    assert wire.aborted


def test_what_nobody_asked_for_closes_the_connection() -> None:
    wire = Wire()
    assert asyncio.run(ask_on(wire, [PLAIN + PLAIN])).status == 200
    assert wire.aborted


def test_connections_are_kept_and_used_again() -> None:
    async def work(pool: Upstream) -> None:
        fake = FakeReplica(0)
        await fake.open()
        address = Address.of(fake.url)
        for _ in range(5):
            assert (await pool.post(address, b"/predict", [(b"a", b"b")], b"body")).status == 200
        assert fake.connections == 1
        await asyncio.gather(*(pool.post(address, b"/predict", [], b"") for _ in range(4)))
        assert fake.connections == 4
        assert fake.asked[0]["a"] == "b"
        pool.forget(address)
        assert (await pool.get(address, b"/readyz")).status == 200
        assert fake.connections == 5
        await fake.close()

    on_loop(work)


def test_a_connection_that_was_idle_for_long_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "KEEP_ALIVE_S", 0.0)

    async def work(pool: Upstream) -> None:
        fake = FakeReplica(0)
        await fake.open()
        for _ in range(3):
            assert (await pool.get(Address.of(fake.url), b"/readyz")).status == 200
        assert fake.connections == 3
        await fake.close()

    on_loop(work)


def test_a_caller_that_is_cancelled_closes_its_connection() -> None:
    async def work(pool: Upstream) -> None:
        fake = FakeReplica(0, answer="hold")
        await fake.open()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await pool.post(Address.of(fake.url), b"/predict", [], b"")
        while not fake.left:
            await asyncio.sleep(0.01)
        await fake.close()

    on_loop(work)


def test_a_connection_that_broke_while_idle_is_not_used_again() -> None:
    async def work(pool: Upstream) -> None:
        fake = FakeReplica(0)
        await fake.open()
        address = Address.of(fake.url)
        await pool.get(address, b"/readyz")
        await fake.close()
        again = FakeReplica(0, port=fake.port)
        await again.open()
        assert (await pool.get(address, b"/readyz")).status == 200
        await again.close()

    on_loop(work)


def test_who_is_not_there_is_told_apart_from_who_does_not_answer() -> None:
    async def work(pool: Upstream) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        with pytest.raises(LostError) as caught:
            await pool.get(Address("127.0.0.1", port), b"/")
        assert (caught.value.reason, caught.value.sent) == ("connection", False)

    on_loop(work)


@pytest.mark.parametrize("url", ["https://a:1", "http://a", "a:1", "http://:1", "http://a:b", ""])
def test_an_address_is_host_and_port_over_http(url: str) -> None:
    with pytest.raises(ValueError, match="must be http://HOST:PORT"):
        Address.of(url)
    assert Address.of("http://[::1]:80") == Address("::1", 80)
