"""Which version of the model gets a request, what comes of it, and when the challenger is out.

    headers ─▶ Splitter.assign ─▶ the arm's replicas ─▶ ended ─▶ guardrails ─▶ broken: share 0 at once, then split.json
       x-rung-user, x-rung-arm                                       ▲
                        split.json, labels ── looked at every 50 ms ─┘

Twin: simulator/splitter.py; the decisions are in stages/policies/experiment.py. A request that forces its arm is
answered by it and counts for nothing. Several gateways beside each other would count each their own requests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from reference_apps import split_file
from reference_apps.asgi import Headers
from reference_apps.logs import fields
from reference_apps.passage import Request
from stages.arms import ARMS
from stages.policies.experiment import Experiment
from stages.policies.guardrails import Broken, in_words
from stages.policies.splitting import Wanted
from stages.spec import Stage

__all__ = ["Splitter"]

LOOK_S = 0.05
AGAIN_S = 1.0  # after a stop that could not be written down
CLOSING_S = 2 * split_file.LOCK_TIMEOUT_S  # for one that is being written when the gateway ends

log = logging.getLogger("rung.gateway")

Right = Callable[[], Mapping[str, tuple[int, int]]]  # arm → answers that were right, answers that have a label
Forget = Callable[[float], None]  # seconds since the epoch: what was answered before then is not judged


class Splitter:
    """The split of one gateway. `folder` holds its control file; without one the stage alone says the share.

    `right` tells what labels have found so far. `forget` has that begin anew, with a challenger that does: labels
    outlive the stage, so that those of an earlier challenger may still come.
    """

    def __init__(self, stage: Stage, folder: Path | None, right: Right = dict, forget: Forget = lambda _: None) -> None:
        assert stage.split is not None
        self.split = stage.split
        self._folder, self._right, self._forget = folder, right, forget
        self._header = stage.split.force_header.encode()
        self._told = split_file.first(stage.split, time.monotonic())
        self.experiment = Experiment(stage.split, stage.slo.latency_s, self._told.wanted)
        self._latency_s = None if stage.split.guardrails is None else stage.split.guardrails.latency_s
        self._stopped_s: float | None = None
        self._seen: tuple[int, int, int] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Reads the file, and goes on looking at it; called on the event loop that serves."""
        self._look()
        self._looking = asyncio.create_task(self._keep_looking())

    async def close(self) -> None:
        """Looks no more. A stop that is being written down is waited for."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        if (writing := self._writing) is not None:
            await asyncio.wait({writing}, timeout=CLOSING_S)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    def assign(self, request: Request, headers: Headers) -> None:
        """Gives the request its arm. Raises ValueError, in words, for an arm that is none."""
        forced = headers.get(self._header)
        if forced is not None:
            name = forced.decode("latin-1")[:40]
            if name not in ARMS:
                raise ValueError(
                    f"{self.split.force_header}: must be {' or '.join(ARMS)}, got {name}. Leave it out to be split."
                )
            request.arm, request.forced = name, True
        else:
            request.arm = self.experiment.arm(request.user, request.split_as, time.monotonic())

    def copied(self, request: Request) -> bool:
        """Whether the challenger gets a copy of it."""
        return not request.forced and self.experiment.copied(request.user, request.split_as, time.monotonic())

    def ended(self, arm: str, reason: str, took_s: float) -> None:
        """The arm is done with a request that was not forced, `took_s` after it was read."""
        self._stop(self.experiment.ended(arm, reason, took_s))

    @property
    def share(self) -> float:
        """The challenger's share now."""
        return self.experiment.share(time.monotonic())

    def told(self) -> dict[str, Any]:
        """Where the experiment stands, for GET /split."""
        broken = self.experiment.broken
        return {
            "generation": self._told.generation,
            "trial": self._told.trial,
            "share": self.share,
            "stopped": self.experiment.wanted.stopped,
            "stopped_s": self._stopped_s,
            "why": self._told.why if broken is None else in_words(broken, self._latency_s),
            "requests": 0 if broken is None else broken.requests,
            "arms": {
                arm: {name: getattr(counts, name) for name in counts.__slots__}
                for arm, counts in self.experiment.guard.arms.items()
            },
        }

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self._look()
            for arm, (right, labelled) in self._right().items():
                if arm in ARMS:
                    self._stop(self.experiment.labels(arm, right, labelled))

    def _look(self) -> None:
        """Takes the file over if it is another one than before; one that cannot be read changes nothing."""
        if self._folder is None or self._writing is not None:
            return
        try:
            found = (self._folder / split_file.SPLIT_FILE).stat()
            seen = (found.st_mtime_ns, found.st_ino, found.st_size)
            if seen == self._seen:
                return
            self._seen = seen
            told = split_file.read(self._folder)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            if self._looking is None:  # it has just begun, and does not know whether the challenger was stopped
                self.experiment.want(Wanted(0.0), begins_again=False)
            told_by = self._folder / split_file.SPLIT_FILE
            log.warning("%s cannot be read, and the challenger's share stays %g: %r", told_by, self.share, error)
            return
        if told is not None:
            self._take_over(told)

    def _take_over(self, told: split_file.Told) -> None:
        begins_again = told.trial != self._told.trial
        if begins_again:
            self._stopped_s = None
        if begins_again or self._looking is None:  # who has just begun knows of no trial
            self._forget(told.began_at)
        self._told = told
        self.experiment.want(told.wanted, begins_again)

    def _stop(self, broken: Broken | None) -> None:
        """Nobody gets the challenger any more, from this very moment; then that is written down."""
        if broken is None:
            return
        self._stopped_s = time.monotonic()
        why = in_words(broken, self._latency_s)
        log.warning("the challenger is stopped", extra=fields(guardrail=broken.guardrail, why=why))
        if self._folder is not None:
            self._writing = asyncio.create_task(self._write(self._folder, broken.guardrail, why))

    async def _write(self, folder: Path, guardrail: str, why: str) -> None:
        """Writes the stop down, as soon as that can be done: it is in force here meanwhile."""
        trial = self._told.trial
        try:
            while (told := await self._written(folder, trial, guardrail, why)) is None:
                await asyncio.sleep(AGAIN_S)
        finally:
            self._writing = None
        self._take_over(told)

    async def _written(self, folder: Path, trial: int, guardrail: str, why: str) -> split_file.Told | None:
        """What the file says then; None where it could not be written: another gateway would not know."""
        try:
            return await asyncio.to_thread(split_file.stop, folder, trial, guardrail, why)
        except split_file.SplitError as error:
            log.error("the stop is not written down yet", extra=fields(why=str(error)))
            return None
