"""What a gateway is told of its replicas, in a file, and what it tells of them.

launcher ── replicas.json, replaced as a whole ──▶ gateway ── GET /replicas ──▶ launcher
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable
from pathlib import Path

from reference_apps.asking import open_url
from reference_apps.launchers.member import Member, write_atomically
from stages.fleet import Edge

# The generation of the file that a gateway works by, and what it knows of each replica.
Seen = tuple[int, dict[int, dict[str, object]]]
SILENT: Seen = (-1, {})


def publish(file: Path, generation: int, cache_epoch: int, replicas: Iterable[Member]) -> None:
    """Writes the file anew, in one piece: the replicas that are ready, and those that drain or stop."""
    rows = [
        {"replica": r.number, "url": r.inner_url, "draining": r.state != "ready"}
        for r in replicas
        if r.state in ("ready", "draining", "stopping") and r.inner_url
    ]
    write_atomically(file, json.dumps({"generation": generation, "cache": cache_epoch, "replicas": rows}))


def seen_by(gateway: Member | None, edge: Edge | None, timeout_s: float) -> Seen:
    """What the gateway tells; SILENT when it does not."""
    if gateway is None or gateway.state != "ready":
        return SILENT
    try:
        with open_url(f"{gateway.url}/replicas", timeout_s, edge) as response:
            told = json.load(response)
        return int(told["generation"]), {int(row["replica"]): row for row in told["replicas"]}
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return SILENT
