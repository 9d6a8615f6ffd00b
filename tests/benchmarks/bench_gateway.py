"""What the gateway costs: `python -m tests.benchmarks.bench_gateway [ROUNDS] [SECONDS]`.

    clients ──▶ replica          directly
    clients ──▶ gateway ──▶ replica
    clients ──▶ haproxy ──▶ replica                   Debian's, one thread, connections kept open; where it is installed

One replica that answers in a fraction of a millisecond, so that what stands before it is seen. In every round each way
is measured in turn, and only ratios within a round are told: throughput with 32 clients that ask one after the other,
and what is added to the median latency of a single client. Clients, proxy and replica share this machine's cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import uvloop
from rich.table import Table

from loadtests.payloads import Payloads, make_payloads
from reference_apps.asking import probe, wait_until
from reference_apps.launchers.process import ProcessLauncher
from reference_apps.upstream import Address, LostError, Upstream
from stages.spec import load_stage
from stages.terminal import Exit, err, fail, out

CLIENTS = 32
WARM_UP_S = 0.5
STAGE = {
    "model.name": "xor",
    "device": {"kind": "cpu"},
    "batching.max_batch_size": CLIENTS,
    "batching.batch_wait_timeout_s": 0.0,
    "fleet.replicas": 1,
    "overload": True,
}
HAPROXY = """
global
    nbthread 1
defaults
    mode http
    timeout connect 1s
    timeout client 30s
    timeout server 30s
    http-reuse always
frontend clients
    bind 127.0.0.1:{port}
    default_backend replicas
backend replicas
    server replica 127.0.0.1:{replica}
"""


@dataclass
class Way:
    """One way to the replica, and what was measured of it: an entry a round."""

    name: str
    url: str
    pid: int | None  # of what stands before the replica
    rps: list[float] = field(default_factory=list)
    p50_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)  # of that process, for a request


@contextlib.contextmanager
def haproxy(replica_port: int, folder: Path) -> Iterator[Way | None]:
    """Debian's haproxy in front of the replica, if there is one."""
    binary = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if binary is None:
        yield None
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = folder / "haproxy.cfg"
    config.write_text(HAPROXY.format(port=port, replica=replica_port))
    process = subprocess.Popen([binary, "-db", "-f", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        if not wait_until(lambda: probe(f"{url}/readyz"), 10.0):
            fail("haproxy did not answer within 10 s.")
        yield Way("haproxy", url, process.pid)
    finally:
        process.terminate()
        process.wait(10.0)


async def ask(url: str, clients: int, duration_s: float, payloads: Payloads) -> list[float]:
    """The latencies of clients that ask one after the other. Raises LostError when one got no answer."""
    pool, address, latencies_s = Upstream(connect_timeout_s=5.0), Address.of(url), list[float]()
    headers = [(name.encode(), value.encode()) for name, value in payloads.headers.items()]
    ends_s = time.monotonic() + duration_s

    async def client(number: int) -> None:
        while (began_s := time.monotonic()) < ends_s:
            reply = await pool.post(address, b"/predict", headers, payloads.body(number))
            if reply.status != 200:
                raise LostError("upstream_lost", True, f"HTTP {reply.status}")
            latencies_s.append(time.monotonic() - began_s)

    try:
        await asyncio.gather(*(client(number) for number in range(clients)))
    finally:
        await pool.close()
    return latencies_s


def measure(way: Way, duration_s: float, payloads: Payloads) -> None:
    """One round of one way: many clients, then a single one."""
    uvloop.run(ask(way.url, CLIENTS, WARM_UP_S, payloads))
    before_s = _cpu_s(way.pid)
    answered = uvloop.run(ask(way.url, CLIENTS, duration_s, payloads))
    way.cpu_s.append((_cpu_s(way.pid) - before_s) / len(answered))
    way.rps.append(len(answered) / duration_s)
    way.p50_s.append(float(np.median(uvloop.run(ask(way.url, 1, duration_s, payloads)))))


def _cpu_s(pid: int | None) -> float:
    if pid is None:
        return 0.0
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def show(ways: list[Way]) -> None:
    """Prints each way against the direct one."""
    direct = ways[0]
    table = Table("way", "throughput / direct", "lowest, highest round", "added p50 (ms)", "its processor time (ms)")
    for column in table.columns[1:]:
        column.justify = "right"
    for way in ways:
        ratios = np.array(way.rps) / np.array(direct.rps)
        added_ms = 1e3 * (np.array(way.p50_s) - np.array(direct.p50_s))
        spread = f"{ratios.min():.2f}, {ratios.max():.2f}"
        own = "" if way.pid is None else f"{1e3 * np.median(way.cpu_s):.3f}"
        table.add_row(way.name, f"{np.median(ratios):.2f}", spread, f"{np.median(added_ms):.3f}", own)
    out.print(table, soft_wrap=False)


def main(rounds: int, duration_s: float) -> int:
    """Prints the table of `rounds` rounds, each of `duration_s` seconds a way and kind of load."""
    stage = load_stage("load-balanced", STAGE)
    payloads = make_payloads(stage)
    with (
        tempfile.TemporaryDirectory() as folder,
        err.status("Measuring …"),
        ProcessLauncher(stage, Path(folder) / "stack") as launcher,
        haproxy(launcher.replicas[0].port, Path(folder)) as proxy,
    ):
        assert launcher.gateway is not None
        ways = [
            Way("direct", launcher.replicas[0].url, None),
            Way("gateway", launcher.url, launcher.gateway.pid),
            *([proxy] if proxy is not None else []),
        ]
        for number in range(rounds):
            for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
                measure(way, duration_s, payloads)
    show(ways)
    if proxy is None:
        err.print("haproxy is not installed, and was left out: apt-get install haproxy")
    return int(Exit.DONE)


if __name__ == "__main__":
    sys.exit(main(int((sys.argv[1:] or ["5"])[0]), float((sys.argv[2:] or ["3"])[0])))
