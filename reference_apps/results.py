"""Results of jobs: stored once each, found by many, gone after their time; in SQLite or Postgres, by URL.

    worker ── store: once each ──▶ [ results ] ◀── find ── jobs API, `rung jobs`
                                       ▲ due, told, put_off ── callbacks

That a job's answer is stored exactly once, however often the job was delivered, is the work of one line: the job is the
primary key, and who comes second changes nothing. Only a failure gives way, to an answer: the job was a dead letter,
and somebody has had it tried again. What is still to be told to a callback stands in the same row, so that it is there
if and only if the answer is. Times are seconds since the epoch, of the machine's clock: one that is set moves the end
of a result's time with it. No twin: the simulator's results are its records.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self

import orjson
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.schema import CreateIndex, CreateTable

from reference_apps.sqlite_log import write_ahead

# Jobs that one question names at most: SQLite takes no more than so many thousand parameters.
ASKED_MAX = 500
BUSY_TIMEOUT_S = 5.0
# A server of Postgres that says nothing any more is given up, where its address does not say otherwise: seconds to
# connect, milliseconds for what was sent to be received, and seconds until and between questions whether it lives.
_POSTGRES_PATIENCE = {
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 5,
    "keepalives_interval": 5,
}
CREATED_MAX = 3  # tries to make the table
# Nobody puts a callback off so far: one that is due later than that was dated by a clock that has been set since.
DUE_WITHIN_S = 3600.0

Outcome = Literal["ok", "failed", "timed_out"]


class ResultsDownError(RuntimeError):
    """The database of results does not answer, is full, or refuses; nothing was stored."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a job ended. `answer` is JSON: the model's answer, or `title` and `detail` of why there is none."""

    job: str
    outcome: Outcome
    answer: str
    model: str
    version: str
    attempts: int  # deliveries of the job to a worker, this one included
    enqueued_at: float
    finished_at: float
    expires_at: float
    record: str = ""  # where its time went, as the header x-rung-record
    callback: str | None = None  # whom to tell
    callback_due_at: float | None = None  # when; None when there is nothing to tell any more
    callback_attempts: int = 0


_METADATA = sa.MetaData()
RESULTS = sa.Table(
    "results",
    _METADATA,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("answer", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("enqueued_at", sa.Double, nullable=False),
    sa.Column("finished_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False, index=True),
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("callback", sa.Text),
    sa.Column("callback_due_at", sa.Double),
    sa.Column("callback_attempts", sa.Integer, nullable=False),
)
_DUE = RESULTS.c.callback_due_at.is_not(None)
sa.Index("results_due", RESULTS.c.callback_due_at, sqlite_where=_DUE, postgresql_where=_DUE)
_COLUMNS = tuple(field.name for field in fields(Result))


class Results:
    """The results of one stage. Any thread may use it. Every call raises ResultsDownError when the database fails."""

    def __init__(self, url: str, durable: bool = True) -> None:
        """`durable`: what is stored survives a power cut; otherwise the last moments may be lost, and nothing torn."""
        try:
            parsed = make_url(url)
            patience: dict[str, int] = {}
            if parsed.get_backend_name() == "postgresql" and parsed.get_driver_name() in ("psycopg", "psycopg2"):
                patience = {name: most for name, most in _POSTGRES_PATIENCE.items() if name not in parsed.query}
            self._engine = sa.create_engine(
                parsed, pool_pre_ping=parsed.get_backend_name() != "sqlite", connect_args=patience
            )
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, ValueError) as error:
            # ValueError: a port that is no number, whose text may quote a part of the password.
            why = "its port or an option" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise ResultsDownError(
                f"queue.results_url_env: must hold the URL of an SQLite or Postgres database, got one that cannot be "
                f"used ({why}). Results would have no place. Use sqlite:////path/results.db or "
                "postgresql+psycopg://user:password@host/name (with `pip install 'rung[postgres]'`)."
            ) from None
        name = self._engine.dialect.name
        if name not in ("sqlite", "postgresql"):
            raise ResultsDownError(
                f"queue.results_url_env: must be of SQLite or Postgres, got {name}. Nothing else is known to store "
                "each result once. Use sqlite:////path/results.db or postgresql+psycopg://user:password@host/name."
            )
        if name == "sqlite":
            event.listen(self._engine, "connect", lambda raw, _: _prepare(raw, durable))
        self._insert = insert_once(name)
        with self._in_words():
            self._create()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def store(self, results: Iterable[Result]) -> set[str]:
        """Stores those whose jobs have no result yet, all in one transaction, and tells which jobs those are."""
        rows = {result.job: dict(zip(_COLUMNS, astuple(result), strict=True)) for result in results}
        if not rows:
            return set()
        with self._in_words(), self._engine.begin() as connection:
            return set(connection.execute(self._insert.returning(RESULTS.c.job), list(rows.values())).scalars())

    def find(self, jobs: Iterable[str]) -> dict[str, Result]:
        """The results of those of the jobs that have one, by job."""
        found: dict[str, Result] = {}
        with self._in_words(), self._engine.connect() as connection:
            for some in _some(jobs):
                rows = connection.execute(sa.select(RESULTS).where(RESULTS.c.job.in_(some)))
                found |= {row.job: Result(*row) for row in rows}
        return found

    def counts(self) -> dict[str, int]:
        """How many results there are by outcome."""
        question = sa.select(RESULTS.c.outcome, sa.func.count()).group_by(RESULTS.c.outcome)
        with self._in_words(), self._engine.connect() as connection:
            return {str(outcome): int(count) for outcome, count in connection.execute(question)}

    def forget_expired(self, now_s: float, most: int = 1000) -> int:
        """Throws away results whose time is over, some at a time, so that nobody waits long; how many."""
        old = sa.select(RESULTS.c.job).where(RESULTS.c.expires_at < now_s).limit(most)
        with self._in_words(), self._engine.begin() as connection:
            return connection.execute(sa.delete(RESULTS).where(RESULTS.c.job.in_(old))).rowcount

    # ---- callbacks ----

    def due(self, now_s: float, most: int, lease_s: float) -> list[Result]:
        """Results that are to be told now; for `lease_s` nobody else gets them, and then somebody does again."""
        column = RESULTS.c.callback_due_at
        is_due = (column <= now_s) | (column > now_s + DUE_WITHIN_S)
        chosen = sa.select(RESULTS.c.job).where(_DUE, is_due).order_by(column).limit(most)
        taken = (
            sa.update(RESULTS)
            .where(RESULTS.c.job.in_(chosen), _DUE, is_due)  # asked again: another may have been faster
            .values(callback_due_at=now_s + lease_s, callback_attempts=RESULTS.c.callback_attempts + 1)
            .returning(*RESULTS.c)
        )
        with self._in_words(), self._engine.begin() as connection:
            return [Result(*row) for row in connection.execute(taken)]

    def any_due(self, now_s: float) -> bool:
        """Whether `due` would find anything; asked often, and cheaper than that."""
        column = RESULTS.c.callback_due_at
        question = sa.select(RESULTS.c.job).where(_DUE, (column <= now_s) | (column > now_s + DUE_WITHIN_S)).limit(1)
        with self._in_words(), self._engine.connect() as connection:
            return connection.execute(question).first() is not None

    def told(self, result: Result) -> None:
        """There is nothing to tell of this result any more: it was told, or given up."""
        self._set_due(result, None)

    def put_off(self, result: Result, due_at: float) -> None:
        """The result is to be told at that time, once more."""
        self._set_due(result, due_at)

    def close(self) -> None:
        """Closes every connection."""
        self._engine.dispose()

    def _set_due(self, result: Result, due_at: float | None) -> None:
        """Unless another has had it since, or an answer has come in the place of a failure."""
        ours = (RESULTS.c.job == result.job) & (RESULTS.c.callback_attempts == result.callback_attempts)
        change = sa.update(RESULTS).where(ours).values(callback_due_at=due_at)
        with self._in_words(), self._engine.begin() as connection:
            connection.execute(change)

    def _create(self) -> None:
        """Makes the table, unless it is there. All processes of a stage start at once, and each of them does so."""
        indexes = (CreateIndex(index, if_not_exists=True) for index in RESULTS.indexes)
        made: list[sa.Executable] = [CreateTable(RESULTS, if_not_exists=True), *indexes]
        for left in reversed(range(CREATED_MAX)):
            try:
                with self._engine.begin() as connection:
                    for each in made:
                        connection.execute(each)
                return
            except DBAPIError:  # Postgres looks first, and may find that another was faster
                if not left:
                    raise

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        """Raises ResultsDownError for whatever the database has to say. The URL is not told: it may hold a password."""
        try:
            yield
        except SQLAlchemyError as error:
            said = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise ResultsDownError(f"the results' database: {said}") from error


def insert_once(dialect: str) -> Any:
    """The statement that stores a result unless its job has one, in the words of "sqlite" or "postgresql".

    A failure gives way to an answer, once: the job was a dead letter, and somebody has had it tried again.
    """
    insert = sqlite.insert(RESULTS) if dialect == "sqlite" else postgresql.insert(RESULTS)
    fresh = insert.excluded
    return insert.on_conflict_do_update(
        index_elements=["job"],
        set_={name: fresh[name] for name in _COLUMNS if name != "job"},
        where=sa.text("results.outcome = 'failed' AND excluded.outcome <> 'failed'"),  # text: no parameters of its own
    )


def sqlite_insert() -> str:
    """The same as text for the module sqlite3, whose parameters are `row_of` a result: for those who store a result
    in a transaction of their own."""
    return str(insert_once("sqlite").compile(dialect=sqlite.dialect()))


def row_of(result: Result) -> tuple[Any, ...]:
    """The result in the order of the table's columns."""
    return astuple(result)


def sqlite_url(path: Path) -> str:
    """The URL of a database that is a file."""
    return f"sqlite:///{path.absolute()}"


def described(result: Result) -> bytes:
    """A job that has ended, as JSON for its client: the same text from the API and to a callback."""
    head = orjson.dumps(
        {
            "job": result.job,
            "status": "dead" if result.outcome == "failed" else "done",
            "outcome": result.outcome,
            "model": result.model,
            "version": result.version,
            "attempts": result.attempts,
            "enqueued_at": result.enqueued_at,
            "finished_at": result.finished_at,
        }
    )
    name = b"answer" if result.outcome == "ok" else b"error"
    return b'%b,"%b":%b}' % (head[:-1], name, result.answer.encode())


def failure(title: str, detail: str) -> str:
    """The `answer` of a job that has none, as JSON; `title` is one of stages.outcomes.REASONS."""
    return orjson.dumps({"title": title, "detail": detail}).decode()


def _prepare(raw: Any, durable: bool) -> None:
    """What every connection to SQLite is told first: readers and one writer at a time, who wait for each other."""
    cursor = raw.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {round(1000 * BUSY_TIMEOUT_S)}")
    write_ahead(cursor, BUSY_TIMEOUT_S)
    cursor.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
    cursor.close()


def _some(jobs: Iterable[str]) -> Iterator[list[str]]:
    """The jobs in parts that one question can name."""
    rest = iter(jobs)
    while part := list(islice(rest, ASKED_MAX)):
        yield part
