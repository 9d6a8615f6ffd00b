"""The files that a stage's containers read: written into its run's folder, mounted read-only, for the right eyes.

    <run>/replica/  stage.toml                               ──▶ /stage of every replica
    <run>/gateway/  stage.toml, replicas.json or nginx.conf  ──▶ /stage of the gateway
    weights, registry, trace, certificate                    ──▶ where the stage says that they are

A folder is mounted, and never a file that changes: a file replaced as a whole would stay the old one inside.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.demand import TraceRate
from stages.fleet import Edge
from stages.spec import Stage, stage_toml

INSIDE = "/stage"  # where a container finds its stage
REPLICA, GATEWAY = "replica", "gateway"
_IMAGE_USER = 10001  # of reference_apps/Dockerfile


class StageFiles:
    """What the containers of one run read."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage = stage
        self.folder = folder
        edge = stage.gateway.edge if stage.gateway is not None else Edge()
        tls = {edge.tls_certificate: "tls.crt", edge.tls_key: "tls.key"}
        self._tls = {path: copy for path, copy in tls.items() if path is not None}

    def prepare(self) -> None:
        """Writes what does not change while the stage runs.

        The TLS files may be readable for this user only, and are copied. Replicas get empty ones: whoever reads the
        stage looks whether they are there, but the secret is the gateway's.
        """
        for part in (REPLICA, GATEWAY):
            self.deliver(part, "stage.toml", stage_toml(self.stage))
        for path, copy in self._tls.items():
            text = Path(path).read_text(encoding="utf-8", errors="replace")  # notes between the blocks of a PEM file
            self.deliver(GATEWAY, copy, text, secret=True)
            self.deliver(REPLICA, copy, "")

    def restage(self, stage: Stage) -> None:
        """Containers that are started from now on read this stage; its files are where those of the other were."""
        self.stage = stage
        for part in (REPLICA, GATEWAY):
            self.deliver(part, "stage.toml", stage_toml(stage))

    def deliver(self, part: str, name: str, text: str, secret: bool = False) -> None:
        """Replaces a file in one piece; the containers' user can read it whatever the umask, and with it no other."""
        folder = self.folder / part
        folder.mkdir(mode=0o700, exist_ok=True)
        fresh = folder / f".{name}.new"
        fresh.unlink(missing_ok=True)
        fresh.touch(mode=0o600)
        fresh.write_text(text, encoding="utf-8")
        fresh.chmod(0o400 if secret else 0o444)
        if os.getuid() == 0:
            for path in (folder, fresh):
                os.chown(path, *user())
        fresh.replace(folder / name)

    def mounts(self, part: str) -> list[Any]:
        """The part's folder, and the files that the stage names, at the paths where it names them."""
        from docker.types import Mount

        named = [self.stage.model.weights, self.stage.model.registry if part == REPLICA else None]
        if isinstance(self.stage.traffic.rate, TraceRate):
            named.append(self.stage.traffic.rate.path)
        sources = {INSIDE: self.folder / part} | {path: Path(path) for path in named if path is not None}
        sources |= {path: self.folder / part / copy for path, copy in self._tls.items()}
        return [Mount(target, str(path.absolute()), type="bind", read_only=True) for target, path in sources.items()]


def writable(folders: Mapping[str, Path]) -> list[Any]:
    """Folders of this machine that a container may write to, by the path that they have in there."""
    from docker.types import Mount

    return [Mount(target, str(path.absolute()), type="bind") for target, path in folders.items()]


def user() -> tuple[int, int]:
    """User and group that containers run as: those of whoever starts them, whose files they read; never root."""
    return (os.getuid(), os.getgid()) if os.getuid() else (_IMAGE_USER, _IMAGE_USER)
