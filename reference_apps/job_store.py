"""The broker and the results of a stage, opened together: the API, the workers and the command line have one each.

SQLite for both: one file, and a job leaves the queue in the transaction that stores its result
otherwise:       the result first, then the ack; a job that is delivered again finds its result there
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from reference_apps.broker import BATCH_MAX, Broker, Job, open_broker
from reference_apps.launchers.member import BROKER_FILE
from reference_apps.results import Result, Results, ResultsDownError, sqlite_url
from stages.queue import Queue

if TYPE_CHECKING:
    from reference_apps.broker_sqlite import SqliteBroker


@dataclass
class JobStore:
    """A stage's broker and its results. A context manager. Any thread may use it, and no process that was forked."""

    broker: Broker
    results: Results
    together: SqliteBroker | None = None  # the broker, where the results are in its file

    def finish(self, jobs: Sequence[Job], results: Sequence[Result]) -> None:
        """The jobs are done: `results` are stored, once each, and all of `jobs` are acknowledged.

        A job without a result among them has one already. Raises BrokerDownError or ResultsDownError; then nothing is
        known, and it can be asked for again. There may be any number of jobs: a broker takes BATCH_MAX at a time.
        """
        by_job = {result.job: result for result in results}
        for first in range(0, len(jobs), BATCH_MAX):
            some = jobs[first : first + BATCH_MAX]
            ended = [by_job[job.job] for job in some if job.job in by_job]
            if self.together is not None:
                self.together.finish(some, ended)
            else:
                self.results.store(ended)
                self.broker.ack(some)

    def close(self) -> None:
        """Lets go of both."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.results.close)
            stack.callback(self.broker.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_store(queue: Queue, folder: Path) -> JobStore:
    """What the stage names, with files under `folder` where it names none.

    Raises BrokerDownError and ResultsDownError in words.
    """
    from reference_apps.broker_sqlite import SqliteBroker

    folder.mkdir(parents=True, exist_ok=True)
    broker = open_broker(queue, folder)
    together = None
    durable = queue.fsync == "commit"
    try:
        if queue.results_url_env is not None:
            results = Results(_url(queue.results_url_env), durable)
        elif isinstance(broker, SqliteBroker):
            results, together = Results(sqlite_url(broker.path), durable), broker
        else:
            results = Results(sqlite_url(folder / "results.db"), durable)
    except BaseException:
        broker.close()
        raise
    return JobStore(broker, results, together)


@contextlib.contextmanager
def server_of(queue: Queue, folder: Path) -> Iterator[None]:
    """Meanwhile this process uses the server that a launcher has started for the queue in `folder`, if it has.

    An address in the environment goes before it.
    """
    file = folder / BROKER_FILE
    if queue.broker != "redis" or os.environ.get(queue.url_env) or not file.is_file():
        yield
        return
    os.environ[queue.url_env] = file.read_text(encoding="utf-8").strip()
    try:
        yield
    finally:
        os.environ.pop(queue.url_env, None)


def _url(variable: str) -> str:
    if url := os.environ.get(variable, ""):
        return url
    raise ResultsDownError(
        f"queue.results_url_env: {variable} must hold the URL of the results' database, and is empty. Results would "
        f"have no place. Try: export {variable}=sqlite:////path/results.db, or leave queue.results_url_env out."
    )
