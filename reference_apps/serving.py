"""What the processes of replicas and gateways share: a socket, a server that says where it listens, and an orderly end.

    launcher ══ stdin (a pipe that says nothing) ══▶ process      its end means: the launcher is gone, drain

SIGTERM: no new request is let in, the accepted ones are answered, then the process ends.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol, cast

import typer
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from reference_apps.launchers.member import write_atomically
from stages.terminal import Exit, fail

# A connection that has begun, or begun a request, and has not sent its whole head by then is closed.
HEAD_TIMEOUT_S = 30.0


_AGAIN_S = 0.05


class Drains(Protocol):
    """An ASGI application that can be told to let nobody in any more."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    def drain(self) -> None: ...


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; ends the process in words when there is none to be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        fail(
            f"port {port} of {host}: cannot be listened on ({error.strerror}). Use --port 0 for a free one.",
            Exit.MISUSED,
        )


class Door(Protocol):
    """Where a server lets connections in."""

    def shut(self) -> None:
        """Refuses connections from now on, and breaks off those that there are."""

    async def open_again(self) -> None:
        """Lets them in again, at the address that it had; tries until it has it."""


# What goes on beside the serving, for as long as that does; it may shut the door.
Beside = Callable[[Door], Coroutine[Any, Any, None]]


def serve(
    app: Drains,
    listener: socket.socket,
    announce: Path | None,
    drain_timeout_s: float,
    beside: Beside | None = None,
    **config: Any,
) -> None:
    """Serves until SIGTERM; `config` are further settings of uvicorn."""
    # uvicorn drains and then raises the signal again, which would end an orderly stop like a crash.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(Exit.DONE)))
    settings = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        log_config=None,  # its lines are JSON too, by the handler that reference_apps/logs.py has set
        lifespan="on",
        http=Impatient,
        proxy_headers=False,
        ws="none",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(drain_timeout_s) + 1,
        **config,
    )
    server = _Server(app, settings, announce, beside)
    server.run(sockets=[listener])
    if not server.started:
        raise typer.Exit(int(Exit.FAILED))


def drain_when_alone(drain_timeout_s: float) -> None:
    """From now on: at the end of stdin, which comes when the launcher ends, kill -9 included, drain and leave."""
    threading.Thread(target=_await_end_of_stdin, args=(drain_timeout_s,), daemon=True).start()


class Impatient(HttpToolsProtocol):
    """uvicorn's protocol, with two changes. By itself it waits for the rest of a head for ever, that of the first
    request and of any later one, and it sends head and content of an answer apart, which is two calls into the kernel
    and two wakings of the client.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(cast(asyncio.Transport, _Joining(transport, self.loop)))
        self._patience: asyncio.TimerHandle | None = self.loop.call_later(HEAD_TIMEOUT_S, self._close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:  # a request is inside: its head has come
            self._end_patience()
        elif self._patience is None:  # a part of a head, or of a body that was answered before its end
            self._patience = self.loop.call_later(HEAD_TIMEOUT_S, self._close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_patience()
        super().connection_lost(exc)

    def _end_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


class _Joining:
    """A transport that keeps the head of an answer until its content comes, which is at once as a rule."""

    __slots__ = ("_head", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n"):
            self._head = data
            self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)


class _Server(uvicorn.Server):
    """uvicorn that says where it listens once it is ready, and drains the application before it stops."""

    def __init__(
        self, app: Drains, config: uvicorn.Config, announce: Path | None, beside: Beside | None = None
    ) -> None:
        super().__init__(config)
        self._beside = beside
        self._going_on: asyncio.Task[None] | None = None
        self._app = app
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.started:
            return
        # The collector would walk all that was imported, in the middle of a batch, again and again.
        gc.collect()
        gc.freeze()
        assert sockets
        host, port = sockets[0].getsockname()[:2]
        if self._announce is not None:
            write_atomically(self._announce, json.dumps({"host": host, "port": port, "pid": os.getpid()}))
        logging.getLogger("rung.serve").info("ready on %s port %d", host, port)
        self._address, self._family = (host, port), sockets[0].family
        if self._beside is not None:
            self._going_on = asyncio.create_task(self._beside(self))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._going_on is not None:
            self._going_on.cancel()
        self._app.drain()
        await super().shutdown(sockets)

    def shut(self) -> None:
        """Refuses connections from now on, and breaks off those that there are."""
        for server in self.servers:
            server.close()
        self.servers = []
        for connection in list(self.server_state.connections):
            if (transport := getattr(connection, "transport", None)) is not None:
                transport.abort()

    async def open_again(self) -> None:
        """Lets them in again, at the address that it had; tries until it has it."""
        while not self.servers:
            try:
                listener = socket.create_server(self._address, family=self._family, backlog=2048)
            except OSError:  # for a moment somebody else's: it was free meanwhile
                await asyncio.sleep(_AGAIN_S)
                continue
            loop = asyncio.get_running_loop()
            self.servers = [await loop.create_server(self._protocol, sock=listener, backlog=2048)]

    def _protocol(self) -> asyncio.Protocol:
        """What speaks HTTP on a new connection, as uvicorn makes it."""
        kind: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = kind(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def _await_end_of_stdin(drain_timeout_s: float) -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(drain_timeout_s + 5.0)
    os._exit(int(Exit.FAILED))
