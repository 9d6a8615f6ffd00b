"""A real Redis-compatible server in a process of its own, for tests: it can be killed, and it comes back where it was.

The program is the one that launchers take. Everything is done to this process alone, by its id.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis

from reference_apps.asking import wait_until
from reference_apps.launchers.member import LaunchError
from reference_apps.launchers.valkey import free_port, server_binary
from tests.conftest import PATIENCE_S

# What a broker with queue.fsync = "commit" wants of its server.
COMMIT = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
INTERVAL = ("--appendonly", "yes", "--appendfsync", "everysec", "--save", "")


@dataclass
class RedisServer:
    """One server at one port, with its files in one folder."""

    folder: Path
    settings: tuple[str, ...] = COMMIT
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Starts it, on a free port the first time and on the same one ever after; returns when it answers."""
        for _ in range(5):
            port = self.port or free_port()
            with (self.folder / "server.log").open("ab") as log:
                self.process = subprocess.Popen(
                    [binary(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(self.folder), *self.settings],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **self.environment},
                )
            if wait_until(lambda port=port: self.answers(port) or not self.runs, PATIENCE_S) and self.runs:
                self.port = port
                return
            self.kill()
        raise AssertionError((self.folder / "server.log").read_text(errors="replace")[-2000:])

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def answers(self, port: int | None = None) -> bool:
        with contextlib.closing(redis.Redis(port=port or self.port, socket_timeout=1.0)) as client:
            try:
                return bool(client.ping())
            except redis.exceptions.RedisError:
                return False

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(PATIENCE_S)


@contextlib.contextmanager
def redis_server(
    folder: Path, settings: tuple[str, ...] = COMMIT, environment: Mapping[str, str] | None = None
) -> Iterator[RedisServer]:
    """A server that answers, and is gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    server = RedisServer(folder, settings, environment or {})
    try:
        server.start()
        yield server
    finally:
        server.kill()


def binary() -> str:
    """The server's program. Skips the test where there is none, which CI counts as a failure."""
    try:
        return server_binary("queue")
    except LaunchError as error:
        pytest.skip(str(error))
