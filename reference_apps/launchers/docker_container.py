"""A container that passes for a process: the part of subprocess.Popen that a launcher uses.

container ── its output, followed by a thread ──▶ log file
          ── its end ──▶ exit status (asked of the engine once, not with every poll)
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from requests.exceptions import RequestException

# The status of a container whose end nobody saw: the engine has gone.
UNSEEN = 255


class ContainerProcess:
    """One started container. Its log is complete once `poll` gives its exit status."""

    def __init__(
        self,
        container: Any,
        network: str,
        log: Path,
        log_max_bytes: int,
        ends_by: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.container = container
        self.network = network
        self.log = log
        self._log_max_bytes = log_max_bytes
        self.out_of_memory = False
        self._returncode: int | None = None
        self._ended = threading.Event()
        self._ends_by = ends_by  # the signal at which what runs inside drains
        container.reload()
        self._pid = self._init = int(container.attrs["State"]["Pid"])
        threading.Thread(target=self._follow, name=f"follow {container.name}", daemon=True).start()

    @property
    def pid(self) -> int:
        """The process inside, as this machine numbers it: the child of the container's init, once there is one."""
        if self._pid == self._init:
            with contextlib.suppress(psutil.Error):
                self._pid = next((child.pid for child in psutil.Process(self._init).children()), self._init)
        return self._pid

    @property
    def address(self) -> str:
        """Its address in the stage's network; empty while it is cut off."""
        networks = self.container.attrs["NetworkSettings"]["Networks"]
        return str(networks.get(self.network, {}).get("IPAddress", ""))

    def published(self, port: int) -> int:
        """The port of this machine that leads to `port` of the container; 0 when there is none."""
        bound = self.container.attrs["NetworkSettings"]["Ports"].get(f"{port}/tcp") or []
        return int(bound[0]["HostPort"]) if bound else 0

    def poll(self) -> int | None:
        return self._returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(self.container.name, timeout or 0.0)
        assert self._returncode is not None
        return self._returncode

    def send_signal(self, sig: int) -> None:
        """Sends a signal. SIGSTOP and SIGCONT freeze and thaw the whole container; SIGTERM asks it to drain."""
        if sig == signal.SIGSTOP:
            self._ask(self.container.pause)
        elif sig == signal.SIGCONT:
            self._ask(self.container.unpause)
        else:
            self._ask(self.container.unpause)  # a frozen one would not hear
            self._ask(self.container.kill, signal.Signals(self._ends_by if sig == signal.SIGTERM else sig).name)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def refresh(self) -> None:
        """Asks the engine again what there is to know of it."""
        self._ask(self.container.reload)

    def remove(self) -> None:
        """Removes the container, whatever it does."""
        self._ask(self.container.remove, v=True, force=True)

    def _ask(self, what: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Does something with a container that may have ended, be so already, or have lost its engine."""
        with contextlib.suppress(RequestException):  # of which the engine's own refusals are a kind
            what(*args, **kwargs)

    def _copy_output(self) -> None:
        """Until the container ends. A log that is full takes no more; the engine keeps the last of it."""
        with self.log.open("ab", buffering=0) as log:
            full = False
            for chunk in self.container.logs(stream=True, follow=True):
                if not full:
                    log.write(chunk)
                    if full := log.tell() >= self._log_max_bytes:
                        log.write(f"the log is full; `docker logs {self.container.name}` has the last lines\n".encode())

    def _follow(self) -> None:
        """Writes what the container says to its log until it ends, then takes down how it ended."""
        code = UNSEEN
        try:
            self._copy_output()
            code = int(self.container.wait()["StatusCode"])
            self.container.reload()
            self.out_of_memory = bool(self.container.attrs["State"]["OOMKilled"])
        except Exception as error:  # whatever became of the engine: the container is gone for us
            with contextlib.suppress(OSError), self.log.open("a", encoding="utf-8") as log:
                log.write(f"its container cannot be followed any more: {error}\n")
        finally:
            self._returncode = _as_process(code)
            self._ended.set()


def _as_process(code: int) -> int:
    """An exit status as subprocess gives it: a shell's 128 + n for signal n becomes -n."""
    return 128 - code if code > 128 and code - 128 in signal.valid_signals() else code
