"""The control file of a stage's split: the share that its challenger is to have, and whether it was stopped.

    rung ab share ──▶ split.json, replaced as a whole, on the disk when it returns ──▶ gateway, at its next look
    guardrail, in the gateway ──▶ split.json ──▶ gateway after a restart, alerts, rung ab status, the next rung up

Whoever changes it holds its lock, so that a share that was wanted and a stop never undo each other. A gateway that
cannot read it goes on as it was. The time of a ramp is of the machine's monotonic clock, which all processes and
containers share.

A stage that starts begins with its own share, or its ramp. A stop is about one version, and stands as long as that is
the challenger: whoever starts the stage again has not said that it is to be tried again. Another version begins anew.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
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
    stopped_at: float | None = None  # seconds since the epoch
    challenger: str = ""  # the version that all this is about, and the digest of its weights
    began_at: float = 0.0  # when this trial did, in seconds since the epoch: what was answered before is not judged

    @property
    def wanted(self) -> Wanted:
        """The same as the policy takes it."""
        return Wanted(self.share, self.ramp_began_s, self.stopped)


def first(split: Split, ramp_began_s: float, challenger: str = "", began_at: float = 0.0) -> Told:
    """What a stage begins with."""
    ramp_began = None if split.ramp is None else ramp_began_s
    return Told(0, 0, split.challenger_share, ramp_began, challenger=challenger, began_at=began_at)


def begin(folder: Path, told: Told) -> Told:
    """Writes the file of a stage that starts, and gives what it says: `told`, but that who was stopped stays out.

    Raises SplitError where a file that is there cannot be read, and where none can be written.
    """
    with _alone(folder, made=True):
        try:
            before = read(folder)
        except ValueError as error:
            raise SplitError(
                f"{folder / SPLIT_FILE}: must say what became of the challenger, got no sense ({error}). Nobody knows "
                "whether it is out. Correct the file, or remove it to have it begin anew."
            ) from None
        if before is not None:
            told = _after(before, told)
        _write(folder, told)
        return told


def renew(folder: Path, told: Told) -> Told:
    """A stage that is up has replicas of these versions now: another challenger than before begins anew with `told`.

    Raises SplitError.
    """
    return _change(folder, lambda before: before if before.challenger == told.challenger else _after(before, told))


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
        sound = sound and isinstance(told.challenger, str) and (told.stopped_at is None or told.stopped_at >= 0.0)
        sound = sound and 0.0 <= told.began_at < math.inf
    except TypeError as error:
        raise ValueError(f"{SPLIT_FILE}: {error}") from None
    if not sound:
        raise ValueError(f"{SPLIT_FILE}: {told} makes no sense")
    return told


def seen(folder: Path) -> Told | None:
    """The same for whoever only tells of it: None also where it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        return read(folder)
    return None


def in_words(told: Told | None, stage: str, split: Split) -> str:
    """That the challenger is out, by what, since when, and how it is tried again; empty where it is not out."""
    if told is None or not told.stopped:
        return ""
    version = told.challenger.partition("@")[0] or split.challenger
    at = "" if told.stopped_at is None else time.strftime(" on %Y-%m-%d at %H:%M:%S", time.localtime(told.stopped_at))
    share = "ramp" if split.ramp is not None else f"{split.challenger_share:g}"
    return (
        f"The challenger {version} is out: the guardrail {told.stopped} stopped it{at}, because {told.why}. All users "
        f"are the champion's. `rung ab share {stage} {share} --again` tries it again."
    )


def set_share(folder: Path, share: float, again: bool = False) -> Told:
    """From now on the challenger has that share, and no ramp changes it. When it returns, that is on the disk.

    Raises SplitError for a challenger that a guardrail has stopped, unless it is to be tried `again`.
    """
    return _change(folder, lambda told: _admitted(told, again)._replace(share=share, ramp_began_s=None))


def begin_ramp(folder: Path, at_s: float, again: bool = False) -> Told:
    """The ramp of the stage begins at that moment, anew if it had begun before. Raises SplitError as `set_share`."""
    return _change(folder, lambda told: _admitted(told, again)._replace(ramp_began_s=at_s))


def stop(folder: Path, trial: int, guardrail: str, why: str) -> Told:
    """The challenger of that trial is stopped; of a later one, or of one that is stopped already, nothing changes.

    Raises SplitError.
    """

    def stopped(told: Told) -> Told:
        if told.trial != trial or told.stopped:
            return told
        return told._replace(stopped=guardrail, why=why, stopped_at=time.time())

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
    return told._replace(trial=told.trial + 1, stopped="", why="", stopped_at=None, began_at=time.time())


def _after(before: Told, told: Told) -> Told:
    """What a stage begins with that had begun before."""
    told = told._replace(generation=before.generation + 1)
    if before.stopped and before.challenger == told.challenger:
        stopped = before._asdict()
        return told._replace(**{name: stopped[name] for name in ("trial", "stopped", "why", "stopped_at", "began_at")})
    return told._replace(trial=before.trial + 1)


def _change(folder: Path, how: Callable[[Told], Told]) -> Told:
    """Changes the file, alone. Raises SplitError where there is none or it cannot be written."""
    with _alone(folder):
        before = read(folder)
        if before is None:
            raise SplitError(f"{folder}: has no {SPLIT_FILE}. Its stage has no [split], or never started.")
        after = how(before)
        if after != before:
            after = after._replace(generation=before.generation + 1)
            _write(folder, after)
        return after


@contextlib.contextmanager
def _alone(folder: Path, made: bool = False) -> Iterator[None]:
    """Inside, nobody else changes the file. `made`: its lock is made if need be. Raises SplitError for what fails."""
    lock = folder / _LOCK
    try:
        if made and not lock.exists():
            lock.touch()
            lock.chmod(0o666)  # gateways in containers are another user; the folder is theirs and nobody else's
        with locked(lock, LOCK_TIMEOUT_S):
            yield
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise SplitError(f"{folder / SPLIT_FILE}: could not be changed ({error}). Nothing was.") from None


def _write(folder: Path, told: Told) -> None:
    file = folder / SPLIT_FILE
    replace_durably(file, json.dumps(told._asdict()) + "\n")
    with contextlib.suppress(PermissionError):
        file.chmod(0o644)  # whatever the umask: a gateway in a container is another user
