"""What a server does with a connection that does not go on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from reference_apps import serving
from reference_apps.serving import Impatient

REQUEST = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


class Wire(asyncio.Transport):
    """In place of a socket: keeps what is written, and whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.closed = b"", False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        """Nobody sends but the test."""

    def resume_reading(self) -> None:
        """Nobody sends but the test."""


async def app(_: Any, receive: Any, send: Any) -> None:
    """Answers at once, without having read a body."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def connected() -> tuple[Impatient, Wire]:
    config = uvicorn.Config(app, http=Impatient, ws="none", lifespan="off", log_config=None)
    wire, made = Wire(), Impatient(config=config, server_state=ServerState(), app_state={})
    made.connection_made(wire)
    return made, wire


async def turns() -> None:
    """Everything that is due on the event loop happens."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time for a head is over with the next turn of the event loop."""
    monkeypatch.setattr(serving, "HEAD_TIMEOUT_S", 0.0)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("rest", [b"G", REQUEST[:-2]])
def test_half_a_head_after_a_whole_request_is_not_waited_for(rest: bytes) -> None:
    async def served() -> None:
        made, wire = connected()
        made.data_received(REQUEST)
        await turns()
        assert wire.written.endswith(b"ok") and not wire.closed, "an idle connection is kept"
        made.data_received(rest)
        await turns()
        assert wire.closed

    asyncio.run(served())


@pytest.mark.usefixtures("at_once")
def test_a_head_that_comes_in_pieces_is_answered_and_the_connection_kept() -> None:
    async def served() -> None:
        made, wire = connected()
        for n in (1, 2, 3):
            made.data_received(REQUEST[:9])
            made.data_received(REQUEST[9:])
            await turns()
            assert (wire.written.count(b"ok"), wire.closed) == (n, False)

    asyncio.run(served())


@pytest.mark.usefixtures("at_once")
def test_a_body_that_goes_on_after_its_answer_is_not_read_for_ever() -> None:
    async def served() -> None:
        made, wire = connected()
        made.data_received(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
        await turns()
        assert wire.written.endswith(b"ok") and not wire.closed
        made.data_received(b"1\r\nx\r\n")
        await turns()
        assert wire.closed

    asyncio.run(served())
