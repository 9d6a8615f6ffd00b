"""Results are stored once each, whoever stores them how often; callbacks are handed out to one at a time."""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql

from reference_apps.results import (
    ASKED_MAX,
    DUE_WITHIN_S,
    RESULTS,
    Result,
    Results,
    ResultsDownError,
    described,
    failure,
    insert_once,
    row_of,
    sqlite_insert,
    sqlite_url,
)
from tests.conftest import PATIENCE_S
from tests.postgres_server import postgres_server


def a_result(job: str = "A", answer: int = 1, **more: Any) -> Result:
    made = Result(job, "ok", orjson.dumps({"label": answer}).decode(), "digits", "1", 1, 100.0, 101.0, 1000.0)
    return dataclasses.replace(made, **more)


def a_failure(job: str = "A", **more: Any) -> Result:
    return dataclasses.replace(a_result(job, **more), outcome="failed", answer=failure("model_error", "It broke."))


def sqlite_results(folder: Path) -> Iterator[Results]:
    with Results(sqlite_url(folder / "results.db")) as found:
        yield found


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URL of a real server."""
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def results(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Results]:
    if request.param == "sqlite":
        yield from sqlite_results(tmp_path)
        return
    with Results(request.getfixturevalue("postgres")) as found:
        found.forget_expired(float("inf"), most=1_000_000)
        yield found


def test_the_first_result_of_a_job_stays(results: Results) -> None:
    assert results.store([a_result("A", 1), a_result("B", 2)]) == {"A", "B"}
    assert results.store([a_result("A", 9), a_result("C", 3)]) == {"C"}
    found = results.find(["A", "B", "C", "D"])
    assert {job: orjson.loads(each.answer)["label"] for job, each in found.items()} == {"A": 1, "B": 2, "C": 3}
    assert found["A"] == a_result("A", 1)
    assert results.counts() == {"ok": 3}
    assert results.store([]) == set()


def test_the_same_job_twice_in_one_call_is_stored_once(results: Results) -> None:
    assert results.store([a_result("A", 1), a_result("A", 2)]) == {"A"}
    assert results.counts() == {"ok": 1}


def test_a_failure_gives_way_to_an_answer_and_an_answer_to_nothing(results: Results) -> None:
    results.store([a_failure("A")])
    assert results.store([a_failure("A", attempts=7)]) == set()
    assert results.find(["A"])["A"].attempts == 1
    assert results.store([a_result("A", 4)]) == {"A"}
    assert results.store([a_failure("A")]) == set()
    assert results.find(["A"])["A"] == a_result("A", 4)


def test_many_at_once_store_each_once(results: Results) -> None:
    jobs = [f"J{n:03d}" for n in range(100)]
    stored: list[set[str]] = []

    def store(number: int) -> None:
        parts = [jobs[start : start + 20] for start in range(0, 100, 20)]
        stored.extend(results.store([a_result(job, number) for job in part]) for part in parts)

    threads = [threading.Thread(target=store, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(job for each in stored for job in each) == jobs
    assert results.counts() == {"ok": 100}


def test_any_number_of_jobs_can_be_asked_for(results: Results) -> None:
    jobs = [f"J{n:04d}" for n in range(2 * ASKED_MAX + 1)]
    results.store([a_result(job) for job in jobs])
    assert set(results.find(jobs)) == set(jobs)
    assert results.find([]) == {}


def test_results_go_when_their_time_is_over(results: Results) -> None:
    results.store([a_result("A", expires_at=10.0), a_result("B", expires_at=20.0), a_result("C", expires_at=30.0)])
    assert results.forget_expired(5.0) == 0
    assert results.forget_expired(25.0, most=1) == 1
    assert results.forget_expired(25.0) == 1
    assert set(results.find(["A", "B", "C"])) == {"C"}


def test_a_callback_is_handed_out_once_until_its_lease_is_over(results: Results) -> None:
    url = "https://example.org/told"
    results.store([a_result("A", callback=url, callback_due_at=10.0), a_result("B")])
    assert not results.any_due(9.0)
    assert results.due(9.0, 5, 30.0) == []
    assert results.any_due(10.0)
    (taken,) = results.due(10.0, 5, 30.0)
    assert (taken.job, taken.callback, taken.callback_attempts) == ("A", url, 1)
    assert results.due(20.0, 5, 30.0) == []
    (again,) = results.due(40.0, 5, 30.0)  # whoever had it is dead
    assert again.callback_attempts == 2
    results.told(taken)  # comes too late to count
    results.put_off(again, 100.0)
    assert not results.any_due(99.0)
    (last,) = results.due(100.0, 5, 30.0)
    results.told(last)
    assert not results.any_due(1e9)


def test_a_callback_that_was_dated_by_another_clock_is_not_put_off_for_long(results: Results) -> None:
    results.store([a_result("A", callback="http://a/", callback_due_at=1e9)])
    now_s = 1e9 - 86_400.0  # the clock was set back by a day
    assert DUE_WITHIN_S < 86_400.0
    assert [each.job for each in results.due(now_s, 5, 30.0)] == ["A"]


def test_an_answer_in_the_place_of_a_failure_is_told_too(results: Results) -> None:
    results.store([a_failure("A", callback="http://a/", callback_due_at=10.0)])
    (failed,) = results.due(10.0, 1, 30.0)
    results.store([a_result("A", 2, callback="http://a/", callback_due_at=12.0)])
    results.told(failed)
    (answered,) = results.due(12.0, 1, 30.0)
    assert (answered.outcome, answered.callback_attempts) == ("ok", 1)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("ABC"), st.sampled_from(["ok", "failed", "timed_out"]), st.integers(0, 9))))
def test_whatever_is_stored_a_job_has_one_result_and_an_end_stays(steps: list[tuple[str, Any, int]]) -> None:
    with Results("sqlite://") as results:
        wanted: dict[str, tuple[str, int]] = {}
        for job, outcome, attempts in steps:
            stored = results.store([a_result(job, outcome=outcome, attempts=attempts)])
            takes = job not in wanted or (wanted[job][0] == "failed" and outcome != "failed")
            assert stored == ({job} if takes else set())
            if takes:
                wanted[job] = (outcome, attempts)
        assert {r.job: (r.outcome, r.attempts) for r in results.find("ABC").values()} == wanted


def test_all_processes_of_a_stage_may_make_the_table_at_once(postgres: str, tmp_path: Path) -> None:
    for url in (postgres, sqlite_url(tmp_path / "results.db")):
        with Results(url) as results, results._engine.begin() as connection:
            RESULTS.drop(connection)
        opened, errors = list[Results](), list[Exception]()

        def opens(url: str = url, opened: list[Results] = opened, errors: list[Exception] = errors) -> None:
            try:
                opened.append(Results(url))
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=opens) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        for each in opened:
            each.close()
        assert (len(opened), errors) == (8, [])


def test_a_transaction_of_sqlite_itself_stores_the_same(tmp_path: Path) -> None:
    with Results(sqlite_url(tmp_path / "results.db")) as results:
        database = sqlite3.connect(tmp_path / "results.db")
        with database:
            database.executemany(sqlite_insert(), [row_of(a_failure("A")), row_of(a_result("B", 2))])
        with database:
            database.executemany(sqlite_insert(), [row_of(a_result("A", 1)), row_of(a_result("B", 9))])
        database.close()
        assert results.find("AB") == {"A": a_result("A", 1), "B": a_result("B", 2)}


def test_postgres_is_told_the_same() -> None:
    text = str(insert_once("postgresql").compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
    assert "ON CONFLICT (job) DO UPDATE" in text
    assert "WHERE results.outcome = 'failed' AND excluded.outcome <> 'failed'" in text


def test_what_a_client_is_told_of_a_job() -> None:
    told = orjson.loads(described(a_result("A", 4)))
    assert (told["job"], told["status"], told["outcome"], told["answer"]) == ("A", "done", "ok", {"label": 4})
    failed = orjson.loads(described(a_failure("A")))
    assert (failed["status"], failed["outcome"]) == ("dead", "failed")
    assert failed["error"] == {"title": "model_error", "detail": "It broke."}
    assert "answer" not in failed


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nothing of the kind", "must hold the URL of an SQLite or Postgres database"),
        ("mysql://user:pass@host/name", "queue.results_url_env: must "),
        ("postgresql+psycopg://user:pass@host:543x/name", r"got one that cannot be used \(its port or an option\)"),
        ("postgresql+psycopg://user:p@pass:5@host/name", r"got one that cannot be used \(its port or an option\)"),
        ("sqlite:////nowhere/at/all/results.db", "unable to open database file"),
    ],
)
def test_a_database_that_cannot_be_used_is_told_without_its_password(url: str, said: str) -> None:
    with pytest.raises(ResultsDownError, match=said) as caught:
        Results(url)
    assert "pass@" not in str(caught.value)
    assert "5@" not in str(caught.value)


@pytest.mark.parametrize(("query", "connect_s"), [("", 5), ("?connect_timeout=2", "2")])
def test_a_server_of_postgres_that_is_silent_is_not_waited_for_long(query: str, connect_s: Any) -> None:
    pytest.importorskip("psycopg")

    class SeenError(Exception):
        pass

    def see(*told: Any) -> None:
        seen.update(told[-1])
        raise SeenError

    seen = dict[str, Any]()
    sa.event.listen(sa.Engine, "do_connect", see)
    try:
        with pytest.raises(SeenError):
            Results(f"postgresql+psycopg://user:pass@host/name{query}")
    finally:
        sa.event.remove(sa.Engine, "do_connect", see)
    assert (seen["connect_timeout"], seen["tcp_user_timeout"]) == (connect_s, 10_000)


def test_a_database_that_fails_is_an_error_of_its_own(tmp_path: Path) -> None:
    with Results(sqlite_url(tmp_path / "results.db")) as results:
        other = sqlite3.connect(tmp_path / "results.db")
        with other:
            other.execute("DROP TABLE results")
        other.close()
        with pytest.raises(ResultsDownError, match="no such table"):
            results.store([a_result()])
