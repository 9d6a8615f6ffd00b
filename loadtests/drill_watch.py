"""What goes on beside the load of a drill: somebody asks for the failure, somebody watches the rotation.

    Asked ── a file in the run folder, at its time ──▶ supervisor          watching ── GET /replicas ──▶ gateway

No twin: the simulator looks at its own gateway.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.drill_figures import Look
from loadtests.tending import Tending
from reference_apps.asking import open_url
from reference_apps.commands import CommandError, ask
from reference_apps.launchers.member import LaunchError
from reference_apps.logs import JsonLines
from stages.fleet import Edge

WATCH_S = 0.05  # from one look at the rotation to the next
WATCH_TIMEOUT_S = 0.5
ANSWER_S = 120.0  # how long a failure, or a restart, may take beyond its own time


@dataclass(frozen=True)
class Plan:
    """What fails and when. `failure` is one of reference_apps.drills.FAILURES, or "restart" for a rolling restart."""

    failure: str
    replica: int
    at_s: float
    for_s: float  # of those failures that have an end of their own
    factor: float
    load: float  # as a share of the fleet's capacity
    short: bool

    @property
    def restart(self) -> bool:
        """Whether nothing fails: every replica is replaced."""
        return self.failure == "restart"


class Asked:
    """Has the supervisor do it at its time, on a thread of its own, and keeps what it answers."""

    def __init__(self, folder: Path, plan: Plan, tending: Tending) -> None:
        self._folder, self._plan, self._tending = folder, plan, tending
        self._began_s = 0.0
        self._told: dict[str, Any] = {}
        self._error: str | None = None
        self._thread: threading.Thread | None = None

    def begin(self, began_s: float) -> None:
        """The schedule begins then, on the monotonic clock."""
        self._began_s = began_s
        self._tending.begin(began_s)
        self._thread = threading.Thread(target=self._ask, name="drill", daemon=True)
        self._thread.start()

    def answer(self) -> tuple[float, dict[str, Any]]:
        """When the schedule began, and what the supervisor said. Raises LaunchError when it refused or failed."""
        if self._thread is not None:
            self._thread.join(self._plan.at_s + self._plan.for_s + 2 * ANSWER_S)
        if self._error is not None or not self._told:
            raise LaunchError(self._error or f"{self._plan.failure}: the load ended before its time had come.")
        return self._began_s, self._told

    def _ask(self) -> None:
        plan, at_s = self._plan, self._began_s + self._plan.at_s
        try:
            if plan.restart:
                time.sleep(max(0.0, at_s - time.monotonic()))
                told = ask(self._folder, "restart", {}, ANSWER_S)
                self._told = told | {"done_s": time.monotonic()}
                return
            arguments = {"failure": plan.failure, "replica": plan.replica, "at_s": at_s}
            arguments |= {"for_s": plan.for_s, "factor": plan.factor}
            self._told = ask(self._folder, "drill", arguments, plan.at_s + plan.for_s + ANSWER_S)
        except CommandError as error:
            self._error = str(error)


@contextlib.contextmanager
def log_kept(path: Path) -> Iterator[None]:
    """What the supervising says goes into its log, as under `rung up`, and not on the terminal."""
    logger = logging.getLogger("rung.supervisor")
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(JsonLines("supervisor"))
    before, level = logger.propagate, logger.level
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
        logger.setLevel(level)
        handler.close()


@contextlib.contextmanager
def watching(url: str, edge: Edge) -> Iterator[list[Look]]:
    """Asks the gateway again and again who is in rotation; a look's time is the middle of a question, monotonic."""
    looks: list[Look] = []
    stopping = threading.Event()

    def watch() -> None:
        while not stopping.wait(WATCH_S):
            asked_s = time.monotonic()
            try:
                with open_url(f"{url}/replicas", WATCH_TIMEOUT_S, edge) as response:
                    rows = json.load(response)["replicas"]
            except (OSError, http.client.HTTPException, ValueError, KeyError):
                continue
            inside = (r["replica"] for r in rows if r["ready"] and not r["ejected"] and not r["draining"])
            looks.append(((asked_s + time.monotonic()) / 2, frozenset(inside)))

    thread = threading.Thread(target=watch, name="rotation", daemon=True)
    thread.start()
    try:
        yield looks
    finally:
        stopping.set()
        thread.join(2 * WATCH_TIMEOUT_S + WATCH_S)
