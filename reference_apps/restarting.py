"""A rolling restart, taken step by step between the supervisor's looks at its processes.

for each replica:  a new one ──▶ ready, in rotation ──▶ the old one drains ──▶ gone        nobody is refused
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from typing import Any

from reference_apps.launchers import split_start
from reference_apps.launchers.launcher import Launcher
from reference_apps.launchers.member import LaunchError, Member
from reference_apps.launchers.members import STOP_GRACE_S

# Work that yields wherever it has to wait, and waits itself nowhere. It returns the answer to a command.
Steps = Generator[None, None, dict[str, Any]]


def rolling(launcher: Launcher) -> Steps:
    """Replaces every replica by a new one on the same device, one after the other, with no request lost.

    The new ones are of the versions that the stage's aliases are now: this is how a version is deployed, or taken back.
    A challenger that is another version than before begins anew, whatever became of the one before.

    Raises LaunchError where it cannot go on; the replicas that were not replaced by then serve on.
    """
    if launcher.gateway is None:
        raise LaunchError(
            f"{launcher.stage.name}: has no [gateway]: clients go to the replica itself, and nobody could take over "
            "while it is replaced. Restart it without --rolling."
        )
    moved = launcher.pin() and launcher.stage.cache is not None
    if moved:  # answers of both versions come during the roll: they are kept apart from what was there, and go with it
        launcher.forget_answers()
    replaced = []
    try:
        for old in [replica for replica in launcher.replicas if replica.state in ("starting", "ready", "died")]:
            if old not in launcher.replicas:  # somebody else has taken it away meanwhile
                continue
            new = launcher.add(like=old.number)
            yield from _joined(launcher, new)
            with contextlib.suppress(KeyError):  # gone by itself
                launcher.drain(old.number)
            yield from _gone(launcher, old)
            replaced.append({"old": old.number, "new": new.number})
    finally:
        if moved:
            launcher.forget_answers()
    split_start.renew(launcher.stage, launcher.split_folder)
    version = launcher.stage.model.version
    return {"replaced": replaced} | ({} if version is None else {"version": version})


def _joined(launcher: Launcher, new: Member) -> Generator[None]:
    """Until the new replica gets requests. One that does not come up is given up."""
    limit_s = launcher.stage.lifecycle.ready_timeout_s + 2 * STOP_GRACE_S
    try:
        yield from until(lambda: new.state == "died" or launcher.in_rotation(new), limit_s, f"{new.title} did not join")
    except LaunchError:
        launcher.drain(new.number)
        raise
    if new.state == "died":
        launcher.drain(new.number)
        raise LaunchError(f"{launcher.told(new)}\nThe replicas that were there serve on.")


def _gone(launcher: Launcher, old: Member) -> Generator[None]:
    """Until nobody has its number: where it died meanwhile, another process was started in its place."""
    limit_s = 2 * launcher.stage.lifecycle.drain_timeout_s + 2 * STOP_GRACE_S
    told = f"{old.title} did not go"
    yield from until(lambda: all(each.number != old.number for each in launcher.replicas), limit_s, told)


def until(condition: Callable[[], bool], timeout_s: float, told: str) -> Generator[None]:
    """Yields until `condition` holds. Raises LaunchError at the timeout: `told`, and after how long."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise LaunchError(f"{told} within {timeout_s:g} s.")
        yield
