"""What is read out of predictions and labels: who answered, how fast, and what was right, in the order of its labels.

    PREDICTIONS, LABELS ──▶ newest: the versions that answer now, an arm each ──▶ judged, latencies: arrays

An experiment is the two versions that answered last, from the challenger's first answer on: the champion's before that
were not drawn by the same split. No twin. It writes nothing, and may be used while the gateway does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from reference_apps.feedback_errors import FeedbackDownError
from reference_apps.feedback_schema import FILE, LABELS, PREDICTIONS, engine_of, in_words, is_current, url_of
from stages.feedback import Feedback

Floats = NDArray[np.float64]

ROWS_MAX = 2_000_000  # of one question; they are held in memory


@dataclass(frozen=True)
class Version:
    """One version in one arm, and when it answered, in seconds since the epoch."""

    arm: str
    version: str
    first_at: float
    last_at: float


@dataclass(frozen=True)
class Counts:
    """Of one version in one arm: its predictions, those with a label in time, and those whose label came late."""

    predictions: int
    labelled: int
    right: int
    late: int


@dataclass(frozen=True)
class JudgedRows:
    """Labels that came in time, in their order: when (seconds since the epoch), of the challenger?, right?"""

    at: Floats
    challenger: NDArray[np.bool_]
    right: NDArray[np.bool_]


class FeedbackReader:
    """The tables of one stage, read. A context manager. Every call raises FeedbackDownError when they fail."""

    def __init__(self, feedback: Feedback, folder: Path) -> None:
        if feedback.url_env is None and not (folder / FILE).is_file():
            raise FeedbackDownError(
                f"{folder / FILE}: must be there, got no such file. Nothing was answered yet that was kept. Start the "
                "stage with `rung up`, or name the folder of a run with --in."
            )
        self._engine = engine_of(url_of(feedback, folder), read_only=True)
        if not is_current(self._engine):
            raise FeedbackDownError(
                "the database of predictions: must have the tables of this release, and has none or others. They would "
                "be read wrongly. Start the stage once, which brings them up to date."
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.dispose()

    def newest(self) -> dict[str, Version]:
        """By arm, the version that answered last; the arm is empty where there was no split."""
        at = PREDICTIONS.c.predicted_at
        question = sa.select(PREDICTIONS.c.arm, PREDICTIONS.c.version, sa.func.min(at), sa.func.max(at)).where(
            sa.not_(PREDICTIONS.c.forced)
        )
        question = question.group_by(PREDICTIONS.c.arm, PREDICTIONS.c.version)
        found: dict[str, Version] = {}
        for version in sorted((Version(*row) for row in self._rows(question)), key=lambda each: each.last_at):
            found[version.arm] = version
        return found

    def counts(self, version: Version, since_at: float) -> Counts:
        """How much a version has answered since then, and what of it was judged."""
        given = LABELS.c.label.is_not(None)
        in_time = given & sa.not_(LABELS.c.late)
        right = in_time & (LABELS.c.label == PREDICTIONS.c.label)
        question = sa.select(sa.func.count(), *(_sum(each) for each in (in_time, right, given & LABELS.c.late)))
        joined = question.select_from(PREDICTIONS.outerjoin(LABELS, _MATCH)).where(_of(version, since_at))
        (row,) = self._rows(joined)
        return Counts(*(int(value or 0) for value in row))

    def judged(self, champion: Version, challenger: Version, since_at: float) -> JudgedRows:
        """The labels of both since then, that came in time."""
        right = sa.case((LABELS.c.label == PREDICTIONS.c.label, 1), else_=0)
        question = (
            sa.select(LABELS.c.labelled_at, PREDICTIONS.c.arm, right)
            .select_from(PREDICTIONS.join(LABELS, _MATCH))
            .where(_of(champion, since_at) | _of(challenger, since_at), sa.not_(LABELS.c.late))
            .order_by(LABELS.c.labelled_at, LABELS.c.request_id, PREDICTIONS.c.arm)
            .limit(ROWS_MAX + 1)
        )
        rows = self._some_rows(question)
        return JudgedRows(
            np.array([row[0] for row in rows], dtype=np.float64),
            np.array([row[1] == challenger.arm for row in rows], dtype=np.bool_),
            np.array([row[2] for row in rows], dtype=np.bool_),
        )

    def seconds(self, version: Version, since_at: float) -> tuple[Floats, Floats]:
        """Latencies in the gateway, and seconds on the device where one worked, of all that a version has answered."""
        columns = (PREDICTIONS.c.latency_s, PREDICTIONS.c.device_s)
        rows = self._some_rows(sa.select(*columns).where(_of(version, since_at)).limit(ROWS_MAX + 1))
        latencies = np.array([row[0] for row in rows], dtype=np.float64)
        return latencies, np.array([row[1] for row in rows if row[1] is not None], dtype=np.float64)

    def _some_rows(self, question: Any) -> list[Any]:
        rows = self._rows(question)
        if len(rows) > ROWS_MAX:
            raise FeedbackDownError(
                f"the database of predictions: must have at most {ROWS_MAX:,} rows of this experiment, and has more. "
                "They would not fit into memory. Begin later, with --last 8h."
            )
        return rows

    def _rows(self, question: Any) -> list[Any]:
        with in_words(), self._engine.connect() as connection:
            return list(connection.execute(question))


_MATCH = LABELS.c.request_id == PREDICTIONS.c.request_id


def _of(version: Version, since_at: float) -> sa.ColumnElement[bool]:
    """Its answers since then; not those whose client chose the arm, who is nobody's random sample."""
    of = PREDICTIONS.c
    same = (of.arm == version.arm) & (of.version == version.version)
    return same & (of.predicted_at >= since_at) & sa.not_(of.forced)


def _sum(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.sum(sa.case((condition, 1), else_=0))
