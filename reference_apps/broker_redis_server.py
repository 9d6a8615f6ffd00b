"""The server behind the Redis broker: how it is asked, what it must promise, and the clock that its clients share.

    clients' monotonic clocks ──▶ SharedClock ──▶ every script ──▶ the server keeps the latest
                                      ▲────────── and tells it back

No twin: simulated time is one clock. It does not start a server; launchers do.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as NoConnectionError
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError
from redis.retry import Retry

from reference_apps.broker import BrokerDownError, BrokerFullDiskError
from stages.queue import Queue

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0
_REFUSALS = ("READONLY", "NOAUTH", "WRONGPASS", "NOPERM", "MASTERDOWN", "BUSY ", "CLUSTERDOWN")


class SharedClock:
    """The broker's time in milliseconds as this process knows it: never ahead of what passed since somebody told it."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._offset_ms: float | None = None

    def now_ms(self) -> int:
        """0 until it has heard anything."""
        return 0 if self._offset_ms is None else int(1000 * self._clock_s() + self._offset_ms)

    def heard(self, told_ms: int) -> None:
        """The broker's time was `told_ms`, or more, when the answer came; of all that was heard, the latest counts."""
        offset_ms = told_ms - 1000 * self._clock_s()
        self._offset_ms = offset_ms if self._offset_ms is None else max(self._offset_ms, offset_ms)


def open_client(url: str) -> Any:
    """A pool of connections. The library's types speak of blocking and asyncio clients at once, and so say little.

    A call is sent once more where the connection broke, which is sound: a job that was put, acked or failed stays so,
    and what a lost claim had taken comes back when its lease is over. Raises BrokerDownError for a URL that is none.
    """
    try:
        return redis.Redis.from_url(
            url,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 1, supported_errors=(NoConnectionError,)),
        )
    except ValueError:  # which may quote a part of the password
        raise BrokerDownError(
            "queue.url_env: must hold a URL like redis://HOST:PORT/0, got one whose scheme, host, port or database "
            "cannot be read. There would be no queue. Correct the variable."
        ) from None


def check_server(client: Any, queue: Queue) -> None:
    """Raises BrokerDownError in words when the server may lose what the stage promises to keep."""
    commit = queue.fsync == "commit"
    wanted = {
        "appendonly": ("yes",),
        "appendfsync": ("always",) if commit else ("everysec", "always"),
        "no-appendfsync-on-rewrite": ("no",) if commit else ("no", "yes"),
    }
    try:
        settings = {name: value for key in (*wanted, "maxmemory*") for name, value in client.config_get(key).items()}
    except ResponseError as error:  # rented servers often do not tell
        log.warning("the broker's server does not tell whether it keeps what it accepts: %s", error)
        return
    for name, values in wanted.items():
        if settings.get(name, values[0]) not in values:
            raise BrokerDownError(
                f'{name}: the broker\'s server must have {" or ".join(values)} with queue.fsync = "{queue.fsync}", got '
                f"{settings[name]}. Jobs could be lost after they were accepted. Start it with --{name} {values[0]}."
            )
    if settings.get("maxmemory", "0") != "0" and settings.get("maxmemory-policy") != "noeviction":
        raise BrokerDownError(
            f"maxmemory-policy: the broker's server must have noeviction, got {settings.get('maxmemory-policy')}. It "
            "would throw jobs away when its memory is full. Start another one than the cache's for the queue."
        )


@contextlib.contextmanager
def in_words() -> Iterator[None]:
    """Raises BrokerDownError for a server that is away or does not write; its URL, with its password, is not told."""
    try:
        yield
    except OutOfMemoryError as error:
        raise BrokerFullDiskError("the broker's server has no memory left. Nothing of this call was done.") from error
    except ResponseError as error:
        if "MISCONF" in str(error):
            raise BrokerFullDiskError(f"the broker's server cannot write to its disk: {error}") from error
        if any(word in str(error) for word in _REFUSALS):
            raise BrokerDownError(f"the broker's server refuses: {error}") from error
        raise
    except RedisError as error:
        raise BrokerDownError(f"the broker's server does not answer: {type(error).__name__}.") from error
