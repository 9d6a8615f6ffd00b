"""One run of Locust against a stage that is up: fire its schedule, gather the record, check the run itself.

Stage ─▶ stage.toml, payloads.npz ─▶ locust (a process of its own) ─▶ rows ─┐
                                         replica: GET /batches ─────────────┴─▶ Records, SelfCheck
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from loadtests import payloads, raw_rows
from loadtests.checks import SelfCheck, self_check
from reference_apps.launchers.process import open_url
from stages.records import Records
from stages.spec import Stage, stage_toml

LOCUSTFILE = Path(__file__).parent / "locustfile.py"


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
    pids: tuple[int, ...] = (),
    processes: int = 1,
    on_second: Callable[[float], None] = lambda _: None,
) -> Loaded:
    """Fires the stage's traffic at `url` and gives back the record; files are left in `folder`.

    `device` is the label that the record carries; `pids` are the processes of the stack, whose processor time is
    not foreign. `on_second` hears the seconds gone by. A stack that is gone gives requests that failed, with the
    batches that its answers told of. Raises LoadError when Locust fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("rows-*"):  # of a run that had this folder before
        stale.unlink()
    command = _command(stage, url, folder, processes)
    ours = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    before = _Cpu.now(ours)
    limit_s = stage.traffic.duration_s + stage.traffic.timeout_s + 60.0
    log = folder / "locust.log"
    with log.open("wb") as output:
        locust = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _await(locust, limit_s, on_second)
    finally:
        if locust.poll() is None:
            locust.kill()
        locust.wait()
        if locust.stdin is not None:
            locust.stdin.close()  # the generator watches this pipe: had we died, it would have ended
    after = _Cpu.now(ours)
    try:
        fired = raw_rows.read(folder / "rows.parquet", processes)
    except OSError as error:
        raise LoadError(
            f"the load generator ended with status {locust.returncode} and left no result ({error}).\n"
            f"{_tail(log)}\nThe whole log: {log}"
        ) from None
    try:
        batches = _batches(url, fired.began_s)
    except (OSError, http.client.HTTPException):
        batches = raw_rows.answered_batches(fired)
    records = raw_rows.to_records(fired, batches, device, stage.traffic.duration_s)
    return Loaded(records, self_check(fired, before.foreign_share(after)))


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
        command += ["--processes", str(processes)]
    return command


def _await(locust: subprocess.Popen[bytes], limit_s: float, on_second: Callable[[float], None]) -> None:
    began_s = time.monotonic()
    while locust.poll() is None:
        gone_s = time.monotonic() - began_s
        if gone_s > limit_s:
            raise LoadError(f"the load generator did not end within {limit_s:.0f} s and was killed.")
        on_second(gone_s)
        time.sleep(0.25)


def _batches(url: str, since_s: float) -> list[tuple[int, int, float, float, int]]:
    with open_url(f"{url}/batches?since_s={since_s!r}", timeout_s=10.0) as response:
        rows = json.load(response)
    return [(0, int(number), float(start), float(end), int(size)) for number, start, end, size in rows]


def _tail(log: Path, count: int = 12) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
    return "\n".join(f"  | {line}" for line in lines) or "  | (it said nothing)"


@dataclass(frozen=True)
class _Cpu:
    """Processor seconds so far: of the whole machine, and of our processes."""

    wall_s: float
    busy_s: float
    ours_s: float

    @classmethod
    def now(cls, stack: list[psutil.Process]) -> _Cpu:
        total = psutil.cpu_times()
        busy_s = sum(total) - total.idle - getattr(total, "iowait", 0.0)
        busy_s -= getattr(total, "guest", 0.0) + getattr(total, "guest_nice", 0.0)  # counted in user already
        own = os.times()
        ours_s = own.user + own.system + own.children_user + own.children_system
        for process in stack:
            with contextlib.suppress(psutil.NoSuchProcess):  # it died, which its requests tell
                times = process.cpu_times()
                ours_s += times.user + times.system
        return cls(time.monotonic(), busy_s, ours_s)

    def foreign_share(self, later: _Cpu) -> float:
        """The share of all cores between the two looks that went to others."""
        capacity_s = (later.wall_s - self.wall_s) * (psutil.cpu_count() or 1)
        return max(0.0, (later.busy_s - self.busy_s) - (later.ours_s - self.ours_s)) / capacity_s
