"""Replicas that do as a test tells them, over real sockets, and a gateway before them in a thread of its own.

test ─▶ Gateway (uvicorn, thread) ─▶ FakeReplica (asyncio, thread): answers, holds, refuses, breaks off, vanishes
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import socket
import threading
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from reference_apps.asking import wait_until
from reference_apps.edge import Keys
from reference_apps.gateway import Gateway
from reference_apps.launchers.member import write_atomically
from reference_apps.serving import Impatient
from stages.spec import Stage, load_stage
from tests.conftest import PATIENCE_S
from tests.told import scraped

Headers = dict[str, str]


@dataclass
class FakeReplica:
    """One replica. `answer` is what it says to the next requests: a status and a title, or something it does.

    "hold" waits until `release`, "lose" closes the connection, "garble" answers what is no HTTP. What came is kept.
    """

    number: int
    port: int = 0
    answer: str | tuple[int, str] = (200, "")
    then: tuple[int, str] = (200, "")  # what it says to a request that it held, once that is released
    ready: bool = True
    hangs: bool = False  # takes connections and says nothing, to probes neither
    asked: list[Headers] = field(default_factory=list)  # headers of each POST /predict, lower-case
    bodies: list[bytes] = field(default_factory=list)
    batches: list[list[float]] = field(default_factory=list)
    probed: int = 0
    connections: int = 0
    left: int = 0  # connections that were closed while their request was held
    released: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Vanishes: its port is closed and every connection breaks."""
        self.released.set()
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for _ in range(200):
            if not self._writers:
                return
            await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._one(reader, writer):
                pass
        writer.close()
        self._writers.discard(writer)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = head[0].split(" ")
        if self.hangs:
            await self.released.wait()
        if path.startswith("/readyz"):
            self.probed += 1
            writer.write(_http(200 if self.ready else 503, {}, b""))
            return True
        if path.startswith("/batches"):
            writer.write(_http(200, {}, json.dumps(self.batches).encode()))
            return True
        assert (method, path) == ("POST", "/predict")
        self.asked.append(headers)
        self.bodies.append(body)
        return await self._answer(self.answer, reader, writer)

    async def _answer(
        self, answer: str | tuple[int, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if answer == "hold":
            gone = asyncio.ensure_future(reader.read(1))
            free = asyncio.ensure_future(self.released.wait())
            await asyncio.wait({gone, free}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                self.left += 1
                free.cancel()
                return False
            gone.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gone
            answer = self.then
        if answer == "lose":
            return False
        if answer == "garble":
            writer.write(b"what is this\r\n\r\n")
            return False
        assert isinstance(answer, tuple)
        status, title = answer
        if status == 200:
            record = (
                f"replica={self.number},batch={len(self.asked)},batch_size=1,arrived_s=1.0,started_s=2.0,finished_s=3.0"
            )
            said = {"content-type": "application/json", "x-rung-record": record}
            writer.write(_http(200, said, json.dumps({"label": self.number}).encode()))
        else:
            problem = json.dumps({"title": title, "status": status, "detail": "as told"}).encode()
            writer.write(_http(status, {"content-type": "application/problem+json", "retry-after": "9"}, problem))
        return True


def _http(status: int, headers: Headers, body: bytes) -> bytes:
    told = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} So\r\ncontent-length: {len(body)}\r\n{told}\r\n".encode() + body


class Fleet:
    """A gateway and the fakes behind it."""

    def __init__(self, stage: Stage, folder: Path, count: int, keys: Keys) -> None:
        self.stage = stage
        self.file = folder / "replicas.json"
        self.generation = 0
        self.fakes = [FakeReplica(number) for number in range(count)]
        self.gateway = Gateway(stage, self.file, keys, folder if stage.split is not None else None)
        self.url = ""
        self.loop = asyncio.new_event_loop()  # of the fakes

    def do(self, what: Coroutine[Any, Any, None]) -> None:
        """Has it done on the fakes' loop."""
        asyncio.run_coroutine_threadsafe(what, self.loop).result(PATIENCE_S)

    def release(self) -> None:
        """Lets everything go that is held."""
        for fake in self.fakes:
            self.loop.call_soon_threadsafe(fake.released.set)

    def publish(self, *numbers: int, draining: tuple[int, ...] = ()) -> None:
        """Writes replicas.json with these fakes."""
        self.generation += 1
        rows = [{"replica": n, "url": self.fakes[n].url, "draining": n in draining} for n in numbers]
        write_atomically(self.file, json.dumps({"generation": self.generation, "replicas": rows}))

    @functools.cached_property
    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False, verify=False)

    def ask(self, **headers: str) -> httpx.Response:
        """One request."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post("/predict", content=b"four", headers={"content-type": "x/y"} | named)

    def counts(self) -> dict[str, float]:
        """What its metrics say."""
        return scraped(self.client)

    def seen(self) -> dict[int, dict[str, Any]]:
        """The replicas as the gateway tells of them, by number."""
        told = self.client.get("/replicas").json()
        return {row["replica"]: row for row in told["replicas"]} | {-1: {"generation": told["generation"]}}

    def await_rotation(self, *numbers: int) -> None:
        """Waits until just these are in rotation."""

        def there() -> bool:
            rotation = self.gateway.rotation
            return rotation is not None and {
                replica.number for replica in rotation.in_rotation(time.monotonic())
            } == set(numbers)

        assert wait_until(there, PATIENCE_S), self.seen()


@contextlib.contextmanager
def fleet(folder: Path, count: int = 2, keys: Keys | None = None, **overrides: Any) -> Iterator[Fleet]:
    """A gateway with `count` fakes in rotation. `gateway_x` and `admission_x` set those keys of the stage.

    Probes come once a minute unless a test has it otherwise, so that nothing but requests changes anything.
    """
    quiet = {"gateway.probe_interval_s": 60.0, "gateway.probe_timeout_s": 30.0, "gateway.policy": "round-robin"}
    single = {"batching.max_batch_size": 1, "batching.batch_wait_timeout_s": 0.0, "overload": True}
    changed = {name.replace("_", ".", 1): value for name, value in overrides.items()}
    stage = load_stage("load-balanced", quiet | single | changed)
    made = Fleet(stage, folder, count, keys or Keys())
    fakes = threading.Thread(target=made.loop.run_forever, daemon=True)
    fakes.start()
    for fake in made.fakes:
        made.do(fake.open())
    made.publish(*range(count))
    server = uvicorn.Server(uvicorn.Config(made.gateway, log_level="warning", lifespan="on", http=Impatient, ws="none"))
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        made.url = "http://{}:{}".format(*listener.getsockname())
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            made.await_rotation(*range(count))
            yield made
        finally:
            made.release()
            made.client.close()
            server.should_exit = True
            thread.join(PATIENCE_S)
            for fake in made.fakes:
                made.do(fake.close())
            made.loop.call_soon_threadsafe(made.loop.stop)
            fakes.join(PATIENCE_S)
            made.loop.close()
    assert not thread.is_alive()
