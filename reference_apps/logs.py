"""What every process of a stage writes down: one JSON object a line, and a line a request where that is wanted.

    process ── logging ──▶ JsonLines ──▶ stderr ──▶ <run folder>/<process>.log
    request ──▶ RequestLog: went wrong, or all are wanted? room this second? ──▶ the same

    {"time": "2026-11-20T12:00:00.123456Z", "level": "warning", "role": "replica", "number": 0, "pid": 17,
     "event": "request", "status": 503, "seconds": 0.0004, "reason": "queue_full", "request_id": "…"}

A request takes the host 0.3 ms, and its line some 0.05 ms more, which is why only those that went wrong have one
unless `logs.requests` says otherwise. Read back by reference_apps/reading_logs.py. No twin: the simulator's records
have every request. It does not rotate files: request lines end at `logs.requests_max_bytes`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import orjson

from reference_apps.asgi import PROBLEM, Answer, Headers
from stages.alerts import Logs

# What a client may call a request at most; a longer name is cut.
REQUEST_ID_MAX = 128


class JsonLines(logging.Formatter):
    """Log records as JSON, a line each: `log.info("event", extra=fields(request_id=…))`."""

    def __init__(self, role: str, number: int | None = None) -> None:
        super().__init__()
        self._who = {"role": role, "number": number, "pid": os.getpid()}

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON, with the stack of an exception in `error`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            **self._who,
            "event": _message(record),
            **getattr(record, "fields", {}),
        }
        if record.exc_info is not None and record.exc_info[0] is not None:
            line["error"] = "".join(traceback.format_exception(*record.exc_info))
        return orjson.dumps(line, default=str, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS).decode()


def fields(**values: Any) -> dict[str, dict[str, Any]]:
    """What a line says beside its event, as logging's `extra`."""
    return {"fields": values}


def configure(role: str, number: int | None, level: str) -> None:
    """From here on this process says everything on stderr as JSON lines: ours, libraries', warnings and crashes.

    `role` is "replica", "gateway" or "supervisor"; `number` tells replicas apart. `level` is that of [logs].
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(role, number))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # At "debug" libraries write several lines a request, for their own authors.
    root.setLevel(max(logging.getLevelNamesMapping()[level.upper()], logging.INFO))
    logging.getLogger("rung").setLevel(level.upper())
    logging.captureWarnings(True)
    sys.excepthook = _log_crash
    threading.excepthook = lambda crash: _log_crash(crash.exc_type, crash.exc_value, crash.exc_traceback)


class RequestLog:
    """The lines of one process about requests: those that went wrong, or all; at most so many a second and in all."""

    def __init__(
        self, logger: logging.Logger, wanted: Logs, clock: Callable[[], float] = time.monotonic, stream: int = 2
    ) -> None:
        self._logger, self._wanted, self._clock, self._stream = logger, wanted, clock, stream
        self._all = wanted.requests == "all" or wanted.level == "debug"
        self._second_began_s = -1.0
        self._lines = 0  # written in this second
        self._left_out = 0  # and those that were not, since that was last told
        self._full = False

    def note(self, headers: Headers, answer: Answer, took_s: float) -> None:
        """A request with these headers was answered so, after `took_s` seconds."""
        status = answer[0]
        if status < 400 and not self._all:
            return
        if not self._room():
            self._left_out += 1
            return
        told = {"status": status, "seconds": round(took_s, 6), **said_by(headers, answer[1], answer[2])}
        self._logger.log(_level(status), "request", extra={"fields": told})

    def _room(self) -> bool:
        """Whether one more line may be written; tells once a second how many were not."""
        now_s = self._clock()
        if now_s - self._second_began_s >= 1.0:
            self._second_began_s, self._lines = now_s, 0
            self._look_at_size()
            if self._left_out:
                why = "logs.requests_max_bytes" if self._full else "logs.requests_max_rps"
                self._logger.warning("request lines left out", extra=fields(lines=self._left_out, limit=why))
                self._left_out = 0
        if self._full or self._lines >= self._wanted.requests_max_rps:
            return False
        self._lines += 1
        return True

    def _look_at_size(self) -> None:
        with contextlib.suppress(OSError):  # a stream that is closed takes no lines, and has no size
            log = os.fstat(self._stream)
            self._full = stat.S_ISREG(log.st_mode) and log.st_size >= self._wanted.requests_max_bytes


def said_by(asked: Headers, headers: Iterable[tuple[bytes, bytes]], content: bytes) -> dict[str, Any]:
    """What request and answer tell of themselves: the request's id, the answer's record, a problem's `reason`."""
    told: dict[str, Any] = {}
    found = dict(headers)
    request_id = found.get(b"x-request-id") or asked.get(b"x-request-id")
    if request_id:
        told["request_id"] = request_id[:REQUEST_ID_MAX].decode("latin-1")
    if found.get(b"content-type") == PROBLEM:
        with contextlib.suppress(orjson.JSONDecodeError, AttributeError):
            told["reason"] = orjson.loads(content).get("title")
    return told | _numbers(found)


def _numbers(headers: Mapping[bytes, bytes]) -> dict[str, float]:
    """The parts of the header x-rung-record: `replica=0,batch=7,…,finished_s=12.5`."""
    numbers: dict[str, float] = {}
    for part in headers.get(b"x-rung-record", b"").decode("latin-1").split(","):
        name, _, number = part.partition("=")
        with contextlib.suppress(ValueError):
            numbers[name] = float(number) if name.endswith("_s") else int(number)
    return numbers


def _level(status: int) -> int:
    if status < 400:
        return logging.INFO
    return logging.WARNING if status < 500 or status in (503, 504) else logging.ERROR


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # the caller's format and arguments do not fit: the line is worth more than the error
        return f"{record.msg} {record.args!r}"


def _log_crash(kind: type[BaseException], error: BaseException | None, stack: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt | SystemExit):
        logging.getLogger("rung").critical("crash", exc_info=(kind, error or kind(), stack))
