"""The autoscaler of both worlds: the same cases by hand, a simulated spike, and processes that come and go.

            ┌─▶ simulator.autoscaler on SimPy's clock ─────────────▶ wanted replicas ─┐
a load ─────┤                                                                         ├─ equal
            └─▶ reference_apps.autoscaler on a make-believe clock ─▶ wanted replicas ─┘
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import polars as pl
import pytest
from simpy import Environment

from loadtests import scaling_rows
from reference_apps import autoscaler as running
from reference_apps.launchers.process import ProcessLauncher
from simulator import autoscaler as simulated
from simulator.run import simulate
from stages import records as record
from stages.policies.autoscaling import Look
from stages.policies.histogram import LATENCY_BOUNDS_S
from stages.policies.scraping import ReplicaSample, Sample
from stages.spec import Stage, load_stage, with_overrides
from tests.conftest import PATIENCE_S
from tests.scaling_cases import CASES, Case, PretendFleet

pytestmark = pytest.mark.usefixtures("in_numpy")


def _changes(case: Case, looks: Iterable[Look]) -> tuple[tuple[float, int], ...]:
    """When how many were wanted, other than before."""
    wanted = [(0.0, case.replicas), *((look.at_s, look.wanted) for look in looks if look.at_s <= case.until_s)]
    return tuple(after for before, after in itertools.pairwise(wanted) if after[1] != before[1])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_simulated_autoscaler_wants_what_was_worked_out(case: Case) -> None:
    env = Environment()
    fleet = PretendFleet(case, lambda: env.now)
    autoscaler = simulated.Autoscaler(case.tables(), env, fleet, case.replicas, lambda: env.now > case.until_s)
    env.run()
    assert _changes(case, autoscaler.looks) == case.wanted


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("tick_s", [0.25, 0.5])
def test_the_running_autoscaler_wants_the_same(case: Case, tick_s: float, tmp_path: Path) -> None:
    now_s = 0.0
    fleet = PretendFleet(case, lambda: now_s)
    autoscaler = running.Autoscaler(case.tables(), fleet, tmp_path, lambda: now_s)
    while now_s <= case.until_s:
        autoscaler.look()
        now_s += tick_s
    assert _changes(case, autoscaler.looks) == case.wanted
    lines = [json.loads(line) for line in (tmp_path / running.SCALING_FILE).read_text().splitlines()]
    assert [Look(**line) for line in lines] == autoscaler.looks


def test_looks_that_were_missed_are_not_made_up_for(tmp_path: Path) -> None:
    now_s = 0.0
    case = Case("a pause", ((0.0, 10.0),), (), 60.0, {"target": 10.0})
    autoscaler = running.Autoscaler(case.tables(), PretendFleet(case, lambda: now_s), tmp_path, lambda: now_s)
    for now_s in (0.0, 1.0, 30.5, 31.0):  # noqa: B007  (the clock reads it)
        autoscaler.look()
    assert [look.at_s for look in autoscaler.looks] == [1.0, 30.0, 31.0]


def test_a_diary_that_cannot_be_written_ends_no_autoscaler(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    case = Case("a load", ((0.0, 30.0),), (), 60.0, {"target": 10.0})
    autoscaler = running.Autoscaler(case.tables(), PretendFleet(case, lambda: now_s), tmp_path, lambda: now_s)
    (tmp_path / running.SCALING_FILE).mkdir()
    for now_s in range(5):  # noqa: B007  (the clock reads it)
        autoscaler.look()
    assert autoscaler.looks[-1].wanted == 3
    assert caplog.text.count("scaling.jsonl cannot be written") == 1


def test_neither_the_diary_nor_what_is_remembered_grows_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "LOOKS_MAX", 3)
    monkeypatch.setattr(running, "SCALING_MAX_BYTES", 1000)
    now_s = 0.0
    case = Case("a load", ((0.0, 10.0),), (), 60.0, {"target": 10.0})
    autoscaler = running.Autoscaler(case.tables(), PretendFleet(case, lambda: now_s), tmp_path, lambda: now_s)
    for now_s in range(101):  # noqa: B007  (the clock reads it)
        autoscaler.look()
    assert [look.at_s for look in autoscaler.looks] == [98.0, 99.0, 100.0]
    files = list(tmp_path.iterdir())
    assert sum(file.stat().st_size for file in files) < 2 * 1500
    kept = scaling_rows.read(tmp_path, 0.0, 100.0)["at_s"].to_list()
    assert len(files) == 2
    assert kept == [float(at_s) for at_s in range(101 - len(kept), 101)]


def test_a_moment_in_scaling_begin_has_it_begin_anew(tmp_path: Path) -> None:
    now_s = 100.0
    table = {"policy": "scheduled", "schedule": [{"at_s": 2.0, "replicas": 3}]}
    case = Case("a timetable", (), (), 60.0, table)
    autoscaler = running.Autoscaler(case.tables(), PretendFleet(case, lambda: now_s), tmp_path, lambda: now_s)
    (tmp_path / running.BEGIN_FILE).write_text("110.5")
    wanted = []
    for now_s in (101.0, 103.0, 110.0, 111.5, 112.5, 113.5):
        autoscaler.look()
        wanted.append((now_s, autoscaler.looks[-1].wanted if autoscaler.looks else None))
    assert wanted == [(101.0, None), (103.0, None), (110.0, None), (111.5, 1), (112.5, 3), (113.5, 3)]
    (tmp_path / running.BEGIN_FILE).write_text("no moment")
    now_s = 115.0
    autoscaler.look()
    assert autoscaler.looks[-1].wanted == 3


# ---- simulated ----


@pytest.fixture(scope="module")
def spike() -> tuple[Stage, record.Records]:
    stage = load_stage("autoscaled")
    return stage, simulate(stage)


def test_every_request_of_a_spike_is_answered_or_told_so(spike: tuple[Stage, record.Records]) -> None:
    _, records = spike
    reasons = dict(records.requests["reason"].cast(pl.String).value_counts().iter_rows())
    assert set(reasons) == {"", "queue_full"}
    assert records.requests["replied_s"].null_count() == 0
    assert records.requests["replica"].n_unique() > 1


def test_replicas_serve_from_the_end_of_their_cold_start_until_they_have_answered(
    spike: tuple[Stage, record.Records],
) -> None:
    stage, records = spike
    assert stage.scaling is not None
    lives = records.replicas
    grown = lives.filter(pl.col("started_s") > 0.0)
    assert grown.height >= 3
    cold_s = stage.scaling.cold_start.total_s
    assert (grown["ready_s"] - grown["started_s"]).to_list() == pytest.approx([cold_s] * grown.height)
    sent = records.requests.join(lives.select("replica", "ready_s", "stopped_s"), on="replica")
    assert sent.height == records.requests.height
    assert sent.filter(
        (pl.col("gateway_in_s") < pl.col("ready_s")) | (pl.col("gateway_out_s") > pl.col("stopped_s"))
    ).is_empty()


def test_the_fleet_grows_with_the_spike_and_shrinks_after_it(spike: tuple[Stage, record.Records]) -> None:
    stage, records = spike
    rate: Any = stage.traffic.rate
    scaling: Any = stage.scaling
    looks = records.scaling
    before = looks.filter(pl.col("at_s") < rate.spike_start_s)
    assert set(before["wanted"]) == {1}
    first_s = looks.filter(pl.col("wanted") > 1)["at_s"].min()
    assert rate.spike_start_s < first_s <= rate.spike_start_s + scaling.scrape_interval_s + scaling.interval_s
    assert looks["wanted"].max() == scaling.max_replicas
    assert looks["wanted"][-1] == 1
    stays_s = rate.spike_start_s + rate.spike_duration_s + scaling.down.stabilisation_window_s
    assert stays_s - scaling.interval_s <= looks.filter(pl.col("wanted") > 1)["at_s"].max() <= stays_s + 3.0


def test_the_time_series_is_what_the_lives_say(spike: tuple[Stage, record.Records]) -> None:
    _, records = spike
    lives = records.replicas.iter_rows(named=True)
    spans = [(life["ready_s"], life["stopped_s"]) for life in lives]
    for look in records.scaling.iter_rows(named=True):
        serving = sum(ready_s <= look["at_s"] < stopped_s for ready_s, stopped_s in spans)
        assert look["ready"] <= serving  # those that drain answer what they have


def test_the_same_seed_gives_the_same_run(spike: tuple[Stage, record.Records]) -> None:
    stage, records = spike
    again = simulate(stage)
    for name in ("requests", "batches", "replicas", "scaling"):
        assert getattr(again, name).equals(getattr(records, name))


def test_an_autoscaler_that_wants_no_change_changes_nothing() -> None:
    stage = load_stage("load-balanced", {"traffic.duration_s": 10.0})
    keys = {"scaling.policy": "scheduled", "scaling.max_replicas": 2, "scaling.interval_s": 1.0}
    schedule = {"scaling.schedule": [{"at_s": 0.0, "replicas": 2}]}
    scaled = load_stage("load-balanced", {"traffic.duration_s": 10.0} | keys | schedule)
    plain, watched = simulate(stage), simulate(scaled)
    assert watched.requests.equals(plain.requests)
    assert watched.replicas.equals(plain.replicas)
    assert watched.scaling.height > 0 == plain.scaling.height


def _scheduled(*entries: tuple[float, int], **keys: Any) -> Stage:
    """The autoscaled stage with so many replicas from those moments on, and a cold start of 3 s."""
    stage = load_stage("autoscaled")
    table = stage.model_dump(exclude_none=True)
    table["scaling"] = {
        "policy": "scheduled",
        "min_replicas": 0,
        "max_replicas": 6,
        "interval_s": 1.0,
        "schedule": [{"at_s": at_s, "replicas": replicas} for at_s, replicas in entries],
        "cold_start": {"model_s": 3.0},
    }
    table["traffic"] = {"duration_s": 20.0, "rate": {"shape": "constant", "rate_rps": 40.0}} | keys
    for name in ("device", "alerts", "logs"):
        table.pop(name)
    return stage.__class__.model_validate(table | {"device": stage.device.model_dump()})


def test_one_that_is_not_needed_any_more_ends_in_its_cold_start() -> None:
    records = simulate(_scheduled((5.0, 4), (6.0, 2)))
    assert records.replicas.sort("replica").select("replica", "started_s", "ready_s").rows() == [
        (0, 0.0, 0.0),
        (1, 5.0, 8.0),
        (2, 5.0, None),
        (3, 5.0, None),
    ]
    ended_s = dict(records.replicas.select("replica", "stopped_s").iter_rows())
    assert (ended_s[2], ended_s[3]) == (6.0, 6.0)


def test_one_that_is_starting_when_the_run_ends_is_in_the_record() -> None:
    records = simulate(_scheduled((19.0, 2)))
    end_s = records.requests["replied_s"].max()
    late = records.replicas.filter(pl.col("replica") == 1).row(0, named=True)
    assert (late["started_s"], late["ready_s"], late["stopped_s"]) == (19.0, None, end_s)


def test_without_a_replica_requests_are_refused_until_one_is_back() -> None:
    records = simulate(_scheduled((5.0, 0), (10.0, 1)))
    gone = records.requests.filter(pl.col("reason") == "no_replica")
    assert gone["gateway_in_s"].min() == pytest.approx(5.0, abs=0.2)
    assert gone["gateway_in_s"].max() == pytest.approx(13.0, abs=0.2)
    outside = records.requests.filter((pl.col("scheduled_s") < 5.0) | (pl.col("scheduled_s") >= 13.0))
    assert set(outside["outcome"].cast(pl.String)) == {"ok"}


def test_a_closed_loop_is_scaled_too_and_comes_to_its_end() -> None:
    closed = {"loop": "closed", "users": 20, "think_time_s": 0.1, "rate": None}
    table = _scheduled((5.0, 3), (12.0, 1)).model_dump(exclude_none=True)
    table["traffic"] = {key: value for key, value in ({"duration_s": 20.0} | closed).items() if value is not None}
    records = simulate(Stage.model_validate(table))
    assert records.replicas.height == 3
    assert set(records.requests["outcome"].cast(pl.String)) == {"ok"}


def test_the_decisions_are_kept_with_the_record(spike: tuple[Stage, record.Records], tmp_path: Path) -> None:
    _, records = spike
    record.write(records, tmp_path)
    assert record.read(tmp_path).scaling.equals(records.scaling)


# ---- running ----

_PAGE = "".join(
    [
        "# TYPE rung_gateway_in_flight gauge\nrung_gateway_in_flight 7.0\n",
        "# TYPE rung_gateway_arrived counter\nrung_gateway_arrived_total 115.0\n",
        "# TYPE rung_gateway_requests_total counter\n",
        'rung_gateway_requests_total{outcome="ok",reason=""} 100.0\n',
        'rung_gateway_requests_total{outcome="shed",reason="no_replica"} 5.0\n',
        "# TYPE rung_gateway_request_seconds histogram\n",
        *(
            f'rung_gateway_request_seconds_bucket{{outcome="ok",le="{bound_s}"}} {n}.0\n'
            for n, bound_s in enumerate([*LATENCY_BOUNDS_S, "+Inf"])
        ),
        "# TYPE rung_gateway_outstanding_seconds counter\n",
        'rung_gateway_outstanding_seconds_total{replica="0"} 4.0\n',
        'rung_gateway_outstanding_seconds_total{replica="1"} 3.0\n',
        "# TYPE rung_gateway_replica_in_rotation gauge\n",
        'rung_gateway_replica_in_rotation{replica="0"} 1.0\nrung_gateway_replica_in_rotation{replica="1"} 0.0\n',
    ]
)
_OWN_PAGE = "\n".join(
    [
        "# TYPE rung_queue_depth gauge\nrung_queue_depth 2.0",
        "# TYPE rung_device_seconds histogram",
        'rung_device_seconds_bucket{le="+Inf"} 3.0\nrung_device_seconds_count 3.0\nrung_device_seconds_sum 1.5\n',
    ]
)


@contextmanager
def _telling(page: str) -> Iterator[str]:
    """A server that answers every GET with that page."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(PATIENCE_S)


def _launcher(gateway_url: str, metric: str, **urls: str) -> Any:
    stage = load_stage("autoscaled", {"scaling.metric": metric, "scaling.target": 0.5})
    replicas = [
        SimpleNamespace(number=number, url=url, state=state, restarts=restarts)
        for number, (url, state, restarts) in enumerate(
            [
                (urls.get("first", ""), "ready", 0),
                (urls.get("second", ""), "ready", 0),
                ("", "starting", 0),
                ("", "starting", 1),
                ("", "draining", 0),
                ("", "died", 0),
            ]
        )
    ]
    return SimpleNamespace(stage=stage, gateway=SimpleNamespace(url=gateway_url), replicas=replicas)


def test_a_scrape_reads_the_gateways_page() -> None:
    with _telling(_PAGE) as url:
        fleet = running.ScaledFleet(_launcher(url, "concurrency"))
        assert fleet.ready() == [0, 1]
        sample = fleet.sample()
    assert sample.arrived == 115.0  # three more than were answered or are inside: they have left
    assert sample.answers_within == tuple(float(n) for n in range(len(LATENCY_BOUNDS_S) + 1))
    assert sample.replicas == {0: ReplicaSample(4.0), 1: ReplicaSample(3.0)}
    assert fleet.ready() == [0]  # the gateway has the other out of rotation
    assert fleet.members() == [0, 1, 3, 5]
    assert fleet.starting() == [2]


def test_a_scrape_asks_the_replicas_for_what_only_they_know() -> None:
    with _telling(_PAGE) as url, _telling(_OWN_PAGE) as first, _telling("no page of metrics {") as second:
        sample = running.ScaledFleet(_launcher(url, "utilisation", first=first, second=second)).sample()
    assert sample.replicas == {0: ReplicaSample(4.0, 2.0, 1.5)}


@pytest.mark.parametrize("page", ["", "<html>{"])
def test_a_gateway_that_tells_nothing_leaves_all_as_it_was(page: str) -> None:
    with _telling(page) as url:
        pass
    assert running.ScaledFleet(_launcher(url, "concurrency")).sample().replicas is None
    with _telling(page or "{}") as url:
        assert running.ScaledFleet(_launcher(url, "concurrency")).sample().replicas is None


class Clients:
    """Threads that send one request after the other through a gateway, as many as wanted, and keep what came back."""

    def __init__(self, url: str) -> None:
        self.answers: list[tuple[int, str]] = []  # status, and what was said instead of an answer
        self.wanted = 0
        self._url = url
        self._threads: list[threading.Thread] = []

    def be(self, count: int) -> None:
        """From now on so many."""
        self.wanted = count
        for number in range(len(self._threads), count):
            self._threads.append(threading.Thread(target=self._send, args=(number,)))
            self._threads[-1].start()

    def end(self) -> None:
        self.wanted = 0
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def _send(self, number: int) -> None:
        content = json.dumps({"input": [[[0.0] * 8] * 8]})
        with httpx.Client(base_url=self._url, timeout=PATIENCE_S, trust_env=False) as client:
            while number < self.wanted:
                headers = {"content-type": "application/json"}
                answer = client.post("/predict", content=content, headers=headers)
                self.answers.append((answer.status_code, "" if answer.is_success else answer.text))


def _asking_replicas(launcher: ProcessLauncher) -> running.ScaledFleet:
    """The launcher's fleet, were it scaled by what only the replicas know."""
    stage = with_overrides(launcher.stage, {"scaling.metric": "utilisation", "scaling.target": 0.5})
    there: Any = SimpleNamespace(stage=stage, gateway=launcher.gateway, replicas=launcher.replicas)
    return running.ScaledFleet(there)


@pytest.mark.timeout(180)
def test_processes_come_with_the_load_and_go_with_it_and_no_request_is_lost(tmp_path: Path) -> None:
    overrides = {
        "scaling.max_replicas": 2,
        "scaling.target": 6.0,
        "scaling.interval_s": 0.25,
        "scaling.scrape_interval_s": 0.25,
        "scaling.window_s": 0.5,
        "scaling.down": {"stabilisation_window_s": 2.0, "period_s": 0.25},
        "scaling.cold_start": {"model_s": 1.0},
        "device.slowdown": 10.0,  # so that as many are under way with fewer a second
        # A replica that a loud host holds up is not ill: only the fleet's own comings and goings are looked at here.
        "gateway.probe_interval_s": 0.5,
        "gateway.unhealthy_after": 100,
        "gateway.eject_after": 100,
        "overload": True,
    }
    stage = load_stage("autoscaled", overrides)
    assert stage.scaling is not None
    with ProcessLauncher(stage, tmp_path) as launcher:
        autoscaler = running.Autoscaler(stage.scaling, running.ScaledFleet(launcher), tmp_path)
        clients = Clients(launcher.url)

        def until(replicas: int) -> None:
            """Upkeep goes on until there are so many, all ready."""
            deadline_s = time.monotonic() + 2 * PATIENCE_S
            while [r.state for r in launcher.replicas] != ["ready"] * replicas:
                assert time.monotonic() < deadline_s, [r.state for r in launcher.replicas]
                assert not launcher.look()
                autoscaler.look()
                time.sleep(0.02)

        def sample_of_both() -> Sample:
            """A scrape that found both; one that takes too long leaves a replica out."""
            deadline_s = time.monotonic() + PATIENCE_S
            while True:
                told = _asking_replicas(launcher).sample()
                if set(told.replicas or ()) == {0, 1}:
                    return told
                assert time.monotonic() < deadline_s, told

        try:
            clients.be(16)
            until(2)
            told = sample_of_both()
            clients.be(5)
            until(1)
        finally:
            clients.end()
        assert set(clients.answers) == {(200, "")}
        assert told.arrived >= told.answers_within[-1] > 0.0
        assert told.replicas is not None
        assert told.replicas[0].busy_s > 0.0
        first, second = launcher.lives()[:2]
        assert second.ready_s is not None and second.ready_s - second.started_s >= 1.0
        assert first.stopped_s is None
        assert second.stopped_s is not None


def test_the_decisions_of_a_run_are_cut_out_of_what_was_written(tmp_path: Path) -> None:
    assert scaling_rows.read(tmp_path, 0.0, 10.0).is_empty()
    looks = [Look(at_s, 2, 1, 1, None, "why") for at_s in (99.0, 101.0, 104.0, 111.0)]
    lines = "".join(json.dumps(look._asdict()) + "\n" for look in looks)
    (tmp_path / running.SCALING_FILE).write_text(lines.replace("\n", '\n{"at_s": 10\n', 1) + '{"at_s": 10')
    assert scaling_rows.read(tmp_path, 100.0, 10.0)["at_s"].to_list() == [1.0, 4.0]
