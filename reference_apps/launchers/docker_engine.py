"""The Docker engine of this machine: found in words, and cleared of what a crash left on it.

    made by a launcher ──▶ labels: rung.stage, rung.runs, rung.run, rung.owner, rung.role, rung.replica
    rung up, rung down ──▶ sweep ──▶ containers and networks whose owner lives no more are removed

An owner is a process of this machine. Each folder of runs is cleared by commands that use it, as the state files of
stages that are up are, so that two users of one engine leave each other's stages alone. What it does
not do: reach an engine elsewhere, because the stage's files are mounted from here.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from reference_apps.launchers.member import LaunchError

STAGE, RUNS, RUN, OWNER = "rung.stage", "rung.runs", "rung.run", "rung.owner"
ROLE, REPLICA = "rung.role", "rung.replica"
# How far two readings of one process' birth may lie apart: the system's clock may have been set between them.
_SAME_BIRTH_S = 5.0

Engine = Any  # docker.DockerClient, whose library has no types


def connect(timeout_s: float = 60.0) -> Engine:
    """The engine of this machine; whoever asks closes it. Raises LaunchError in words when it cannot be used."""
    try:
        import docker
        from docker.errors import DockerException
        from requests.exceptions import RequestException
    except ImportError:
        raise LaunchError(
            "docker: the Python package must be installed. Containers are started through it. "
            "Install it with `pip install 'rung[docker]'`, or leave --on docker out to run processes."
        ) from None
    where = os.environ.get("DOCKER_HOST", "")
    if where and not where.startswith("unix://"):
        raise LaunchError(
            f"DOCKER_HOST: must be a socket of this machine (unix://…), got {where}. The stage's files are mounted "
            "into the containers from here. Unset it, or leave --on docker out to run processes."
        )
    engine: Engine = None
    try:
        engine = docker.from_env(timeout=timeout_s)
        system = str(engine.info().get("OperatingSystem", ""))
    except (DockerException, RequestException) as error:  # the latter where it does not answer in time
        if engine is not None:
            engine.close()
        raise LaunchError(_no_engine(str(error))) from None
    if system == "Docker Desktop":
        engine.close()
        raise LaunchError(
            "docker: the engine must run on this machine itself, got Docker Desktop. It keeps the containers' network "
            "in a virtual machine, where replicas cannot be watched from here. Use Linux, or leave --on docker out."
        )
    return engine


def _no_engine(error: str) -> str:
    if "Permission denied" in error:
        return (
            "docker: its engine must let you in, and refuses. Nothing can be started. "
            "Join the group docker (`sudo usermod -aG docker $USER`, then log in again)."
        )
    reason = error.removeprefix("Error while fetching server API version: ")
    return (
        f"docker: an engine must answer, got: {reason}. Nothing can be started. "
        "Start it (`sudo systemctl start docker`, or `sudo dockerd`), or leave --on docker out to run processes."
    )


def owner() -> str:
    """This process, as the label of what it makes."""
    me = psutil.Process()
    return f"{socket.gethostname()} {me.pid} {me.create_time()}"


def sweep(engine: Engine, runs: Path, stage: str | None = None) -> list[str]:
    """Removes what owners that are no more left of the stages of this folder of runs, or of one. Gives the names.

    What is being removed by somebody else at the same moment is left to them.
    """
    from docker.errors import APIError

    gone = []
    labels = {"label": [f"{RUNS}={runs}", OWNER]}
    for row in engine.api.containers(all=True, filters=labels):
        if _left(row["Labels"], stage):
            with contextlib.suppress(APIError):
                engine.api.remove_container(row["Id"], v=True, force=True)
                gone.append(row["Names"][0].removeprefix("/"))
    for row in engine.api.networks(filters=labels):
        if _left(row["Labels"], stage):
            with contextlib.suppress(APIError):
                engine.api.remove_network(row["Id"])
                gone.append(row["Name"])
    return gone


def sweep_if_there(runs: Path, stage: str | None = None) -> list[str]:
    """`sweep` where an engine answers in time, and nothing otherwise: processes need none."""
    try:
        with contextlib.closing(connect(5.0)) as engine, in_words("docker: what a crash left was not removed"):
            return sweep(engine, runs, stage)
    except LaunchError:
        return []


def remove(engine: Engine, run: str) -> None:
    """Removes everything of one run, whatever it is doing."""
    from docker.errors import APIError

    for row in engine.api.containers(all=True, filters={"label": f"{RUN}={run}"}):
        with contextlib.suppress(APIError):
            engine.api.remove_container(row["Id"], v=True, force=True)
    for row in engine.api.networks(filters={"label": f"{RUN}={run}"}):
        with contextlib.suppress(APIError):
            engine.api.remove_network(row["Id"])


@contextlib.contextmanager
def in_words(what: str) -> Iterator[None]:
    """Turns what the engine refuses into a LaunchError about `what`."""
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    try:
        yield
    except (DockerException, RequestException) as error:
        raise LaunchError(f"{what}: {getattr(error, 'explanation', None) or error}") from error


def _left(labels: dict[str, str], stage: str | None) -> bool:
    return stage in (None, labels.get(STAGE)) and not _lives(labels[OWNER])


def _lives(owner_label: str) -> bool:
    """Whether the process behind a label runs; one of another machine, or one that cannot be read, is left alone."""
    with contextlib.suppress(ValueError):
        host, pid, born_s = owner_label.rsplit(" ", 2)
        if host == socket.gethostname():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(int(pid))
                same = abs(process.create_time() - float(born_s)) < _SAME_BIRTH_S
                return same and process.status() != psutil.STATUS_ZOMBIE
            return psutil.pid_exists(int(pid))  # of another user, whom the system hides from this one
    return True
