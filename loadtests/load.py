"""One run of Locust against a stage that is up: fire its schedule, gather the record, check the run itself.

Stage ─▶ stage.toml, payloads.npz ─▶ locust (a process of its own) ─▶ rows ─┐
                              replica or gateway: GET /batches ─────────────┴─▶ Records, SelfCheck
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loadtests import payloads, raw_rows
from loadtests.checks import SelfCheck, self_check
from loadtests.host_cpu import HostCpu, StackCpu
from reference_apps.asking import open_url
from reference_apps.launchers.member import Life
from stages.arms import arm_of
from stages.records import Records
from stages.spec import Stage, device_label, of_replica, stage_toml

if TYPE_CHECKING:
    from reference_apps.launchers.launcher import Launcher

LOCUSTFILE = Path(__file__).parent / "locustfile.py"
BATCHES_TIMEOUT_S = 20.0


class LoadError(RuntimeError):
    """Locust did not do its work; the text has its exit status, its last lines and its log."""


@dataclass(frozen=True)
class Loaded:
    """What one run of the load generator gave."""

    records: Records
    check: SelfCheck


def fire(
    stage: Stage,
    url: str,
    folder: Path,
    *,
    device: str,
    pids: Sequence[int] | Callable[[], Sequence[int]] = (),
    lives: Callable[[], Sequence[Life]] = tuple,
    processes: int = 1,
    on_begin: Callable[[float], None] = lambda _: None,
    on_second: Callable[[float], None] = lambda _: None,
) -> Loaded:
    """Fires the stage's traffic at `url` and gives back the record; files are left in `folder`.

    `pids` are the processes of the stack, whose processor time is not foreign: a function where they come and go.
    `lives` tells afterwards which replicas there were; `device` is the label of any other, unless the stage gives its
    replicas profiles of their own. `on_begin` hears, before it comes, the moment of the monotonic clock at which the
    schedule begins; `on_second` hears the seconds gone by. A stack that is gone gives requests that
    failed, with the batches that its answers told of. Raises LoadError when Locust fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("rows[-.]*"):  # of a run that had this folder before
        stale.unlink()
    command = _command(stage, url, folder, processes)
    stack = StackCpu(pids if callable(pids) else lambda: pids)
    before = HostCpu.now(stack)
    limit_s = stage.traffic.duration_s + stage.traffic.timeout_s + 60.0
    log = folder / "locust.log"
    with log.open("wb") as output:
        locust = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        generator_s = _await(locust, limit_s, _Beginning(folder / f"rows{raw_rows.BEGAN}", on_begin), on_second, stack)
    finally:
        if locust.poll() is None:
            locust.kill()
        locust.wait()
        if locust.stdin is not None:
            locust.stdin.close()  # the generator watches this pipe: had we died, it would have ended
    after = HostCpu.now(stack, generator_s)
    try:
        fired = raw_rows.read(folder / "rows.parquet", processes)
    except OSError as error:
        raise LoadError(
            f"the load generator ended with status {locust.returncode} and left no result ({error}).\n"
            f"{_tail(log)}\nThe whole log: {log}"
        ) from None

    def device_of(number: int) -> str:
        unequal = stage.fleet.profiles or stage.split is not None
        return device_label(of_replica(stage, number)) if unequal else device

    def arm(number: int) -> str:
        return arm_of(stage, number)

    batches = _batches(stage, url, fired)
    records = raw_rows.to_records(fired, batches, stage.traffic.duration_s, device_of, lives(), arm)
    return Loaded(records, self_check(fired, before.foreign_share(after)))


def fire_at_stack(
    stage: Stage,
    launcher: Launcher,
    folder: Path,
    *,
    on_begin: Callable[[float], None] = lambda _: None,
    on_second: Callable[[float], None] = lambda _: None,
) -> Loaded:
    """`fire` at what the launcher has started, whose replicas may come and go meanwhile."""
    return fire(
        stage,
        launcher.url,
        folder,
        device=device_label(stage),
        pids=lambda: launcher.pids,
        lives=launcher.lives,
        on_begin=on_begin,
        on_second=on_second,
    )


def _command(stage: Stage, url: str, folder: Path, processes: int) -> list[str]:
    (folder / "stage.toml").write_text(stage_toml(stage), encoding="utf-8")
    payloads.write(payloads.make_payloads(stage), folder / "payloads.npz")
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"]
    command += ["--loglevel", "WARNING", "--host", url, "--stage", str(folder / "stage.toml")]
    command += [
        "--rows",
        str(folder / "rows.parquet"),
        "--payloads",
        str(folder / "payloads.npz"),
        "--guarded",
    ]
    if processes > 1:
        command += ["--processes", str(processes), *meeting_point()]
    return command


def meeting_point() -> list[str]:
    """Locust's options for master and workers to meet on a free port of this machine.

    Without them they meet on port 5557 of every interface, so that two runs at once disturb each other.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    return [
        *("--master-bind-host", "127.0.0.1", "--master-bind-port", port),
        *("--master-host", "127.0.0.1", "--master-port", port),
    ]


def _await(
    locust: subprocess.Popen[bytes],
    limit_s: float,
    beginning: _Beginning,
    on_second: Callable[[float], None],
    stack: StackCpu,
) -> float:
    """Waits until the generator has ended; gives the processor seconds that it took, with its workers."""
    began_s = time.monotonic()
    while (took_s := _ended(locust)) is None:
        beginning.look()
        gone_s = time.monotonic() - began_s
        if gone_s > limit_s:
            raise LoadError(f"the load generator did not end within {limit_s:.0f} s and was killed.")
        on_second(gone_s)
        stack.look()
        time.sleep(0.25)
    return took_s


def _ended(process: subprocess.Popen[bytes]) -> float | None:
    """The processor seconds of a child that has ended, and of those that it had waited for; None while it runs.

    The system adds up children as one sum, in which replicas that end during the run would stand with all their life.
    """
    pid, status, used = os.wait4(process.pid, os.WNOHANG)
    if not pid:
        return None
    process.returncode = os.waitstatus_to_exitcode(status)  # it is nobody else's to wait for any more
    return used.ru_utime + used.ru_stime


def _batches(stage: Stage, url: str, fired: raw_rows.Fired) -> list[raw_rows.Batch]:
    """The batches of the run, of the replica at `url` or of all replicas of the gateway there; none if it is gone."""
    edge = stage.gateway.edge if stage.gateway is not None else None
    try:
        with open_url(f"{url}/batches?since_s={fired.began_s!r}", BATCHES_TIMEOUT_S, edge) as response:
            rows = json.load(response)
    except (OSError, http.client.HTTPException, ValueError):
        return []
    alone = next((batch[0] for batch in raw_rows.answered_batches(fired)), 0)  # a replica's rows lack its number
    numbered = (row if len(row) == 5 else [alone, *row] for row in rows)
    return [(int(replica), int(number), start, end, int(size)) for replica, number, start, end, size in numbered]


def _tail(log: Path, count: int = 12) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
    return "\n".join(f"  | {line}" for line in lines) or "  | (it said nothing)"


class _Beginning:
    """Waits for Locust to say when its schedule begins, which it does half a second before, and tells it once."""

    def __init__(self, path: Path, on_begin: Callable[[float], None]) -> None:
        self._path, self._on_begin, self._told = path, on_begin, False

    def look(self) -> None:
        if not self._told and self._path.exists():
            self._told = True
            self._on_begin(float(self._path.read_text(encoding="utf-8")))
