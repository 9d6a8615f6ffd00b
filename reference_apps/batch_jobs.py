"""A file of thousands of inputs, computed by a queued stage: results beside it, and what is done is not done again.

    items.jsonl ── chunks of 500 ──▶ put, each item under a key of its own ──▶ broker ──▶ workers
                                       results ──▶ items.jsonl.results.jsonl.parts/000000.jsonl, 000001.jsonl …
    all parts there ──▶ items.jsonl.results.jsonl: a line an item, in their order; beside it, in
                        items.jsonl.results.jsonl.source.json, which version of items.jsonl they are of

A part is written when its chunk is complete, and as a whole, so that a run that was stopped anywhere goes on where it
was: parts that are there are skipped, and items that were put are known by their keys. A file that has changed since
is refused, and so are results of other files. No more than a few chunks are in the queue at once, which others use too.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import orjson

from reference_apps.broker import BrokerDownError, NewJob, QueueFullError
from reference_apps.decoding import Decodes
from reference_apps.envelope import pack, sealed
from reference_apps.job_items import Item, file_system_of, items_of
from reference_apps.job_store import JobStore
from reference_apps.results import Result, ResultsDownError

CHUNK = 500
CHUNKS_AHEAD = 4
PUT_BYTES_MAX = 16_777_216
POLL_S, WHERE_S = 0.1, 1.0

log = logging.getLogger("rung.batch")


class BatchError(RuntimeError):
    """The run cannot go on; the text says why and what to do. What is done by then stays done."""


@dataclass
class Summary:
    """What a run has done: items by how they ended, those of this run and those of runs before."""

    results: str
    ok: int = 0
    failed: int = 0
    before: int = 0

    @property
    def items(self) -> int:
        """All of them."""
        return self.ok + self.failed + self.before


@dataclass
class _Chunk:
    number: int
    items: list[Item]
    lines: dict[int, bytes] = field(default_factory=dict)  # of those that have ended, by their number
    jobs: dict[str, Item] = field(default_factory=dict)  # those that have not
    tries: dict[int, int] = field(default_factory=dict)  # of items whose job was lost, by their number


class BatchRun:
    """One run over the inputs of `source`, whose results go to `out`. `told` hears of every step."""

    def __init__(
        self,
        store: JobStore,
        model: Decodes,
        source: str,
        out: str,
        priority: int,
        stall_timeout_s: float,
        told: Callable[[Summary], None] = lambda _: None,
    ) -> None:
        self._store, self._model, self._source, self._priority = store, model, source, priority
        self._stall_timeout_s, self._told = stall_timeout_s, told
        self._fs, self._out = file_system_of(out)
        self._parts = f"{self._out}.parts"
        self._moved_s = time.monotonic()  # when something last went on
        self.summary = Summary(out)

    def run(self) -> Summary:
        """Computes what is not done yet, and gives what was done. Raises ItemsError, and BatchError where it stops."""
        version = self._version()
        if self._fs.exists(self._out):
            self._check_results(version)
            self.summary.before = sum(1 for _ in self._fs.cat_file(self._out).splitlines())
            self._clear()
            return self.summary
        self._begin(version)
        ahead: deque[_Chunk] = deque()
        parts: list[str] = []
        for number, items in enumerate(_chunked(items_of(self._source, self._model))):
            parts.append(part := f"{self._parts}/{number:06d}.jsonl")
            if self._fs.exists(part):
                self.summary.before += len(items)
                continue
            ahead.append(self._sent(_Chunk(number, items)))
            if len(ahead) >= CHUNKS_AHEAD:
                self._finish(ahead.popleft())
        while ahead:
            self._finish(ahead.popleft())
        self._join(parts, version)
        return self.summary

    def _version(self) -> bytes:
        """What tells this very file from others, and from what it is after a change."""
        fs, path = file_system_of(self._source)
        if not fs.exists(path):
            raise BatchError(f"{self._source}: must be a file that exists. There is no input. Correct the path.")
        return orjson.dumps({"source": path, "version": str(fs.ukey(path)), "chunk": CHUNK})

    def _check_results(self, version: bytes) -> None:
        """Makes sure that the results that are there are of this very file."""
        mark = f"{self._out}.source.json"
        if not self._fs.exists(mark) or self._fs.cat_file(mark) != version:
            raise BatchError(
                f"{self.summary.results}: must be results of {self._source} as it is now, or not be there yet, got "
                "something else: another file's, or the file has changed since. They would be taken for its results. "
                "Remove it to compute the file anew, or name another --out."
            )

    def _begin(self, version: bytes) -> None:
        """Makes sure that the parts that are there are of this very file."""
        mark = f"{self._parts}/source.json"
        if self._fs.exists(mark) and self._fs.cat_file(mark) != version:
            raise BatchError(
                f"{self._source}: must be the file that {self._parts} was begun with, and has changed since. "
                "Results of two files would be mixed. Remove that folder to begin anew, or name another --out."
            )
        self._fs.makedirs(self._parts, exist_ok=True)
        self._fs.pipe_file(mark, version)

    # ---- a chunk ----

    def _sent(self, chunk: _Chunk) -> _Chunk:
        for item in chunk.items:
            if item.wrong:
                error = {"title": "bad_input", "detail": item.wrong}
                chunk.lines[item.number] = _line(item, None, {"outcome": "failed", "error": error})
                self.summary.failed += 1
        self._put(chunk, [item for item in chunk.items if not item.wrong])
        return chunk

    def _put(self, chunk: _Chunk, items: list[Item]) -> None:
        """Puts the items, as many at once as there is room for; waits while there is none."""
        most = CHUNK
        while items:
            some = _within(items, most)
            jobs = [self._job(item, chunk.tries.get(item.number, 0)) for item in some]
            try:
                accepted = self._store.broker.put(jobs)
            except QueueFullError as error:
                room = error.max_depth - error.inside
                most = max(1, min(room, most)) if room > 0 else CHUNK
                if room <= 0 or room >= len(some):
                    self._wait(f"the queue is full: {error}")
                continue
            except BrokerDownError as error:
                self._wait(str(error))
                continue
            chunk.jobs |= {each.job: item for each, item in zip(accepted, some, strict=True)}
            items, most = items[len(some) :], CHUNK
            self._moved()

    def _job(self, item: Item, tries: int) -> NewJob:
        """The item under a key that is the same in every run over this file, unless its job was lost."""
        name = orjson.dumps([self._source, item.number, tries, hashlib.sha256(item.body).hexdigest()])
        key = "run:" + hashlib.blake2b(name, digest_size=16).hexdigest()
        return NewJob(pack(sealed(item.content_type, item.shape, item.body)), self._priority, key)

    def _finish(self, chunk: _Chunk) -> None:
        """Waits for the end of the chunk's jobs, and writes its part."""
        where_s = time.monotonic() + WHERE_S
        while chunk.jobs:
            try:
                asks_where = time.monotonic() >= where_s
                self._collect(chunk, asks_where)
                if asks_where:
                    where_s = time.monotonic() + WHERE_S
            except (BrokerDownError, ResultsDownError) as error:
                self._wait(str(error))
                continue
            if chunk.jobs:
                self._wait("no result has come", POLL_S)
        text = b"".join(chunk.lines[item.number] for item in chunk.items)
        part = f"{self._parts}/{chunk.number:06d}.jsonl"
        self._fs.pipe_file(f"{part}.new", text)
        self._fs.mv(f"{part}.new", part)

    def _collect(self, chunk: _Chunk, asks_where: bool) -> None:
        """Takes the results that are there; with `asks_where` also looks for jobs that died, or are lost."""
        # Where they are comes first: a job leaves the queue when its result is there.
        found = self._store.broker.look(list(chunk.jobs)) if asks_where else {}
        for job, result in self._store.results.find(list(chunk.jobs)).items():
            if result.outcome != "failed" or (job in found and found[job].state == "dead"):
                self._ended(chunk, job, _of(result))
        if not asks_where:
            return
        for job, where in found.items():
            if where.state == "dead" and job in chunk.jobs:
                error = {"title": "model_error", "detail": where.error}
                self._ended(chunk, job, {"outcome": "failed", "error": error})
        lost = [item for job, item in chunk.jobs.items() if job not in found]
        if lost:  # the results of an earlier run are gone (queue.result_ttl_s)
            log.warning("%d results are gone, and are computed again", len(lost))
            chunk.jobs = {job: item for job, item in chunk.jobs.items() if job in found}
            for item in lost:
                chunk.tries[item.number] = chunk.tries.get(item.number, 0) + 1
            self._put(chunk, lost)

    def _ended(self, chunk: _Chunk, job: str, what: dict[str, Any]) -> None:
        item = chunk.jobs.pop(job)
        chunk.lines[item.number] = _line(item, job, what)
        if what["outcome"] == "ok":
            self.summary.ok += 1
        else:
            self.summary.failed += 1
        self._moved()

    # ---- the end ----

    def _join(self, parts: Iterable[str], version: bytes) -> None:
        with self._fs.open(f"{self._out}.new", "wb") as file:
            for part in parts:
                file.write(self._fs.cat_file(part))
        # Before the results: without it they would be nobody's.
        self._fs.pipe_file(f"{self._out}.source.json", version)
        self._fs.mv(f"{self._out}.new", self._out)
        self._clear()

    def _clear(self) -> None:
        if self._fs.exists(self._parts):
            self._fs.rm(self._parts, recursive=True)

    # ---- waiting ----

    def _moved(self) -> None:
        self._moved_s = time.monotonic()
        self._told(self.summary)

    def _wait(self, why: str, pause_s: float = 0.5) -> None:
        if time.monotonic() - self._moved_s > self._stall_timeout_s:
            raise BatchError(
                f"nothing has gone on for {self._stall_timeout_s:g} s ({why}). Look at `rung jobs status` and "
                "`rung status`; the same command goes on from here."
            )
        time.sleep(pause_s)


def _chunked(items: Iterator[Item]) -> Iterator[list[Item]]:
    while chunk := list(islice(items, CHUNK)):
        yield chunk


def _within(items: list[Item], most: int) -> list[Item]:
    """The first items, no more than `most`, and no more bytes than one call should carry."""
    size = 0
    for count, item in enumerate(items[:most]):
        size += len(item.body)
        if count and size > PUT_BYTES_MAX:
            return items[:count]
    return items[:most]


def _of(result: Result) -> dict[str, Any]:
    name = "answer" if result.outcome == "ok" else "error"
    told = {"model": result.model, "version": result.version, "attempts": result.attempts}
    return {"outcome": result.outcome, name: orjson.loads(result.answer), **told}


def _line(item: Item, job: str | None, what: dict[str, Any]) -> bytes:
    head: dict[str, Any] = {"item": item.number} | ({} if item.name is None else {"id": item.name})
    return orjson.dumps(head | {"job": job} | what) + b"\n"
