"""The tables of predictions and labels, and how a database gets them: SQLite or Postgres, by migrations.

    engine_of(url) ──▶ migrate ── alembic: what is missing of reference_apps/migrations ──▶ PREDICTIONS, LABELS

A prediction is one answer of one arm: in shadow mode a request has two, and one label judges both. A label without a
prediction is an orphan (`matched` is false) until the prediction comes. Times are seconds since the epoch, of the
machine's clock. No twin: the simulator knows what is right. It does not go back to an older shape.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import alembic.script
import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from reference_apps.feedback_errors import FeedbackDownError
from reference_apps.sqlite_log import write_ahead
from stages.feedback import Feedback

FILE = "feedback.db"
BUSY_TIMEOUT_S = 5.0
_CONNECT_TIMEOUT_S = 5
_LOCK = 7_206_107  # Postgres' advisory locks have numbers: this one is of our migrations

METADATA = sa.MetaData()
PREDICTIONS = sa.Table(
    "predictions",
    METADATA,
    sa.Column("request_id", sa.String(128), primary_key=True),
    sa.Column("arm", sa.String(16), primary_key=True),  # "champion", "challenger"; empty where there is no split
    sa.Column("user_key", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("answer", sa.Text, nullable=False),  # as the client got it
    sa.Column("label", sa.Integer),  # of the answer; null where it has none
    sa.Column("latency_s", sa.Double, nullable=False),  # in the gateway: read to answered
    sa.Column("device_s", sa.Double),  # its part of its batch's time; null where no device worked for it
    sa.Column("given", sa.Boolean, nullable=False),  # false: a shadow, which nobody was told
    sa.Column("forced", sa.Boolean, nullable=False),  # its client chose the arm: no experiment counts it
    sa.Column("predicted_at", sa.Double, nullable=False),
)
sa.Index("predictions_predicted_at", PREDICTIONS.c.predicted_at)
sa.Index("predictions_arm", PREDICTIONS.c.arm, PREDICTIONS.c.version, PREDICTIONS.c.predicted_at)
LABELS = sa.Table(
    "labels",
    METADATA,
    sa.Column("request_id", sa.String(128), primary_key=True),
    sa.Column("label", sa.Integer, nullable=False),
    sa.Column("labelled_at", sa.Double, nullable=False),
    sa.Column("matched", sa.Boolean, nullable=False),  # false: an orphan
    sa.Column("late", sa.Boolean, nullable=False),
    sa.Column("revisions", sa.Integer, nullable=False),  # how often it was replaced
)
sa.Index("labels_orphans", LABELS.c.matched, LABELS.c.labelled_at)


def engine_of(url: str, read_only: bool = False) -> Engine:
    """A database to connect to; one that was committed to has all of it on the disk. Raises FeedbackDownError.

    With `read_only`, transactions of SQLite do not wait for who writes, and cannot write themselves.
    """
    try:
        parsed = make_url(url)
        postgres = parsed.get_backend_name() == "postgresql"
        more: dict[str, Any] = {"connect_args": {"connect_timeout": _CONNECT_TIMEOUT_S}} if postgres else {}
        engine = sa.create_engine(parsed, pool_pre_ping=postgres, **more)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, ValueError) as error:
        # Of a password with an @ and a : in it, a part is taken for the port: it is not told.
        why = "its port is no number" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise FeedbackDownError(
            f"feedback.url_env: must hold the URL of an SQLite or Postgres database, got one that cannot be used "
            f"({why}). Predictions would have no place. Use sqlite:////path/feedback.db or "
            "postgresql+psycopg://user:password@host/name (with `pip install 'rung[postgres]'`).",
            lasting=True,
        ) from None
    name = engine.dialect.name
    if name not in ("sqlite", "postgresql"):
        raise FeedbackDownError(
            f"feedback.url_env: must be of SQLite or Postgres, got {name}. Nothing else is known to store each label "
            "once. Use sqlite:////path/feedback.db or postgresql+psycopg://user:password@host/name.",
            lasting=True,
        )
    if name == "sqlite":
        event.listen(engine, "connect", lambda raw, _: _prepare(raw, read_only))
        # The module's own transactions begin with the first change: a look before it would have to be given up again.
        begin = "BEGIN" if read_only else "BEGIN IMMEDIATE"
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def migrate(engine: Engine) -> None:
    """Brings the tables to the shape of this code, whoever else does so at the same time. Raises FeedbackDownError."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = _alembic()
    with in_words(), engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        _refuse_newer(connection, config)
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "head")


def is_current(engine: Engine) -> bool:
    """Whether the tables are there, in the shape of this code. Raises FeedbackDownError."""
    head = alembic.script.ScriptDirectory.from_config(_alembic()).get_current_head()
    with in_words(), engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision() == head


@contextlib.contextmanager
def in_words() -> Iterator[None]:
    """Raises FeedbackDownError for whatever the database has to say. The URL is not told: it may hold a password."""
    try:
        yield
    except SQLAlchemyError as error:
        said = str(getattr(error, "orig", None) or error).splitlines()[0]
        lasting = isinstance(error, DBAPIError) and not isinstance(
            error, sa.exc.OperationalError | sa.exc.InterfaceError
        )
        raise FeedbackDownError(f"the database of predictions: {said}", lasting) from error


def url_of(feedback: Feedback, folder: Path, environment: Mapping[str, str] = os.environ) -> str:
    """Where the tables are: the URL that the stage names, or a file of `folder`, which is made. FeedbackDownError."""
    if feedback.url_env is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FeedbackDownError(
                f"{folder}: must be a folder that can be written to, got '{error.strerror}'. Predictions would have no "
                "place. Change its permissions, or set feedback.url_env.",
                lasting=True,
            ) from None
        return sqlite_url(folder / FILE)
    if url := environment.get(feedback.url_env, ""):
        return url
    raise FeedbackDownError(
        f"feedback.url_env: {feedback.url_env} must hold the URL of the database of predictions, and is empty. They "
        f"would have no place. Try: export {feedback.url_env}=postgresql+psycopg://user:password@host/name, or leave "
        "feedback.url_env out.",
        lasting=True,
    )


def sqlite_url(path: Path) -> str:
    """The URL of a database that is a file."""
    return f"sqlite:///{path.absolute()}"


def _alembic() -> alembic.config.Config:
    config = alembic.config.Config()
    folder = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))  # it would read a name after one
    return config


def _refuse_newer(connection: Connection, config: alembic.config.Config) -> None:
    """A database that a later release has changed is left alone."""
    found = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in alembic.script.ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise FeedbackDownError(
            f"the database of predictions: must have a shape up to {max(known)}, got {found}. It was made by other "
            "code. Use that, or give another place.",
            lasting=True,
        )


def _prepare(raw: Any, read_only: bool) -> None:
    """What every connection to SQLite is told first: readers and one writer at a time, who wait for each other."""
    raw.isolation_level = None  # transactions begin where we say so
    cursor = raw.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {round(1000 * BUSY_TIMEOUT_S)}")
    write_ahead(cursor, BUSY_TIMEOUT_S)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute(f"PRAGMA query_only = {'ON' if read_only else 'OFF'}")
    cursor.close()
