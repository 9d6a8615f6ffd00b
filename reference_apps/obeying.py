"""What a replica does to itself while its drill file says so: it is slow, or refuses its connections.

    supervisor ─ replaces ─▶ drill-0.json in the run folder ─ looked at every 50 ms ─▶ obey ─▶ device.slow, door.shut
    {"failure": "slow", "from_s": …, "until_s": …, "factor": 10}        until it is over, or the file is gone

The file is the only way: no address that a replica serves leads here. It says itself when it is over, on the monotonic
clock, so that a failure ends when whoever wanted it is no more. The other failures come from outside, see
reference_apps/drills.py.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from reference_apps.serving import Door

LOOK_S = 0.05
LENGTH_MAX_S = 600.0  # no failure is longer, whatever a file says
FACTOR_MAX = 1000.0

log = logging.getLogger("rung.drill")


class Slows(Protocol):
    """A device that can be slowed down."""

    def slow(self, factor: float) -> None: ...


class Told(NamedTuple):
    """What a drill file says. Times are of the monotonic clock."""

    failure: str  # "slow", "refuse"
    from_s: float
    until_s: float
    factor: float = 1.0


def write(told: Told) -> str:
    """The text of a drill file."""
    return json.dumps(told._asdict())


def read(file: Path) -> Told | None:
    """What the file says; None where it is empty or missing, or makes no sense, which the log then says."""
    try:
        if not (text := file.read_text(encoding="utf-8")):
            return None
        told = Told(**json.loads(text))
        sound = (
            told.failure in ("slow", "refuse")
            and math.isfinite(told.from_s)
            and 0.0 < told.until_s - told.from_s <= LENGTH_MAX_S
            and 1.0 <= told.factor <= FACTOR_MAX
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s cannot be read, and nothing is done: %r", file, error)
        return None
    if not sound:
        log.warning("%s says nothing that makes sense, and nothing is done: %s", file, told)
    return told if sound else None


async def obey(file: Path, device: Slows, door: Door, clock: Callable[[], float] = time.monotonic) -> None:
    """Does what the file says when it says so, for as long as it is let go on."""
    seen: tuple[int, int, int] | None = None
    told: Told | None = None
    doing: Told | None = None
    while True:
        if (now := _look(file)) != seen:
            seen, told = now, read(file)
        wanted = told if told is not None and told.from_s <= clock() < told.until_s else None
        if doing is not None and wanted != doing:
            await _end(doing, device, door)
            log.warning("drill: %s is over", doing.failure)
            doing = None
        if wanted is not None and doing is None:
            log.warning("drill: %s", wanted.failure)
            _begin(wanted, device, door)
            doing = wanted
        moments_s = () if told is None else (told.from_s, told.until_s)
        next_s = min((at_s for at_s in moments_s if at_s > clock()), default=math.inf)
        await asyncio.sleep(max(0.0, min(LOOK_S, next_s - clock())))


def _look(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _begin(told: Told, device: Slows, door: Door) -> None:
    if told.failure == "slow":
        device.slow(told.factor)
    else:
        door.shut()


async def _end(told: Told, device: Slows, door: Door) -> None:
    if told.failure == "slow":
        device.slow(1.0)
    else:
        await door.open_again()
