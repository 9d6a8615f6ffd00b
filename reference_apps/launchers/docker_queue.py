"""A queued stage in containers: what its workers and its jobs API are started with, and what they share.

    <queue folder> ──▶ /queue of each, to be written to: the queue's file, its payloads, results; or its server's log
    <card folder>  ──▶ /card of each: whose turn it is on the GPU

Containers of one machine may share an SQLite file as processes do: they have its kernel, its clock and its locks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reference_apps.launchers.docker_files import user
from stages.queue import Queue

QUEUE, CARD = "/queue", "/card"


def prepare(folder: Path) -> None:
    """Makes a folder that the containers' user may write to, and with it no other.

    A link is changed itself, and never what it leads to: containers write here, and could lead us anywhere.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.getuid() == 0:
        os.chown(folder, *user())
        for _, folders, files, here in os.fwalk(folder.resolve()):
            for name in (*folders, *files):
                os.chown(name, *user(), dir_fd=here, follow_symlinks=False)


def mounts(queue_folder: Path, card_folder: Path) -> list[Any]:
    """What every container of the stage may write to."""
    from docker.types import Mount

    folders = {QUEUE: queue_folder, CARD: card_folder}
    return [Mount(target, str(path.absolute()), type="bind") for target, path in folders.items()]


def worker_words(begin_at_s: float) -> list[str]:
    """How a worker is told where things are, and from when on it works: monotonic seconds, which containers share."""
    return ["--folder", QUEUE, "--card", CARD, "--begin-at-s", repr(begin_at_s)]


def environment(queue: Queue, own_url: str | None, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The addresses and secrets of the queue for a container; `own_url` is that of a server that the launcher runs."""
    names = (queue.url_env, queue.results_url_env, queue.webhook_secret_env)
    passed = {name: given[name] for name in names if name is not None and name in given}
    return passed | ({queue.url_env: own_url} if own_url is not None else {})
