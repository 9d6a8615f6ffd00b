"""Claim checks: a payload that is too large for the queue lies in a file, and the queue carries a check for it.

    put:   payload ──▶ payloads/<job> written, fsynced, named; the folder fsynced ──▶ the broker accepts the check
    claim: check ──▶ the file's bytes ──▶ worker
    over:  the broker lets the job go ──▶ the file is removed

The file is there, on the disk, before its job is accepted, and until after its job is gone, so that a process may be
killed anywhere: what it can leave behind is a file that no job has. Whoever opens the broker next removes those, under
a lock that no `put` holds meanwhile. Workers on other machines must see the same folder. No twin: simulated payloads
have no bytes. Files are not encrypted, and not shared by jobs with the same payload.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path

from reference_apps.broker import BATCH_MAX, BrokerDownError, BrokerFullDiskError, QueueFullError
from reference_apps.durable import locked, sync_folder

LOCK_TIMEOUT_S = 10.0
_LOCK = ".lock"
# The first byte of what is queued.
_INLINE, _CHECK = b"\x00", b"\x01"


class _HeldError(BrokerDownError):
    """Another process has the lock of the payloads for too long."""


class ClaimChecks:
    """The payloads beside a queue. Nothing is made in `folder` before the first payload over `max_bytes`."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def stowed(self, jobs: Sequence[str], payloads: Sequence[bytes]) -> contextlib.AbstractContextManager[list[bytes]]:
        """What is to be queued for each payload; the block hands it to the broker.

        The files of large ones are on the disk when the block begins. When it raises that nothing was accepted, they
        are removed; when nobody knows, they stay. Raises BrokerDownError when they cannot be written.
        """
        large = [n for n, payload in enumerate(payloads) if len(payload) > self._max_bytes]
        if not large:
            return contextlib.nullcontext([_INLINE + payload for payload in payloads])
        return self._stowed(jobs, payloads, large)

    @contextlib.contextmanager
    def _stowed(self, jobs: Sequence[str], payloads: Sequence[bytes], large: list[int]) -> Iterator[list[bytes]]:
        queued = [_INLINE + payload if len(payload) <= self._max_bytes else _check(payload) for payload in payloads]
        with self._locked(LOCK_TIMEOUT_S, shared=True):
            try:
                for n in large:
                    self._write(jobs[n], payloads[n])
                sync_folder(self._folder)
            except OSError as error:
                self.discard(jobs[n] for n in large)
                raise self._in_words(error) from error
            try:
                yield queued
            except (QueueFullError, BrokerFullDiskError, ValueError):
                self.discard(jobs[n] for n in large)
                raise

    def load(self, job: str, queued: bytes) -> bytes:
        """The payload behind what was queued for a job. Raises OSError when its file cannot be read, or is cut off."""
        if queued[:1] == _INLINE:
            return queued[1:]
        size_bytes = int(queued[1:])
        payload = (self._folder / job).read_bytes()
        if len(payload) != size_bytes:
            raise OSError(errno.EIO, f"{len(payload)} of {size_bytes} bytes are left", str(self._folder / job))
        return payload

    def discard(self, jobs: Iterable[str]) -> None:
        """Removes the files of jobs that are over; most have none."""
        for job in jobs:
            for name in (job, f".{job}"):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    (self._folder / name).unlink()

    def over(self, jobs: Iterable[tuple[str, bytes]]) -> None:
        """The same for jobs whose payloads are known, which tell whether there is a file."""
        self.discard(job for job, payload in jobs if len(payload) > self._max_bytes)

    def sweep(self, held: Callable[[Sequence[str]], Container[str]]) -> int:
        """Removes the files of jobs that the broker does not hold; `held` tells which of some jobs it does.

        Does nothing while a `put` with a large payload, or another sweep, is under way. Gives how many it removed.
        """
        if not self._folder.is_dir():
            return 0
        removed = 0
        with contextlib.suppress(_HeldError), self._locked(0.0):
            jobs = sorted({path.name.lstrip(".") for path in self._folder.iterdir() if path.name != _LOCK})
            for first in range(0, len(jobs), BATCH_MAX):
                some = jobs[first : first + BATCH_MAX]
                known = held(some)
                lost = [job for job in some if job not in known]
                self.discard(lost)
                removed += len(lost)
        return removed

    def _write(self, job: str, payload: bytes) -> None:
        """The file under its name, whole or not at all."""
        unnamed = self._folder / f".{job}"
        with unnamed.open("xb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        unnamed.rename(self._folder / job)

    @contextlib.contextmanager
    def _locked(self, timeout_s: float, shared: bool = False) -> Iterator[None]:
        """Holds the folder's lock. Raises _HeldError, and another BrokerDownError for what the disk says."""
        with contextlib.ExitStack() as stack:
            try:
                if not self._folder.is_dir():
                    self._folder.mkdir(parents=True, exist_ok=True)
                    sync_folder(self._folder.parent)
                stack.enter_context(locked(self._folder / _LOCK, timeout_s, shared))
            except TimeoutError:
                raise _HeldError(
                    f"{self._folder / _LOCK}: was not to be had within {timeout_s:g} seconds. Nothing was "
                    "accepted. Look for a process that hangs while it clears up."
                ) from None
            except OSError as error:
                raise self._in_words(error) from error
            yield

    def _in_words(self, error: OSError) -> BrokerDownError:
        """What the disk said, as the broker says it."""
        text = f"{self._folder}: {error.strerror}. A payload over queue.payload_max_bytes could not be kept."
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return BrokerFullDiskError(text) if full else BrokerDownError(text)


def _check(payload: bytes) -> bytes:
    return _CHECK + b"%d" % len(payload)
