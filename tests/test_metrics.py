"""Metrics of records that were made by hand, so that every figure can be told beforehand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import records
from stages.metrics import METRICS, busy_s, summarise
from stages.records import BATCHES, REPLICAS, REQUESTS, Records


def request(number: int, scheduled_s: float, outcome: str = "ok", **columns: Any) -> dict[str, Any]:
    """A row that arrives 1 ms and leaves 1 ms around a queue wait and a batch that `columns` give."""
    row: dict[str, Any] = dict.fromkeys(REQUESTS.names())
    row |= {"request": number, "item": 0, "scheduled_s": scheduled_s, "sent_s": scheduled_s, "outcome": outcome}
    return row | {"reason": "", "replica": 0} | columns


def answered(number: int, scheduled_s: float, wait_s: float, service_s: float, batch: int, size: int) -> dict[str, Any]:
    arrived_s = scheduled_s + 0.001
    started_s = arrived_s + wait_s
    finished_s = started_s + service_s
    return request(
        number,
        scheduled_s,
        arrived_s=arrived_s,
        started_s=started_s,
        finished_s=finished_s,
        replied_s=finished_s + 0.001,
        batch=batch,
        batch_size=size,
    )


def made(
    requests: list[dict[str, Any]],
    batches: list[tuple[float, float, int]],
    replicas: list[tuple[float, float]],
    window_s: float = 10.0,
) -> Records:
    return Records(
        requests=pl.DataFrame(requests, schema=REQUESTS, orient="row"),
        batches=pl.DataFrame([(0, i, *batch) for i, batch in enumerate(batches)], schema=BATCHES, orient="row"),
        replicas=pl.DataFrame(
            [(i, "cpu", 0.0, ready_s, stopped_s) for i, (ready_s, stopped_s) in enumerate(replicas)],
            schema=REPLICAS,
            orient="row",
        ),
        window_s=window_s,
    )


@pytest.fixture
def run() -> Records:
    """Ten seconds: a batch of one, a batch of two of which one is late, one shed, one given up, one failed."""
    return made(
        requests=[
            answered(0, 1.0, wait_s=0.0, service_s=0.098, batch=0, size=1),
            answered(1, 9.0, wait_s=0.2, service_s=0.298, batch=1, size=2),
            answered(2, 9.1, wait_s=0.1, service_s=0.298, batch=1, size=2),
            answered(3, 9.9, wait_s=0.1, service_s=0.098, batch=2, size=1),
            request(4, 2.0, "shed", reason="queue_full", arrived_s=2.001, replied_s=2.002),
            request(5, 3.0, "timed_out", reason="client_timeout", arrived_s=3.001, replied_s=8.0),
            request(6, 4.0, "failed", reason="connection", replied_s=4.5),
            request(7, 5.0, "shed", reason="queue_full", arrived_s=5.001, replied_s=5.002),
        ],
        batches=[(1.001, 1.099, 1), (9.201, 9.499, 2), (10.001, 10.099, 1)],
        replicas=[(0.0, 11.0)],
    )


def test_rates_count_what_came_back_within_the_window(run: Records) -> None:
    found = summarise(run, slo_latency_s=0.45)
    assert found["throughput_rps"] == pytest.approx(3 / 10)  # the answer at 10.1 s is late
    assert found["goodput_rps"] == pytest.approx(2 / 10)  # of latencies 0.1, 0.5, 0.4


def test_shares_are_of_all_requests(run: Records) -> None:
    found = summarise(run, slo_latency_s=0.45)
    assert (found["shed_share"], found["timed_out_share"], found["failed_share"]) == (2 / 8, 1 / 8, 1 / 8)


def test_latency_is_from_the_scheduled_send_over_all_answers(run: Records) -> None:
    found = summarise(run, slo_latency_s=0.45)
    latencies_s = [0.1, 0.2, 0.4, 0.5]  # the late one, of 0.2 s, too
    assert found["latency_s_mean"] == pytest.approx(0.3)
    assert found["latency_s_p50"] == pytest.approx(0.3)
    assert found["latency_s_p90"] == pytest.approx(0.4 + 0.7 * 0.1)  # rank 0.9 * 3 = 2.7
    assert found["latency_s_p99"] == pytest.approx(np.percentile(latencies_s, 99))


def test_latency_counts_from_the_schedule_and_not_from_the_send() -> None:
    late = answered(0, 1.0, wait_s=0.0, service_s=0.098, batch=0, size=1) | {"sent_s": 1.05}
    found = summarise(made([late], [(1.001, 1.099, 1)], [(0.0, 10.0)]), slo_latency_s=1.0)
    assert found["latency_s_mean"] == pytest.approx(0.1)


def test_queue_wait_ends_where_the_batch_starts(run: Records) -> None:
    found = summarise(run, slo_latency_s=0.45)
    assert found["queue_wait_s_mean"] == pytest.approx(0.1)
    assert found["queue_wait_s_p95"] == pytest.approx(0.1 + 0.85 * 0.1)  # rank 0.95 * 3 = 2.85


def test_the_device_is_judged_by_batches_that_started_within_the_window(run: Records) -> None:
    found = summarise(run, slo_latency_s=0.45)
    assert found["batch_size_mean"] == pytest.approx(1.5)
    assert found["device_throughput_ips"] == pytest.approx(3 / (0.098 + 0.298))
    assert found["utilisation"] == pytest.approx((0.098 + 0.298) / 10.0)


def test_a_batch_across_the_end_is_busy_only_within_the_window() -> None:
    found = summarise(made([], [(9.5, 10.5, 4)], [(0.0, 20.0)]), slo_latency_s=0.1)
    assert found["utilisation"] == pytest.approx(0.05)
    assert found["device_throughput_ips"] == pytest.approx(4.0)


def test_a_replica_is_available_from_ready_to_stopped() -> None:
    found = summarise(made([], [(0.0, 3.0, 1)], [(0.0, 10.0), (8.0, 30.0)]), slo_latency_s=0.1)
    assert found["utilisation"] == pytest.approx(3.0 / 12.0)


def test_what_cannot_be_measured_is_not_a_number() -> None:
    found = summarise(made([], [], []), slo_latency_s=0.1)
    assert list(found) == list(METRICS)
    assert found["throughput_rps"] == found["goodput_rps"] == 0.0
    assert all(math.isnan(found[name]) for name in METRICS[2:])


def test_every_metric_is_there_in_its_order(run: Records) -> None:
    assert list(summarise(run, slo_latency_s=0.45)) == list(METRICS)


@given(
    st.lists(st.tuples(st.floats(0.0, 10.0), st.floats(0.0, 1.0)), max_size=20),
    st.floats(0.0, 10.0),
    st.floats(0.0, 10.0),
)
def test_busy_time_of_parts_adds_up(spans: list[tuple[float, float]], one_s: float, other_s: float) -> None:
    frame = made([], [(start_s, start_s + length_s, 1) for start_s, length_s in spans], []).batches
    low_s, high_s = sorted((one_s, other_s))
    parts = busy_s(frame, 0.0, low_s) + busy_s(frame, low_s, high_s) + busy_s(frame, high_s, 11.0)
    assert parts == pytest.approx(sum(length_s for _, length_s in spans), abs=1e-9)


def test_records_are_written_and_read_back(run: Records, tmp_path: Path) -> None:
    records.write(run, tmp_path / "made/on/the/way")
    again = records.read(tmp_path / "made/on/the/way")
    assert again.window_s == run.window_s
    for name in ("requests", "batches", "replicas"):
        assert getattr(again, name).equals(getattr(run, name))
        assert getattr(again, name).schema == getattr(run, name).schema


def test_records_of_other_columns_are_refused(run: Records) -> None:
    with pytest.raises(ValueError, match="batches: columns"):
        Records(run.requests, run.batches.rename({"batch_size": "size"}), run.replicas, 1.0)


def test_hit_ratio_is_over_those_that_were_looked_up() -> None:
    found = ["hit", "hit", "hit", "joined", "miss", "miss", "", None]
    rows = [request(number, 1.0, replied_s=1.1, cache=how) for number, how in enumerate(found)]
    metrics = summarise(made(rows, [], [(0.0, 10.0)]), slo_latency_s=0.5)
    assert (metrics["hit_ratio"], metrics["joined_ratio"]) == (pytest.approx(3 / 6), pytest.approx(1 / 6))
    assert metrics["latency_s_mean"] == pytest.approx(0.1), "kept answers are answers"
    assert math.isnan(metrics["queue_wait_s_mean"]), "nobody waited in a queue"


def test_a_folder_of_before_there_were_caches_is_read(run: Records, tmp_path: Path) -> None:
    records.write(run, tmp_path)
    file = tmp_path / "requests.parquet"
    old = pl.read_parquet(file).drop("cache")
    old.write_parquet(file, metadata=pl.read_parquet_metadata(file))
    again = records.read(tmp_path)
    assert again.requests.drop("cache").equals(run.requests.drop("cache"))
    assert set(again.requests["cache"]) == {""}
    assert math.isnan(summarise(again, slo_latency_s=0.45)["hit_ratio"])
