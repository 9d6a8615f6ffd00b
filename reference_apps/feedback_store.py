"""Predictions and labels, written: each label counts once, and what was accepted is on the disk.

    predictions ──▶ insert, once each ──▶ labels that came before them are no orphans any more ─┐
    labels ──▶ is there a prediction? a label? ── stages/policies/labelling.py ──▶ upsert ──────┴─▶ one commit

`write` does all that in one transaction. Who calls it often enough is reference_apps/feedback_line.py; what is read out
of the tables is in reference_apps/feedback_reading.py. A client that names two requests alike has one prediction: the
first. No twin: the simulator knows what is right. It does not know whether a label is true.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import islice
from operator import attrgetter
from typing import Any, Literal, NamedTuple, Self

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from reference_apps.feedback_schema import LABELS, PREDICTIONS, engine_of, in_words, migrate
from stages.feedback import Feedback
from stages.policies.labelling import is_late, replaces

# Requests that one question names at most: SQLite takes no more than so many thousand parameters.
ASKED_MAX = 500
# A prediction is written within a second: a label that has waited so long for one waits in vain.
ORPHAN_KEPT_S = 3600.0

How = Literal["stored", "duplicate", "replaced", "waiting", "unknown"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer of one arm. `label` is None for an answer without one, `device_s` where no device worked for it."""

    request_id: str
    arm: str
    user_key: str
    model: str
    version: str
    answer: str  # JSON
    label: int | None
    latency_s: float
    device_s: float | None
    given: bool
    forced: bool
    predicted_at: float


@dataclass(frozen=True, slots=True)
class Label:
    """What somebody says that the answer to a request should have been."""

    request_id: str
    label: int
    labelled_at: float


class Told(NamedTuple):
    """What became of a label. "waiting": its prediction is not known yet. "unknown": nor will be; it is not stored."""

    how: How
    late: bool = False


class Judged(NamedTuple):
    """An answer was found right or wrong in time; `change` is -1 where that is taken back for a later label.

    `predicted_at` is when it was answered, in seconds since the epoch. Answers of forced requests are not judged:
    whoever chooses the arm is nobody's random sample.
    """

    arm: str
    right: bool
    change: int
    predicted_at: float


@dataclass
class Written:
    """What a transaction did: `told` in the order of its labels."""

    told: list[Told] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    orphans: int = 0


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of LABELS."""

    request_id: str
    label: int
    labelled_at: float
    matched: bool
    late: bool
    revisions: int = 0


_COLUMNS = tuple(each.name for each in fields(Prediction))
_values_of = attrgetter(*_COLUMNS)


class _Answer(NamedTuple):
    """What of a prediction says whether a label makes it right, and whether it is late."""

    arm: str
    label: int | None
    predicted_at: float
    forced: bool


class FeedbackStore:
    """The tables of one stage, to be written by one thread. Every call raises FeedbackDownError when they fail."""

    def __init__(self, url: str, feedback: Feedback) -> None:
        self._feedback = feedback
        self.engine = engine_of(url)
        migrate(self.engine)
        dialect: Any = sqlite if self.engine.dialect.name == "sqlite" else postgresql
        self._shadows = False  # whether there are any: then a request has two predictions, and they come apart
        keys = (PREDICTIONS.c.request_id, PREDICTIONS.c.arm)
        self._insert = dialect.insert(PREDICTIONS).on_conflict_do_nothing().returning(*keys)
        upsert = dialect.insert(LABELS)
        changed = {name: upsert.excluded[name] for name in ("label", "labelled_at", "matched", "late", "revisions")}
        self._upsert = upsert.on_conflict_do_update(index_elements=["request_id"], set_=changed)
        question = sa.select(sa.func.count()).where(sa.not_(LABELS.c.matched))
        with in_words(), self.engine.connect() as connection:
            self.orphans = int(connection.execute(question).scalar_one())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, predictions: Sequence[Prediction], labels: Sequence[Label]) -> Written:
        """Stores both in one transaction, the predictions first; once it returns, all of it survives a power cut."""
        written = Written(orphans=self.orphans)
        with in_words(), self.engine.begin() as connection:
            if predictions:
                new = connection.execute(self._insert, [_columns_of(each) for each in predictions]).all()
                self._match(
                    connection, {(each.request_id, each.arm): each for each in reversed(predictions)}, new, written
                )
            if labels:
                self._label(connection, labels, written)
        self.orphans = written.orphans
        return written

    def forget(self, now_at: float, most: int = 1000) -> int:
        """Throws away what is older than it is to be kept, some at a time; how many predictions and orphans."""
        old = PREDICTIONS.c.predicted_at < now_at - self._feedback.keep_s
        ids = sa.select(PREDICTIONS.c.request_id).where(old).order_by(PREDICTIONS.c.predicted_at).limit(most)
        lost = LABELS.c.labelled_at < now_at - ORPHAN_KEPT_S
        orphans = sa.select(LABELS.c.request_id).where(sa.not_(LABELS.c.matched), lost).limit(most)
        with in_words(), self.engine.begin() as connection:
            named = list(connection.execute(ids).scalars())
            for some in _some(named):
                connection.execute(sa.delete(LABELS).where(LABELS.c.request_id.in_(some)))
                connection.execute(sa.delete(PREDICTIONS).where(PREDICTIONS.c.request_id.in_(some)))
            gone = connection.execute(sa.delete(LABELS).where(LABELS.c.request_id.in_(orphans))).rowcount
        self.orphans -= gone
        return len(named) + gone

    def close(self) -> None:
        """Closes every connection."""
        self.engine.dispose()

    # ---- one transaction ----

    def _match(
        self,
        connection: Connection,
        predictions: Mapping[tuple[str, str], Prediction],
        new: Iterable[Any],
        written: Written,
    ) -> None:
        """Labels that came before the predictions that are new are theirs, or theirs too."""
        self._shadows = self._shadows or any(not each.given for each in predictions.values())
        if not written.orphans and not self._shadows:
            return
        answers: dict[str, list[_Answer]] = {}
        for request_id, arm in new:
            answers.setdefault(request_id, []).append(_told_of(predictions[request_id, arm]))
        for row in list(_rows(connection, answers).values()):
            theirs = answers[row.request_id]
            if not row.matched:
                connection.execute(self._upsert, asdict(self._matched(row, theirs, written)))
            elif not row.late:
                written.judged += _judged(theirs, row.label, +1)

    def _label(self, connection: Connection, labels: Sequence[Label], written: Written) -> None:
        ids = dict.fromkeys(label.request_id for label in labels)
        answers, before = _answers(connection, ids), _rows(connection, ids)
        now = dict(before)
        for label in labels:
            written.told.append(self._one(label, answers.get(label.request_id, ()), now, written))
        changed = [asdict(row) for request_id, row in now.items() if before.get(request_id) != row]
        if changed:
            connection.execute(self._upsert, changed)

    def _one(self, label: Label, answers: Sequence[_Answer], now: dict[str, _Row], written: Written) -> Told:
        """What becomes of one label; `now` has the rows as this transaction will leave them."""
        row, matched = now.get(label.request_id), bool(answers)
        late = matched and self._late(answers, label.labelled_at)
        if row is None:
            if not matched and written.orphans >= self._feedback.orphans_max:
                return Told("unknown")
            now[label.request_id] = _Row(label.request_id, label.label, label.labelled_at, matched, late)
            if not matched:
                written.orphans += 1
                return Told("waiting")
            if not late:
                written.judged += _judged(answers, label.label, +1)
            return Told("stored", late)
        if matched and not row.matched:
            row = now[label.request_id] = self._matched(row, answers, written)
        if row.label == label.label or not replaces(self._feedback.on_duplicate, row.late, late):
            return Told("duplicate" if row.matched else "waiting", row.late)
        if row.matched and not row.late:
            written.judged += _judged(answers, row.label, -1)
        if matched and not late:
            written.judged += _judged(answers, label.label, +1)
        revised = replace(row, label=label.label, labelled_at=label.labelled_at, late=late, revisions=row.revisions + 1)
        now[label.request_id] = revised
        return Told("replaced" if row.matched else "waiting", late)

    def _matched(self, row: _Row, answers: Sequence[_Answer], written: Written) -> _Row:
        """An orphan whose prediction has come."""
        late = self._late(answers, row.labelled_at)
        if not late:
            written.judged += _judged(answers, row.label, +1)
        written.orphans -= 1
        return replace(row, matched=True, late=late)

    def _late(self, answers: Sequence[_Answer], labelled_at: float) -> bool:
        return is_late(min(each.predicted_at for each in answers), labelled_at, self._feedback.window_s)


def _judged(answers: Sequence[_Answer], label: int, count: int) -> list[Judged]:
    return [Judged(each.arm, each.label == label, count, each.predicted_at) for each in answers if not each.forced]


def _columns_of(prediction: Prediction) -> dict[str, Any]:
    """The row of a prediction; asdict would copy every value."""
    return dict(zip(_COLUMNS, _values_of(prediction), strict=True))


def _told_of(prediction: Prediction) -> _Answer:
    return _Answer(prediction.arm, prediction.label, prediction.predicted_at, prediction.forced)


def _rows(connection: Connection, ids: Iterable[str]) -> dict[str, _Row]:
    """The labels that there are of these requests."""
    rows = (
        row for some in _some(ids) for row in connection.execute(sa.select(LABELS).where(LABELS.c.request_id.in_(some)))
    )
    return {row.request_id: _Row(*row) for row in rows}


def _answers(connection: Connection, ids: Iterable[str]) -> dict[str, list[_Answer]]:
    """What was answered to these requests, by each arm."""
    found: dict[str, list[_Answer]] = {}
    of = PREDICTIONS.c
    question = sa.select(of.request_id, of.arm, of.label, of.predicted_at, of.forced)
    for some in _some(ids):
        for request_id, *rest in connection.execute(question.where(of.request_id.in_(some))):
            found.setdefault(request_id, []).append(_Answer(*rest))
    return found


def _some(ids: Iterable[str]) -> Iterator[list[str]]:
    """The requests in parts that one question can name."""
    rest = iter(ids)
    while part := list(islice(rest, ASKED_MAX)):
        yield part
