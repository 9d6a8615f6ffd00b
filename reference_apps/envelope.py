"""What travels through the queue as a job's payload: the input as the client sent it, and what there is to know of it.

    content type, shape, body ─┐
    callback, deadline ────────┼──▶ pack ──▶ bytes ──▶ [ broker ] ──▶ unpack ──▶ worker
    when it came ──────────────┘

When it came is told by two clocks: the monotonic one, which never jumps and means nothing on another machine or after a
restart, with the boot that it counts from; and the time of day for everybody else. No twin: the simulator's jobs need
no bytes.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path

import orjson
import psutil

_MAGIC = b"rj1\n"


class EnvelopeError(ValueError):
    """A payload that nobody packed; nothing can be done with such a job."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """One job's input and what goes with it."""

    content_type: str
    shape: str  # of raw float32, as the header x-rung-shape
    body: bytes
    came_s: float  # when it had been read, of the monotonic clock of `boot`
    came_at: float  # the same in seconds since the epoch
    boot: str
    callback: str | None = None
    deadline_s: float | None = None  # seconds after its coming from which nobody wants the answer any more

    @property
    def here(self) -> bool:
        """Whether it came under this very clock."""
        return self.boot == boot_id()

    @property
    def age_s(self) -> float:
        """How long ago it came, in seconds."""
        return max(0.0, time.monotonic() - self.came_s if self.here else time.time() - self.came_at)


def sealed(
    content_type: str, shape: str, body: bytes, callback: str | None = None, deadline_s: float | None = None
) -> Envelope:
    """An input that has come just now."""
    return Envelope(content_type, shape, body, time.monotonic(), time.time(), boot_id(), callback, deadline_s)


def pack(envelope: Envelope) -> bytes:
    """The envelope as a payload: a head as JSON after its length, and the body as it is."""
    head = orjson.dumps(
        [
            envelope.content_type,
            envelope.shape,
            envelope.came_s,
            envelope.came_at,
            envelope.boot,
            envelope.callback,
            envelope.deadline_s,
        ]
    )
    return b"%b%b%b%b" % (_MAGIC, len(head).to_bytes(4, "big"), head, envelope.body)


def unpack(payload: bytes) -> Envelope:
    """What was packed. Raises EnvelopeError for anything else."""
    start = len(_MAGIC) + 4
    try:
        if not payload.startswith(_MAGIC):
            raise ValueError(payload[:8])
        end = start + int.from_bytes(payload[len(_MAGIC) : start], "big")
        content_type, shape, came_s, came_at, boot, callback, deadline_s = orjson.loads(payload[start:end])
        return Envelope(
            str(content_type),
            str(shape),
            payload[end:],
            float(came_s),
            float(came_at),
            str(boot),
            None if callback is None else str(callback),
            None if deadline_s is None else float(deadline_s),
        )
    except (ValueError, TypeError):
        raise EnvelopeError("payload: must be what `rung jobs put` or POST /jobs made, got other bytes.") from None


@functools.cache
def boot_id() -> str:
    """What tells this start of this machine from every other; containers share it with their machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"boot {psutil.boot_time():.0f}"
