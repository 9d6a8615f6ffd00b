"""nginx as the gateway of a stage in containers: started, told of a new fleet, and asked by which one it works.

    nginx.conf, written anew ── SIGHUP ──▶ master ──▶ new workers; the old ones answer what they have, and go
    /generation ──▶ the newest configuration that is in force     no old worker left ──▶ in force altogether

A replica that drains is told to stop only then: an old worker may still have a request of its own there.
"""

from __future__ import annotations

import contextlib
import http.client
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from requests.exceptions import RequestException

from reference_apps import nginx
from reference_apps.asking import open_url
from reference_apps.launchers.docker_container import ContainerProcess
from stages.fleet import Edge
from stages.spec import Stage

_ASK_TIMEOUT_S = 0.5
_SECOND_NS = 1_000_000_000


class NginxGateway:
    """What is known of the nginx of one stage."""

    def __init__(self) -> None:
        self._written = -1  # the generation that its file has
        self._signalled = -1  # the one that it was last told to read
        self._old_workers: set[str] = set()  # those there were when it was last told to read its file
        self.share = 0.0  # of the challenger, in its file

    def configuration(
        self,
        stage: Stage,
        addresses: Mapping[int, str],
        generation: int,
        port: int,
        api_keys: Sequence[str],
        share: float = 0.0,
    ) -> str:
        """The text of nginx.conf; `addresses` are those of the replicas in rotation, `share` is the challenger's."""
        self._written, self.share = generation, share
        edge = stage.gateway.edge if stage.gateway is not None else Edge()
        return nginx.configuration(
            stage,
            addresses,
            generation,
            listen=f"0.0.0.0:{port}",
            certificate=edge.tls_certificate,
            certificate_key=edge.tls_key,
            api_keys=api_keys,
            challenger_share=share,
        )

    def command(self, file: str) -> list[str]:
        """Its arguments: it reads `file`, stays in the foreground and complains on stderr."""
        return ["-e", "stderr", "-c", file, "-g", "daemon off;"]

    def health(self, port: int, tls: bool) -> dict[str, Any]:
        """The engine's check of its container."""
        url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/healthz"
        return {
            "test": ["CMD", "curl", "--fail", "--silent", "--insecure", "--output", "/dev/null", url],
            "interval": 10 * _SECOND_NS,
            "timeout": 3 * _SECOND_NS,
            "retries": 3,
        }

    def reload(self, container: ContainerProcess, generation: int) -> None:
        """Has it read its file again."""
        self._old_workers |= _workers(container)
        self._signalled = generation
        container.send_signal(signal.SIGHUP)

    def works_by(self, container: ContainerProcess, url: str, edge: Edge | None) -> int:
        """The generation of the fleet that all of its workers go by; -1 when it is silent.

        One that began before its file was written for the last time is told to read it again.
        """
        try:
            with open_url(f"{url}/generation", _ASK_TIMEOUT_S, edge) as response:
                told = int(response.read(20))
        except (OSError, http.client.HTTPException, ValueError):
            return -1
        if told < self._written:
            if self._signalled < self._written:
                self.reload(container, self._written)
            return told
        if self._old_workers:
            self._old_workers &= _workers(container)
        return told - 1 if self._old_workers else told


def _workers(container: ContainerProcess) -> set[str]:
    """The workers there are, those that only finish what they have included."""
    words = ["sh", "-c", "grep -l '^nginx: worker' /proc/[0-9]*/cmdline"]
    with contextlib.suppress(RequestException):
        return set(container.container.exec_run(words, stderr=False).output.decode().split())
    return set()
