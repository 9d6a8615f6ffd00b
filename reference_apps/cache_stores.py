"""Where kept answers lie: in the gateway's own memory, or on a Redis-compatible server that gateways share.

    Cache ── get, put ──▶ ProcessStore    a dictionary; who goes is said by stages/policies/caching.py
                     └──▶ RedisStore      GET, SET PX; who goes is said by the server's maxmemory-policy

A server that is down, slow or talks nonsense is a miss and a count, never an error. After a failure it is left alone
for `down_s`; then it is tried beside the requests, none of which waits for that. Not here: several servers, and answers
that lie in both places. No twin: the simulator keeps sizes (simulator/cache.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Any, Protocol

from stages.cache import Cache
from stages.policies.caching import entry_bytes, open_policy

# Of a Redis-compatible server: connections that stay open, and how long making all of them may take.
CONNECTIONS = 8
CONNECT_TIMEOUT_S = 1.0
# Before each key there, so that others may use the same server. The number is that of the values' format.
PREFIX = b"rung:1:"
# How an address may begin, and what the client library calls that.
SCHEMES = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss", "unix": "unix"}

log = logging.getLogger("rung.gateway")


class StoreError(ValueError):
    """Answers cannot be kept there; the text says why and what to do."""


class Store(Protocol):
    """What a cache needs of a place to keep answers in. Times are seconds of the monotonic clock."""

    def open(self) -> None:
        """Called on the event loop that serves."""

    async def get(self, key: bytes, now_s: float) -> bytes | None:
        """What is kept under the key and is fresh; None where there is none, or nobody can tell in time."""

    async def put(self, key: bytes, value: bytes, now_s: float) -> None:
        """Keeps the value, if that can be done."""

    def empty(self) -> None:
        """Forgets what only this store could know of."""

    def holds(self) -> tuple[int, int] | None:
        """Bytes and entries; None where only a server knows."""

    async def close(self) -> None:
        """Lets go of connections."""


def open_store(
    config: Cache,
    environment: Mapping[str, str],
    evicted: Callable[[str], None] = lambda _: None,
    failed: Callable[[], None] = lambda: None,
) -> Store:
    """The store that the stage names. `evicted` hears why an entry went, `failed` of each failure of a server.

    Raises StoreError in words where there is no server to be asked.
    """
    if config.store == "process":
        return ProcessStore(config, evicted)
    return RedisStore(config, _address(config, environment), failed)


class ProcessStore:
    """Answers in this process' memory, within `max_bytes` as the policy counts them."""

    def __init__(self, config: Cache, evicted: Callable[[str], None] = lambda _: None) -> None:
        self._config, self._evicted = config, evicted
        self.empty()

    def open(self) -> None:
        """There is nothing to open."""

    async def get(self, key: bytes, now_s: float) -> bytes | None:
        # One that is there and not fresh keeps its place until it is stored anew: the policy has it so.
        return self._values[key] if self._policy.touch(key, now_s) else None

    async def put(self, key: bytes, value: bytes, now_s: float) -> None:
        self._values[key] = value
        for gone in self._policy.admit(key, entry_bytes(len(key), len(value)), now_s):
            self._values.pop(gone, None)
            self._evicted("too_large" if gone == key else "full")

    def empty(self) -> None:
        self._values: dict[Hashable, bytes] = {}
        self._policy = open_policy(self._config.policy, self._config.max_bytes, self._config.ttl_s)

    def holds(self) -> tuple[int, int] | None:
        return self._policy.bytes_used, len(self._policy)

    async def close(self) -> None:
        """There is nothing to close."""


class RedisStore:
    """Answers on a Redis-compatible server, which several gateways may share, and which may be down at any time."""

    def __init__(self, config: Cache, url: str, failed: Callable[[], None] = lambda: None) -> None:
        try:
            from redis.asyncio import BlockingConnectionPool, Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ImportError:
            raise StoreError(
                'redis: the Python package must be installed. A cache with store = "redis" is asked through it. '
                "Install it with `pip install 'rung[redis]'`, or set cache.store=process."
            ) from None
        self._config, self._failed = config, failed

        def client() -> Any:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                timeout=CONNECT_TIMEOUT_S,
                socket_timeout=CONNECT_TIMEOUT_S,  # requests wait for `timeout_s` only: see _ask
                socket_connect_timeout=CONNECT_TIMEOUT_S,
                retry=Retry(NoBackoff(), 0),  # by itself it tries again, which takes longer than an answer is worth
            )
            return Redis.from_pool(pool)

        self._new_client = client
        try:
            self._client = client()
        except ValueError:  # which may quote a part of the password
            raise StoreError(
                f"{config.url_env}: must be the address of a Redis-compatible server, and its host, port or database "
                "cannot be read. There is nowhere to keep answers. Set it to redis://HOST:PORT."
            ) from None
        self._up = False
        self._trying: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Connects, beside the requests: until that is done, every look is a miss."""
        self._trying = asyncio.create_task(self._try_until_up(0.0))

    async def get(self, key: bytes, now_s: float) -> bytes | None:
        del now_s  # the server has its own clock
        value = await self._ask(lambda: self._client.get(PREFIX + key))
        return value if isinstance(value, bytes) else None

    async def put(self, key: bytes, value: bytes, now_s: float) -> None:
        del now_s
        ttl_s = self._config.ttl_s
        ttl_ms = None if ttl_s is None else max(1, round(1000 * ttl_s))
        await self._ask(lambda: self._client.set(PREFIX + key, value, px=ttl_ms))

    def empty(self) -> None:
        """Nothing is done: others may share the server, and keys of another epoch are not asked for again."""

    def holds(self) -> tuple[int, int] | None:
        return None

    async def close(self) -> None:
        if self._trying is not None:
            self._trying.cancel()
            await asyncio.gather(self._trying, return_exceptions=True)
        await self._close_client()

    async def _ask(self, command: Callable[[], Awaitable[Any]]) -> Any:
        """The server's answer, within `timeout_s`; None when it is down, or is found to be."""
        if not self._up:
            return None
        try:
            async with asyncio.timeout(self._config.timeout_s):
                return await command()
        except Exception as error:  # whatever the client makes of what a server says: a request must not feel it
            self._fails(error)
            return None

    def _fails(self, error: Exception) -> None:
        """Counts a failure; after the first of them the server is left alone."""
        self._failed()
        if self._up:
            self._up = False
            log.warning("the cache's server is left alone for %g s: %r", self._config.down_s, error)
            self._trying = asyncio.create_task(self._try_until_up(self._config.down_s))

    async def _try_until_up(self, pause_s: float) -> None:
        """Asks after the server, on every connection at once, until it answers on all of them.

        Each time with connections of its own: who knows what a failure has left of the others.
        """
        level = logging.DEBUG if pause_s else logging.WARNING  # after a pause, it has been told of
        while True:
            await asyncio.sleep(pause_s)
            pause_s = self._config.down_s
            await self._close_client()
            self._client = self._new_client()
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await asyncio.gather(*(self._client.ping() for _ in range(CONNECTIONS)))
            except Exception as error:
                self._failed()
                log.log(level, "the cache's server does not answer: %r", error)
                level = logging.DEBUG
                continue
            self._up = True
            log.info("the cache's server answers")
            return

    async def _close_client(self) -> None:
        with contextlib.suppress(Exception):  # a server that is gone cannot be taken leave of
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._client.aclose()


def _address(config: Cache, environment: Mapping[str, str]) -> str:
    """The server's address out of the environment, as the client library writes it. It may hold a password."""
    given = environment.get(config.url_env, "").strip()
    scheme, separator, rest = given.partition("://")
    if not given:
        raise StoreError(
            f"{config.url_env}: must hold the address of a Redis-compatible server (cache.url_env), and is empty. "
            "There is nowhere to keep answers. Set it to redis://HOST:PORT, or start the stage with `rung up`, which "
            "runs a server of its own, or set cache.store=process."
        )
    if not separator or scheme not in SCHEMES:
        shown = f'"{scheme[:20]}://"' if separator else "no scheme"
        raise StoreError(
            f"{config.url_env}: must begin with {', '.join(f'{name}://' for name in SCHEMES)}, got {shown}. "
            "There is nowhere to keep answers. Set it to redis://HOST:PORT."
        )
    return f"{SCHEMES[scheme]}://{rest}"
