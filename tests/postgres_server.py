"""A real Postgres in a process of its own, for tests. Its files go with them, and it is reached over a socket there.

Whichever is there: initdb and postgres on the path, or in Debian's folder of them. It does not run as root, and so root
starts it as the user `postgres`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reference_apps.asking import wait_until
from tests.conftest import PATIENCE_S


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """A server with an empty database; gives its URL, for SQLAlchemy with psycopg."""
    with tempfile.TemporaryDirectory(prefix="rung-pg-") as made:  # a socket's path is at most 107 bytes long
        folder, who = Path(made), _not_root()
        if who:
            shutil.chown(folder, "postgres")
        data, log = folder / "data", folder / "log"
        words = ["-D", str(data), "-U", "rung", "-A", "trust", "--no-sync"]
        subprocess.run(
            [_binary("initdb"), *words], check=True, capture_output=True, timeout=PATIENCE_S, cwd=folder, **who
        )
        with log.open("wb") as output:
            server = subprocess.Popen(
                [_binary("postgres"), "-D", str(data), "-k", str(folder), "-c", "listen_addresses=", "-c", "fsync=off"],
                stdout=output,
                stderr=output,
                cwd=folder,
                **who,
            )
        try:
            socket = folder / ".s.PGSQL.5432"
            assert wait_until(lambda: socket.exists() or server.poll() is not None, PATIENCE_S)
            assert server.poll() is None, log.read_text()
            yield f"postgresql+psycopg://rung@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGINT)  # its fast shutdown
            server.wait(PATIENCE_S)


def _not_root() -> dict[str, Any]:
    return {} if os.getuid() else {"user": "postgres"}


def _binary(name: str) -> str:
    found = [shutil.which(name), *map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True))]
    for each in found:
        if each is not None:
            return each
    pytest.skip(f"{name}: there is no Postgres on this machine")
