"""Room on a GPU that several workers share: each says what its model takes, and waits for its turn instead of failing.

    worker ── enter ──▶ <folder>/<owner>.json, locked for life ──▶ on the card, or in the line
           ── leave_if_due ──▶ somebody waits, and the turn is over: the model goes off the card

Every worker of the machine that names the same folder shares the card. What one of them wants stands in a file of its
own, which it keeps locked: the lock ends with the process, kill -9 included, also where the process was in another
container, whose pids mean nothing here. Who comes and who goes is decided in stages/policies/sharing.py, in the
simulator too. It is an agreement: memory that somebody takes without asking is not seen.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self, TextIO

from reference_apps.durable import locked
from stages.policies.sharing import TURN_S, Tenant, may_enter, should_leave

# How long the table of all tenants may be held by another: it is read and written within a millisecond. Only a process
# that was stopped in that millisecond holds it longer, and then nobody moves until it goes on.
LOCK_TIMEOUT_S = 0.5


class CardBusyError(RuntimeError):
    """Somebody holds the table of the card's tenants for longer than it takes to read it."""


class Card:
    """One worker's place on a card of `card_gib` GiB, for a model of `memory_gib`. A context manager."""

    def __init__(
        self,
        folder: Path,
        card_gib: float,
        memory_gib: float,
        owner: str,
        turn_s: float = TURN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if memory_gib > card_gib:
            raise ValueError(
                f"model.memory_gib: must be at most device.memory_gib ({card_gib:g} GiB), got {memory_gib:g}. "
                "The model would wait for room for ever. Use a larger card, or a smaller model."
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._card_gib, self._memory_gib = folder, card_gib, memory_gib
        self._turn_s, self._clock = turn_s, clock
        self.owner = f"{owner}-{secrets.token_hex(4)}"
        self._file = _locked(folder / f"{self.owner}.json")
        self._told: Tenant | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def resident(self) -> bool:
        """Whether the model may be on the card."""
        return self._told is not None and self._told.resident

    def enter(self) -> bool:
        """Asks for room; True once the model may be loaded. Without it the worker stands in the line: ask again."""
        if self.resident:
            return True
        with contextlib.suppress(CardBusyError), self._alone():
            if self._told is None:
                self._tell(Tenant(self.owner, self._memory_gib, self._clock(), False))
            if may_enter(self._card_gib, self.tenants(), self.owner):
                self._tell(Tenant(self.owner, self._memory_gib, self._clock(), True))
        return self.resident

    def leave_if_due(self, idle: bool) -> bool:
        """Whether the model is to go off the card; the room is given away by `leave`, when the model has gone.

        `idle` says that there is nothing to compute.
        """
        if self._told is None or not self._told.resident:
            return False
        with contextlib.suppress(CardBusyError), self._alone():
            if idle != self._told.idle:
                self._tell(Tenant(self.owner, self._memory_gib, self._told.since_s, True, idle))
            return should_leave(self._card_gib, self.tenants(), self.owner, self._clock(), self._turn_s)
        return False

    def leave(self) -> None:
        """Gives the room back, or the place in the line."""
        if self._told is not None:
            self._tell(None)

    def close(self) -> None:
        """Gives everything back; may be called twice."""
        if not self._file.closed:
            self._told = None
            (self._folder / f"{self.owner}.json").unlink(missing_ok=True)
            self._file.close()

    def tenants(self) -> list[Tenant]:
        """Everybody on the card or in the line; what the dead left behind is cleared away."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            tenant = self._told if path.stem == self.owner else _read(path)
            if tenant is not None:
                found.append(tenant)
        return found

    def _tell(self, tenant: Tenant | None) -> None:
        """Writes down what this worker has or wants. One write of a few bytes, which nobody reads half of."""
        text = "" if tenant is None else json.dumps(vars(tenant))
        self._file.seek(0)
        self._file.truncate()
        self._file.write(text)
        self._file.flush()
        self._told = tenant

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds the table of all tenants. Raises CardBusyError when somebody else has it for too long."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self._folder / "table.lock", LOCK_TIMEOUT_S))
            except TimeoutError:
                raise CardBusyError from None
            yield


def _locked(path: Path) -> TextIO:
    """A new file, locked until it is closed. What is not locked others take for a dead one's, and remove."""
    while True:
        file = path.open("w+", encoding="utf-8")
        fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        file.close()


def _read(path: Path) -> Tenant | None:
    """What another worker has or wants; None, and its file is gone, when it lives no more."""
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # it lives
                return _parsed(os.pread(file.fileno(), 4096, 0))
            path.unlink(missing_ok=True)
    except OSError:  # gone between two looks
        pass
    return None


def _parsed(text: bytes) -> Tenant | None:
    try:
        return Tenant(**json.loads(text))
    except (ValueError, TypeError):  # it has and wants nothing
        return None
