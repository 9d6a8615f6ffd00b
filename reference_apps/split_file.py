"""The control file of a stage's split: the share that its challenger is to have, and whether it was stopped.

    rung ab share ──▶ split.json, replaced as a whole, on the disk when it returns ──▶ gateway, at its next look
    guardrail, in the gateway ──▶ split.json ──▶ gateway after a restart, alerts, rung ab status

Whoever changes it holds its lock, so that a share that was wanted and a stop never undo each other. A gateway that
cannot read it goes on as it was. Times are of the machine's monotonic clock, which all processes and containers share.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from reference_apps.durable import locked, replace_durably
from stages.policies.splitting import Wanted
from stages.split import Split

SPLIT_FILE = "split.json"
_LOCK = "split.lock"
LOCK_TIMEOUT_S = 5.0


class SplitError(RuntimeError):
    """The share was not changed; the text says why and what to do."""


class Told(NamedTuple):
    """What the file says. `generation` counts its changes, `trial` how often the challenger began anew."""

    generation: int
    trial: int
    share: float
    ramp_began_s: float | None = None  # with it the ramp of the stage says the share
    stopped: str = ""  # the guardrail that stopped the challenger
    why: str = ""  # it did, in words

    @property
    def wanted(self) -> Wanted:
        """The same as the policy takes it."""
        return Wanted(self.share, self.ramp_began_s, self.stopped)


def first(split: Split, ramp_began_s: float) -> Told:
    """What a stage begins with."""
    return Told(0, 0, split.challenger_share, None if split.ramp is None else ramp_began_s)


def begin(folder: Path, told: Told) -> None:
    """Writes the file of a stage that starts; one that is there stays, as the share that somebody wanted.

    Raises OSError.
    """
    lock = folder / _LOCK
    if not lock.exists():
        lock.touch()
        lock.chmod(0o666)  # gateways in containers are another user; the folder is theirs and nobody else's
    with locked(lock, LOCK_TIMEOUT_S):
        if not (folder / SPLIT_FILE).exists():
            _write(folder, told)


def read(folder: Path) -> Told | None:
    """What the file says; None where there is none. Raises ValueError where it says nothing that makes sense."""
    try:
        text = (folder / SPLIT_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        told = Told(**json.loads(text))
        began_s = told.ramp_began_s
        sound = 0.0 <= told.share <= 1.0 and (began_s is None or math.isfinite(began_s))
        sound = sound and told.generation >= 0 and told.trial >= 0 and isinstance(told.stopped, str)
    except TypeError as error:
        raise ValueError(f"{SPLIT_FILE}: {error}") from None
    if not sound:
        raise ValueError(f"{SPLIT_FILE}: {told} makes no sense")
    return told


def set_share(folder: Path, share: float, again: bool = False) -> Told:
    """From now on the challenger has that share, and no ramp changes it. When it returns, that is on the disk.

    Raises SplitError for a challenger that a guardrail has stopped, unless it is to be tried `again`.
    """
    return _change(folder, lambda told: _admitted(told, again)._replace(share=share, ramp_began_s=None))


def begin_ramp(folder: Path, at_s: float, again: bool = False) -> Told:
    """The ramp of the stage begins at that moment, anew if it had begun before. Raises SplitError as `set_share`."""
    return _change(folder, lambda told: _admitted(told, again)._replace(ramp_began_s=at_s))


def stop(folder: Path, trial: int, guardrail: str, why: str) -> Told:
    """The challenger of that trial is stopped; of a later one, or of one that is stopped already, nothing changes."""

    def stopped(told: Told) -> Told:
        return told if told.trial != trial or told.stopped else told._replace(stopped=guardrail, why=why)

    return _change(folder, stopped)


def _admitted(told: Told, again: bool) -> Told:
    """What the file is changed from, by whoever wants a share."""
    if not told.stopped:
        return told
    if not again:
        raise SplitError(
            f"the challenger was stopped by the guardrail {told.stopped}: {told.why}. Its share stays 0. "
            "Use --again to try it again; what was counted before is forgotten then."
        )
    return told._replace(trial=told.trial + 1, stopped="", why="")


def _change(folder: Path, how: Callable[[Told], Told]) -> Told:
    """Changes the file, alone. Raises SplitError where there is none or it cannot be written."""
    try:
        with locked(folder / _LOCK, LOCK_TIMEOUT_S):
            before = read(folder)
            if before is None:
                raise SplitError(f"{folder}: has no {SPLIT_FILE}. Its stage has no [split], or never started.")
            after = how(before)
            if after != before:
                after = after._replace(generation=before.generation + 1)
                _write(folder, after)
            return after
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise SplitError(f"{folder / SPLIT_FILE}: could not be changed ({error}). Nothing was.") from None


def _write(folder: Path, told: Told) -> None:
    file = folder / SPLIT_FILE
    replace_durably(file, json.dumps(told._asdict()) + "\n")
    with contextlib.suppress(PermissionError):
        file.chmod(0o644)  # whatever the umask: a gateway in a container is another user
