"""What a launcher has started, as an autoscaler moves it: counted, one more started, one drained.

    launcher.replicas ──▶ members, ready, starting          start ──▶ launcher.add_cold      drain ──▶ launcher.drain

What a scrape finds is for the fleets built on it to say: reference_apps/autoscaler.py has the replicas behind a
gateway, reference_apps/queue_fleet.py the workers of a queue.
"""

from __future__ import annotations

import contextlib
import logging

from reference_apps.launchers.launcher import Launcher
from reference_apps.launchers.member import LaunchError, Member

log = logging.getLogger("rung.autoscaler")


class LaunchedFleet:
    """The replicas, or the workers, of a launcher."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    def members(self) -> list[int]:
        """Those that serve, or would if they were not ejected, or dead and about to be started again."""
        return [r.number for r in self._launcher.replicas if r.state in ("ready", "died") or _again(r)]

    def ready(self) -> list[int]:
        """Those that serve."""
        return [r.number for r in self._launcher.replicas if r.state == "ready"]

    def starting(self) -> list[int]:
        """Those that were started and have never served."""
        return [r.number for r in self._launcher.replicas if r.state == "starting" and not _again(r)]

    def start(self, cold_start_s: float) -> None:
        """One more, which serves no sooner than in `cold_start_s` seconds. One that cannot be started is left out."""
        try:
            self._launcher.add_cold(cold_start_s)
        except LaunchError as error:
            log.warning("one more could not be started: %s", error)

    def drain(self, number: int) -> None:
        """No new requests or jobs for it; it goes when it has finished what it has."""
        with contextlib.suppress(KeyError):  # gone by itself
            self._launcher.drain(number)


def _again(member: Member) -> bool:
    """Whether it is being started in the place of one that died."""
    return member.state == "starting" and member.restarts > 0
