"""Both worlds' gateways before replicas that answer by a script, on clocks that go on by the try.

scripts, policy ─┬─▶ reference_apps.gateway, its upstream and its clock replaced ─▶ tried, told ─┐
                 └─▶ simulator.gateway, its replicas replaced ───────────────────▶ tried, told ─┴─ equal
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from simpy import Environment

import reference_apps.gateway as running
import reference_apps.rotation as rotation
import simulator.gateway as simulated
from reference_apps.upstream import Address, LostError, Reply
from simulator.clock import At
from stages.calibration import HostCosts
from stages.policies.balancing import ticket_of
from stages.policies.health import Health
from stages.spec import Stage
from tests.cases import Ends

TRY_S = 0.125  # from the gateway to a replica and back
EVERY_S = 1.0  # from one request to the next
FIRST_PORT = 9000  # of the running gateway's replicas, which nobody connects to
_STATUS = {"queue_full": 503, "draining": 503, "deadline": 504, "model_error": 500}

Scripts = Sequence[Sequence[str]]


def script_of(reasons: Sequence[str]) -> Iterator[str]:
    """How each try at one replica ends; the last for ever."""
    return chain(reasons[:-1], repeat(reasons[-1]))


def simulate(stage: Stage, scripts: Scripts, keys: Sequence[str], seed: int, patch: pytest.MonkeyPatch) -> list[Ends]:
    """What the simulator's gateway does with a request a second."""
    tried: list[list[int]] = [[] for _ in keys]

    class Scripted:
        """In place of a simulated replica; its number is handed over as its device."""

        def __init__(
            self, _: Stage, env: Environment, number: int, __: object, settled: Any, ___: object = None
        ) -> None:
            self._env, self._number, self._settled = env, number, settled
            self._script = script_of(scripts[number])

        def submit(self, request: int, deadline_s: float) -> None:
            assert deadline_s > 0
            tried[request].append(self._number)
            self._settled(request, self._env.now + TRY_S, next(self._script))

    patch.setattr(simulated, "Replica", Scripted)
    env = Environment()
    gateway = simulated.Gateway(stage, env, HostCosts(), None, seed)
    for number in range(len(scripts)):
        gateway.join(number, number)  # type: ignore[arg-type]
    for number, key in enumerate(keys):
        At(env, number * EVERY_S).add_callback(lambda _, number=number, key=key: gateway.submit(number, key))  # type: ignore[misc]
    env.run()
    return [(tuple(replicas), reason) for replicas, reason in zip(tried, gateway.log().reasons, strict=True)]


def serve(
    stage: Stage, scripts: Scripts, keys: Sequence[str], seed: int, folder: Path, patch: pytest.MonkeyPatch
) -> list[Ends]:
    """What the running gateway does with the same, on a clock that only tries move."""
    clock = SimpleNamespace(now_s=0.0)
    patch.setattr(running, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    patch.setattr(rotation, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    tried: list[int] = []

    class Upstream:
        """In place of the connections to replicas."""

        def __init__(self) -> None:
            self._scripts = [script_of(reasons) for reasons in scripts]

        async def post(self, address: Address, path: bytes, headers: object, body: bytes) -> Reply:
            assert (path, body) == (b"/predict", b"{}")
            number = address.port - FIRST_PORT
            tried.append(number)
            clock.now_s += TRY_S
            reason = next(self._scripts[number])
            if reason in ("connection", "upstream_lost"):
                raise LostError(reason, reason != "connection", "by the script")
            if not reason:
                return Reply(200, b"{}", b"application/json")
            problem = json.dumps({"title": reason, "status": _STATUS[reason]}).encode()
            return Reply(_STATUS[reason], problem, b"application/problem+json")

    async def all_of_them() -> list[Ends]:
        seeded = stage.model_copy(update={"traffic": stage.traffic.model_copy(update={"seed": seed})})
        gateway = running.Gateway(seeded, folder / "replicas.json")
        upstream: Any = Upstream()
        gateway._upstream = upstream
        gateway.rotation = rotation.Rotation(gateway.policy, folder / "replicas.json", upstream)
        config = gateway.policy
        health = Health(config.unhealthy_after, config.healthy_after, config.eject_after, config.eject_s)
        for number in range(len(scripts)):
            url = f"http://127.0.0.1:{FIRST_PORT + number}"
            gateway.rotation.replicas[number] = rotation.Replica(
                number, url, health.after_probe(True), False, Address.of(url)
            )
        ends: list[Ends] = []
        for number, key in enumerate(keys):
            clock.now_s = number * EVERY_S
            tried.clear()
            status, body = await _asked(gateway, key, ticket_of(seed, number))
            ends.append((tuple(tried), "" if status == 200 else str(json.loads(body)["title"])))
        return ends

    return asyncio.run(all_of_them())


async def _asked(gateway: running.Gateway, key: str, ticket: str) -> tuple[int, bytes]:
    """Status and body of one request by ASGI."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "headers": [
            (b"x-rung-key", key.encode()),
            (b"x-rung-request", ticket.encode()),
            (b"content-type", b"application/json"),
        ],
    }
    sent: list[Any] = []
    messages = iter([{"type": "http.request", "body": b"{}", "more_body": False}])

    async def receive() -> dict[str, Any]:
        for message in messages:
            return message
        return await asyncio.Future()  # the client stays

    async def send(message: Any) -> None:
        sent.append(message)

    await gateway(scope, receive, send)
    return int(sent[0]["status"]), b"".join(message.get("body", b"") for message in sent[1:])
