"""Each label counts once, in whatever order it and its prediction come, and whoever is killed meanwhile."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_apps.feedback_errors import FeedbackDownError
from reference_apps.feedback_reading import Counts, FeedbackReader, Version
from reference_apps.feedback_schema import LABELS, METADATA, engine_of, migrate, sqlite_url
from reference_apps.feedback_store import ORPHAN_KEPT_S, FeedbackStore, Judged, Label, Prediction, Told
from stages.feedback import Feedback
from stages.policies.labelling import is_late, replaces
from tests.conftest import PATIENCE_S, ROOT
from tests.labelled import NOW, a_label, a_prediction
from tests.postgres_server import postgres_server

FIRST, LAST = Feedback(on_duplicate="first", window_s=100.0), Feedback(on_duplicate="last", window_s=100.0)
CHAMPION = Version("champion", "1", NOW, NOW)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URL of a real server."""
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "feedback.db")
    found: str = request.getfixturevalue("postgres")
    engine = sa.create_engine(found)
    with engine.begin() as connection:
        for table in ("alembic_version", "labels", "predictions"):
            connection.execute(sa.text(f"DROP TABLE IF EXISTS {table}"))
    engine.dispose()
    return found


def labels_in(store: FeedbackStore) -> dict[str, Any]:
    with store.engine.connect() as connection:
        return {row.request_id: row for row in connection.execute(sa.select(LABELS))}


def told(store: FeedbackStore, *labels: Label) -> list[Told]:
    return store.write([], labels).told


# ---- what becomes of a label ----


def test_a_label_is_stored_for_its_prediction(url: str) -> None:
    with FeedbackStore(url, LAST) as store:
        written = store.write([a_prediction("A", 1), a_prediction("B", 2)], [a_label("A", 1), a_label("B", 7)])
        assert written.told == [Told("stored"), Told("stored")]
        assert written.judged == [Judged("champion", True, 1, NOW), Judged("champion", False, 1, NOW)]
        assert told(store, a_label("A", 1, after_s=50.0)) == [Told("duplicate")]
        assert labels_in(store)["A"].labelled_at == NOW + 1.0


def test_of_two_labels_the_last_or_the_first_counts(url: str) -> None:
    with FeedbackStore(url, LAST) as store:
        store.write([a_prediction("A", 1)], [a_label("A", 2)])
        written = store.write([], [a_label("A", 1, after_s=2.0)])
        assert written.told == [Told("replaced")]
        assert written.judged == [Judged("champion", False, -1, NOW), Judged("champion", True, 1, NOW)]
        assert (labels_in(store)["A"].label, labels_in(store)["A"].revisions) == (1, 1)
    with FeedbackStore(url, FIRST) as store:
        written = store.write([], [a_label("A", 3, after_s=3.0)])
        assert (written.told, written.judged) == ([Told("duplicate")], [])
        assert labels_in(store)["A"].label == 1


def test_a_late_label_is_kept_and_not_counted(url: str) -> None:
    with FeedbackStore(url, LAST) as store:
        written = store.write([a_prediction("A")], [a_label("A", after_s=100.5)])
        assert (written.told, written.judged) == ([Told("stored", late=True)], [])
        assert labels_in(store)["A"].late


def test_a_late_label_does_not_replace_one_that_came_in_time(url: str) -> None:
    with FeedbackStore(url, LAST) as store:
        store.write([a_prediction("A", 1)], [a_label("A", 1)])
        written = store.write([], [a_label("A", 2, after_s=200.0)])
        assert (written.told, written.judged) == ([Told("duplicate")], [])
        assert labels_in(store)["A"].label == 1


def test_a_label_waits_for_its_prediction(url: str) -> None:
    with FeedbackStore(url, LAST) as store:
        assert told(store, a_label("A", 1), a_label("B", 1, after_s=101.0)) == [Told("waiting"), Told("waiting")]
        assert store.orphans == 2
        assert told(store, a_label("A", 2)) == [Told("waiting")]
        written = store.write([a_prediction("A", 2), a_prediction("B", 1)], [])
        assert written.judged == [Judged("champion", True, 1, NOW)]
        rows = labels_in(store)
        assert (rows["A"].matched, rows["A"].late, rows["B"].matched, rows["B"].late) == (True, False, True, True)
        assert store.orphans == 0


def test_only_so_many_labels_wait(url: str) -> None:
    few = LAST.model_copy(update={"orphans_max": 2})
    with FeedbackStore(url, few) as store:
        found = told(store, *(a_label(name) for name in "ABC"))
        assert found == [Told("waiting"), Told("waiting"), Told("unknown")]
        assert set(labels_in(store)) == {"A", "B"}
    with FeedbackStore(url, few) as store:
        assert store.orphans == 2
        assert told(store, a_label("D")) == [Told("unknown")]
        store.write([a_prediction("A")], [])
        assert told(store, a_label("D")) == [Told("waiting")]


def test_many_labels_of_one_request_in_one_transaction_are_as_one_by_one(url: str) -> None:
    with FeedbackStore(url, LAST) as store:
        written = store.write([a_prediction("A", 1)], [a_label("A", 2), a_label("A", 2), a_label("A", 1)])
        assert [each.how for each in written.told] == ["stored", "duplicate", "replaced"]
        assert sum(each.change for each in written.judged if each.right) == 1
        assert sum(each.change for each in written.judged if not each.right) == 0


def test_one_label_judges_both_arms_of_a_shadowed_request(url: str) -> None:
    with FeedbackStore(url, LAST) as store:
        store.write([a_prediction("A", 1)], [a_label("A", 1)])
        shadow = a_prediction("A", 2, arm="challenger", version="2", given=False)
        assert store.write([shadow], []).judged == [Judged("challenger", False, 1, NOW)]
        assert store.write([], [a_label("A", 2)]).judged == [
            Judged("challenger", False, -1, NOW),
            Judged("champion", True, -1, NOW),
            Judged("challenger", True, 1, NOW),
            Judged("champion", False, 1, NOW),
        ]


def test_whoever_chooses_the_arm_is_not_counted(url: str) -> None:
    with FeedbackStore(url, LAST) as store:
        assert store.write([a_prediction("A", 1, forced=True)], [a_label("A", 1)]).judged == []
        assert store.write([], [a_label("A", 2)]).judged == []


def test_a_second_request_of_one_name_changes_nothing(url: str) -> None:
    with FeedbackStore(url, LAST) as store:
        store.write([a_prediction("A", 1)], [a_label("A", 1), a_label("waits")])
        assert store.write([a_prediction("A", 5)], []).judged == []
        with store.engine.connect() as connection:
            assert connection.execute(sa.text("SELECT label FROM predictions")).scalars().all() == [1]


def test_what_is_old_goes_some_at_a_time(url: str) -> None:
    with FeedbackStore(url, Feedback(keep_s=10.0 * ORPHAN_KEPT_S)) as store:
        old = [a_prediction(f"old{n}", predicted_at=NOW - 1.0) for n in range(5)]
        store.write([*old, a_prediction("new")], [a_label("old0"), a_label("new"), a_label("orphan")])
        assert store.forget(NOW + 10.0 * ORPHAN_KEPT_S - 0.5, most=2) == 3
        while store.forget(NOW + 10.0 * ORPHAN_KEPT_S - 0.5, most=2):
            pass
        assert set(labels_in(store)) == {"new"}
        assert store.orphans == 0


def test_any_number_goes_into_one_transaction(url: str) -> None:
    ids = [f"r{n}" for n in range(1203)]
    with FeedbackStore(url, LAST) as store:
        written = store.write([a_prediction(each) for each in ids], [a_label(each) for each in ids])
        assert Counter(each.how for each in written.told) == {"stored": 1203}


_Step = tuple[str, str, int, float]
_steps = st.lists(
    st.tuples(st.sampled_from(["predict", "shadow", "label"]), st.sampled_from("ABC"), st.integers(0, 2),
              st.sampled_from([0.0, 50.0, 150.0])),
    max_size=12,
)  # fmt: skip


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, FeedbackStore]]:
    """One for each rule, on one file."""
    url = sqlite_url(tmp_path_factory.mktemp("labels") / "feedback.db")
    with FeedbackStore(url, FIRST) as first, FeedbackStore(url, LAST) as last:
        yield {"first": first, "last": last}


@settings(max_examples=60, deadline=None)
@given(_steps, st.sampled_from(["first", "last"]), st.integers(1, 4))
def test_what_was_counted_on_the_way_is_what_is_there_in_the_end(
    stores: dict[str, FeedbackStore], steps: list[_Step], which: str, together: int
) -> None:
    store, counted = stores[which], Counter[tuple[str, bool]]()
    with store.engine.begin() as connection:
        for table in ("labels", "predictions"):
            connection.execute(sa.text(f"DELETE FROM {table}"))
    store.orphans, store._shadows = 0, False
    for first in range(0, len(steps), together):
        part = steps[first : first + together]
        predictions = [_predicted(*step) for step in part if step[0] != "label"]
        labels = [a_label(name, label, after_s) for what, name, label, after_s in part if what == "label"]
        for arm, right, count, _ in store.write(predictions, labels).judged:
            counted[arm, right] += count
    rows = labels_in(store)
    assert store.orphans == sum(not row.matched for row in rows.values())
    with store.engine.connect() as connection:
        answers = connection.execute(sa.text("SELECT request_id, arm, label FROM predictions")).all()
    there: Counter[tuple[str, bool]] = Counter()
    for request_id, arm, label in answers:
        row = rows.get(request_id)
        if row is not None:
            assert row.matched
            if not row.late:
                there[arm, row.label == label] += 1
    assert +counted == there
    assert all(count >= 0 for count in counted.values())


def _predicted(what: str, name: str, label: int, _: float) -> Prediction:
    if what == "predict":
        return a_prediction(name, label)
    return a_prediction(name, label, arm="challenger", version="2", given=False)


def test_which_label_counts() -> None:
    assert not is_late(10.0, 20.0, 10.0)
    assert is_late(10.0, 20.5, 10.0)
    assert not is_late(10.0, 5.0, 1.0)
    for first in ("first", "last"):
        assert not replaces(first, old_is_late=False, new_is_late=True)  # type: ignore[arg-type]
    assert replaces("last", old_is_late=False, new_is_late=False)
    assert replaces("last", old_is_late=True, new_is_late=True)
    assert not replaces("first", old_is_late=True, new_is_late=False)


# ---- the database ----


def test_the_migrations_make_the_tables(url: str) -> None:
    engine = engine_of(url)
    migrate(engine)
    migrate(engine)  # again: nothing is missing
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []
    engine.dispose()


def test_many_may_make_the_tables_at_once(url: str) -> None:
    failed: list[Exception] = []

    def make() -> None:
        engine = engine_of(url)
        try:
            migrate(engine)
        except FeedbackDownError as error:
            failed.append(error)
        engine.dispose()

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not failed
    with FeedbackStore(url, LAST) as store:
        assert told(store, a_label("A")) == [Told("waiting")]


def test_a_database_of_later_code_is_left_alone(url: str) -> None:
    engine = engine_of(url)
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(FeedbackDownError, match="must have a shape up to 0001, got 9999"):
        migrate(engine)
    engine.dispose()


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense", "", "postgresql+psycopg://me@host:543x/db"])
def test_other_databases_are_refused_in_words(url: str) -> None:
    with pytest.raises(FeedbackDownError, match=r"feedback\.url_env: must hold the URL of .* cannot be used"):
        engine_of(url)


def test_a_port_that_is_none_is_told_without_what_may_be_of_a_password() -> None:
    with pytest.raises(FeedbackDownError, match=r"cannot be used \(its port is no number\)") as caught:
        engine_of("postgresql+psycopg://me:a@b:secret@host:5432/name")
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "feedback.db").write_bytes(b"no database at all, but long enough to have a header " * 40)
    with pytest.raises(FeedbackDownError, match="the database of predictions: file is not a database"):
        FeedbackStore(sqlite_url(tmp_path / "feedback.db"), LAST)


def test_a_reader_reads_while_somebody_writes_and_writes_nothing(tmp_path: Path) -> None:
    with FeedbackStore(sqlite_url(tmp_path / "feedback.db"), LAST) as store:
        store.write([a_prediction("A", 1), a_prediction("B", 2, latency_s=0.03, device_s=None)], [a_label("A", 1)])
        with store.engine.begin() as writing, FeedbackReader(LAST, tmp_path) as reader:
            writing.execute(sa.text("UPDATE labels SET late = 1"))
            assert reader.counts(CHAMPION, 0.0) == Counts(2, 1, 1, 0)
            latencies, device = reader.seconds(CHAMPION, 0.0)
            assert sorted(latencies.tolist()) == [0.01, 0.03]
            assert device.tolist() == [0.004]
            with pytest.raises(sa.exc.OperationalError, match="readonly"), reader._engine.begin() as connection:
                connection.execute(sa.text("DELETE FROM labels"))


def test_a_reader_reads_out_of_both(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RUNG_FEEDBACK_TEST", url)
    elsewhere = LAST.model_copy(update={"url_env": "RUNG_FEEDBACK_TEST"})
    challenger = Version("challenger", "2", NOW + 3.0, NOW + 4.0)
    with FeedbackStore(url, elsewhere) as store:
        of_b = [a_prediction(f"b{n}", n, arm="challenger", version="2", predicted_at=NOW + 3.0 + n) for n in range(2)]
        forced = a_prediction("f", arm="challenger", version="2", predicted_at=NOW + 9.0, forced=True)
        labels = [a_label("a", 1, 5.0), a_label("b0", 1, 6.0), a_label("b1", 1, 7.0), a_label("f", 1), a_label("x", 1)]
        store.write([a_prediction("a", 1), *of_b, forced], labels)
    with FeedbackReader(elsewhere, tmp_path) as reader:
        assert reader.newest() == {"champion": CHAMPION, "challenger": challenger}
        assert reader.counts(challenger, 0.0) == Counts(2, 2, 1, 0)
        assert reader.counts(challenger, NOW + 3.5) == Counts(1, 1, 1, 0)
        rows = reader.judged(CHAMPION, challenger, 0.0)
        assert (rows.at - NOW).tolist() == [5.0, 6.0, 7.0]
        assert rows.challenger.tolist() == [False, True, True]
        assert rows.right.tolist() == [True, False, True]


def test_a_reader_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FeedbackDownError, match="got no such file"):
        FeedbackReader(LAST, tmp_path)
    sqlite3.connect(tmp_path / "feedback.db").close()
    (tmp_path / "feedback.db").touch()
    with pytest.raises(FeedbackDownError, match="must have the tables of this release"):
        FeedbackReader(LAST, tmp_path)


def test_what_was_accepted_is_there_whoever_is_killed(tmp_path: Path) -> None:
    dice, accepted = random.Random(5), list[str]()
    for life in range(2):
        output = tmp_path / f"{life}.txt"
        with output.open("wb") as file:
            process = subprocess.Popen([sys.executable, "-m", "tests.labelled", str(tmp_path)], stdout=file, cwd=ROOT)
        deadline_s = time.monotonic() + PATIENCE_S
        while output.stat().st_size < 300 + dice.randrange(2000) and time.monotonic() < deadline_s:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
        process.wait(PATIENCE_S)
        accepted += [line.strip() for line in output.read_text().splitlines(keepends=True) if line.endswith("\n")]
    assert len(accepted) > 40
    with FeedbackStore(sqlite_url(tmp_path / "feedback.db"), Feedback()) as store:
        rows = labels_in(store)
        assert set(accepted) <= set(rows)
        assert all(row.matched == (not name.endswith("-2")) for name, row in rows.items())
        assert store.orphans == sum(not row.matched for row in rows.values())


def test_the_file_is_synced_at_every_commit(tmp_path: Path) -> None:
    with FeedbackStore(sqlite_url(tmp_path / "feedback.db"), LAST) as store, store.engine.connect() as connection:
        assert connection.execute(sa.text("PRAGMA synchronous")).scalar_one() == 2
        assert connection.execute(sa.text("PRAGMA journal_mode")).scalar_one() == "wal"


def test_a_full_disk_stores_nothing_and_says_so(tmp_path: Path) -> None:
    with FeedbackStore(sqlite_url(tmp_path / "feedback.db"), LAST) as store:

        def small(raw: Any, _: Any) -> None:
            raw.execute("PRAGMA max_page_count = 24")

        store.engine.dispose()
        sa.event.listen(store.engine, "connect", small)
        with contextlib.suppress(FeedbackDownError):
            for number in range(200):
                before = len(labels_in(store))
                store.write([], [a_label(f"{number}-{each}-{'x' * 100}") for each in range(20)])
        with pytest.raises(FeedbackDownError, match="database or disk is full"):
            store.write([], [a_label(f"more-{each}-{'x' * 100}") for each in range(500)])
        assert len(labels_in(store)) in (before, before + 20)
        assert store.orphans == len(labels_in(store))
