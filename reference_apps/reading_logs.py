"""The logs of a stage's processes, joined in the order of time.

    supervisor.log ─┐
    gateway.log ────┼──▶ parsed ──▶ wanted? ──▶ merged by time ──▶ readable, or as they are
    replica-0.log ──┘

Lines that are no JSON (what an interpreter says when it crashes) are kept, with the time of the line before them.
Written by reference_apps/logs.py. No twin: the simulator writes no log.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

LEVELS = ("debug", "info", "warning", "error", "critical")
POLL_S = 0.2
# What one look at one log reads at most; a line that is longer is cut in pieces.
CHUNK_BYTES = 1_048_576
# Order of appearance in a readable line; the rest follows as it comes.
_FIRST = ("request_id", "status", "reason", "alert", "state")
_HEAD = ("time", "level", "role", "number", "pid", "event", "error")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a log. `said` is the whole object; of a line that is no JSON, it has what can be known."""

    at_s: float  # since the epoch
    said: dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """Which lines: of this request (all without one), of this level and above."""

    request_id: str | None = None
    level: str = "debug"

    def __call__(self, line: Line) -> bool:
        level = line.said.get("level")
        loud = level not in LEVELS or LEVELS.index(level) >= LEVELS.index(self.level)
        return loud and self.request_id in (None, line.said.get("request_id"))


def joined(folder: Path, wanted: Wanted) -> Iterator[Line]:
    """The lines of every log in the folder so far, in the order of time."""
    logs = (Log(path) for path in logs_in(folder))
    return heapq.merge(*(filter(wanted, log.all()) for log in logs), key=lambda line: line.at_s)


def follow(folder: Path, wanted: Wanted, ended: Callable[[], bool], poll_s: float = POLL_S) -> Iterator[Line]:
    """The same, and whatever comes, until `ended` says that nothing will; a new process' log is found by itself.

    What one look finds waits for the next one, so that a line that another process wrote earlier comes first.
    """
    logs: dict[Path, Log] = {}
    held: list[Line] = []
    while True:
        last = ended()  # asked first: what was written until now is still read
        for path in logs_in(folder):
            logs.setdefault(path, Log(path))
        looked_at_s, fresh = time.time(), [line for log in logs.values() for line in log.new()]
        held = sorted([*held, *filter(wanted, fresh)], key=lambda line: line.at_s)
        due = held if last and not fresh else [line for line in held if line.at_s <= looked_at_s - poll_s]
        yield from due
        held = held[len(due) :]
        if last and not fresh:
            return
        time.sleep(poll_s)


def logs_in(folder: Path) -> list[Path]:
    """The logs of a run folder, which may be the folder of a stage that is up or of a comparison."""
    return sorted({*folder.glob("*.log"), *folder.glob("stack/*.log")})


@dataclass
class Log:
    """One process' log, read on from where the last look ended."""

    path: Path
    _offset: int = 0
    _rest: bytes = b""  # the beginning of a line whose end is not written yet
    _last_s: float = field(default=0.0)

    def new(self) -> list[Line]:
        """The lines that were completed since the last look, as far as one look reads."""
        try:
            with self.path.open("rb") as log:
                log.seek(0, 2)
                if log.tell() < self._offset:  # somebody emptied it
                    self._offset, self._rest = 0, b""
                log.seek(self._offset)
                chunk = log.read(CHUNK_BYTES)
        except OSError:
            return []
        self._offset += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > CHUNK_BYTES:
            lines, self._rest = [*lines, self._rest], b""
        return self._parsed(lines)

    def all(self) -> Iterator[Line]:
        """The lines so far, the last one too where its end is not written yet."""
        before = -1
        while self._offset != before:
            before = self._offset
            yield from self.new()
        yield from self._parsed([self._rest])

    def _parsed(self, lines: list[bytes]) -> list[Line]:
        told = [_object(line) for line in lines if line.strip()]
        times = [_time_s(each) for each in told]
        before_s = self._last_s or next((at_s for at_s in times if at_s is not None), time.time())
        found = []
        for line, said, at_s in zip((line for line in lines if line.strip()), told, times, strict=True):
            if said is None or at_s is None:
                said = self._unknown() | (said or {"event": line.decode("utf-8", errors="replace")})
            before_s = max(before_s, at_s or 0.0)  # a clock that was set back must not mix up one process' lines
            found.append(Line(before_s, said))
        self._last_s = before_s if found else self._last_s
        return found

    def _unknown(self) -> dict[str, Any]:
        """What is known of a line that does not say it itself: whose log it is in, and that something is wrong."""
        role, _, number = self.path.stem.partition("-")
        return {"level": "error", "role": role, "number": int(number) if number.isdecimal() else None}


def readable(line: Line) -> str:
    """A line for people: `2026-11-20 12:00:00.123 WARNING replica 0: request  request_id=… status=503 …`."""
    said = line.said
    at = datetime.fromtimestamp(line.at_s).astimezone()
    number = said.get("number")
    who = f"{said.get('role', '?')}{'' if number is None else f' {number}'}"
    names = [name for name in _FIRST if name in said]
    names += [name for name in said if name not in (*_HEAD, *_FIRST)]
    rest = "".join(f" {printable(f'{name}={_shown(said[name])}')}" for name in names)
    level = str(said.get("level", "")).upper()
    head = f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03d} {level:<8}{who}: "
    lines = [*str(said.get("event", "")).splitlines(), *str(said.get("error", "")).splitlines()] or [""]
    first, *others = map(printable, lines)
    return "\n".join([f"{head}{first}{rest}", *(f"    {other}" for other in others)])


def as_json(line: Line) -> str:
    """A line as it was written; of one that was no JSON, what is known of it."""
    at = datetime.fromtimestamp(line.at_s, UTC).isoformat().replace("+00:00", "Z")
    return orjson.dumps({"time": at} | line.said).decode()


def for_people(text: str) -> str:
    """A piece of a log as people read it; lines that are no JSON stay as they are."""
    told = ((line, _object(line.encode())) for line in text.splitlines())
    return "\n".join(line if said is None else readable(Line(_time_s(said) or 0.0, said)) for line, said in told)


def complaints(log: Path) -> str:
    """What a process that ended said was wrong: its errors, and what it said outside its log."""
    lines = (line.said for line in Log(log).all() if line.said.get("level") in ("error", "critical"))
    return "\n".join("\n".join(filter(None, (said.get("event"), said.get("error")))) for said in lines).strip()


def printable(text: str) -> str:
    """The text without anything that would steer a terminal: clients may call their requests what they like."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".")
    return value if isinstance(value, str) else orjson.dumps(value, default=str).decode()


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        said = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return said if isinstance(said, dict) else None


def _time_s(said: dict[str, Any] | None) -> float | None:
    try:
        return datetime.fromisoformat(said["time"]).timestamp() if said is not None else None
    except (KeyError, TypeError, ValueError):
        return None
