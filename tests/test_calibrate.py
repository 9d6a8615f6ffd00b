"""Calibration gives back what a run was made of: known costs in, simulated runs, the same costs out."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from loadtests import calibrate, costs
from loadtests.checks import SelfCheck
from loadtests.load import Loaded
from loadtests.printing import print_calibration
from simulator.device import open_device
from simulator.run import beyond_calibration, capacity_rps, simulate
from stages import catalogue
from stages.calibration import Calibration, GatewayCosts
from stages.fleet import Fleet, Gateway
from stages.records import Records
from stages.spec import Stage, device_label, load_stage, of_replica
from stages.traffic import Schedule
from tests.made import a_calibration, a_stage

pytestmark = pytest.mark.usefixtures("in_numpy")

SERVICE_S = {n: (0.010 + 0.001 * n,) for n in range(1, 5)}
SEND_S, WAKE_S, BETWEEN_S, REPLY_S, PER_ITEM_S = 0.0004, 0.00007, 0.00009, 0.0006, 0.0002
KNOWN = a_calibration(
    SERVICE_S,
    send_quantiles_s=(SEND_S,),
    wake_s=WAKE_S,
    between_batches_s=BETWEEN_S,
    reply_quantiles_s=(REPLY_S,),
    reply_per_item_s=PER_ITEM_S,
)
STAGE = a_stage(batching={"max_batch_size": 4, "batch_wait_timeout_s": 0.005}, admission={"max_queue_length": 64})


def fired(arrivals_s: list[float], wait_s: float) -> Records:
    """The record of these arrivals on a machine of the known costs."""
    stage = a_stage(batching={"max_batch_size": 4, "batch_wait_timeout_s": wait_s}, admission={"max_queue_length": 64})
    times_s = np.array(arrivals_s)
    return simulate(
        stage, Schedule(times_s, np.zeros(times_s.size, dtype=np.int64), times_s[-1] + 1), calibration=KNOWN
    )


@pytest.fixture(scope="module")
def sweep() -> Records:
    """Bursts of 1 to 4, and of 8, which are two batches one after the other."""
    sizes = [1, 2, 3, 4, 8] * 6
    return fired([0.2 * k for k, size in enumerate(sizes) for _ in range(size)], calibrate.GATHER_S)


@pytest.fixture(scope="module")
def low_load() -> Records:
    gaps_s = np.random.default_rng(5).exponential(0.05, 400)
    return fired(np.cumsum(gaps_s).tolist(), STAGE.batching.batch_wait_timeout_s)


def test_service_times_are_those_of_the_sweep(sweep: Records) -> None:
    found = {times.batch_size: times.mean_s for times in costs.service_times(sweep)}
    assert found == pytest.approx({n: q[0] for n, q in SERVICE_S.items()}, abs=1e-7)


def test_what_the_host_held_up_is_no_time_of_an_emulated_device(sweep: Records) -> None:
    """A fifth of the batches ends 5 ms late."""
    late_s = pl.when(pl.int_range(pl.len()) % 5 == 0).then(0.005).otherwise(0.0)
    disturbed = dataclasses.replace(sweep, batches=sweep.batches.with_columns(pl.col("finished_s") + late_s))
    given = {times.batch_size: times.mean_s for times in costs.service_times(sweep)}
    assert {t.batch_size: t.mean_s for t in costs.service_times(disturbed, emulated=True)} == pytest.approx(given)
    real = {t.batch_size: t.mean_s for t in costs.service_times(disturbed)}
    assert sum(real.values()) > sum(given.values()) + 0.001, "a real device may really take longer"


@pytest.mark.parametrize(
    ("sizes", "found"),
    [([1] * 6 + [2] * 2 + [3], [1, 3]), ([1] + [2] * 6 + [3] * 5, [1, 2, 3]), ([1, 2, 3] * 4, [1, 3]), ([2], [2])],
)
def test_a_size_seen_too_rarely_is_left_out_unless_others_lie_between_it_and_the_rest(
    sizes: list[int], found: list[int]
) -> None:
    rare = fired([0.2 * k for k, size in enumerate(sizes) for _ in range(size)], calibrate.GATHER_S)
    assert [times.batch_size for times in costs.service_times(rare)] == found


def test_host_costs_are_found(sweep: Records, low_load: Records) -> None:
    found = costs.host_costs(STAGE, sweep, low_load)
    assert found.send_quantiles_s == pytest.approx([SEND_S] * costs.QUANTILES, abs=1e-6)
    assert found.reply_quantiles_s == pytest.approx([REPLY_S] * costs.QUANTILES, abs=1e-6)
    assert found.wake_s == pytest.approx(WAKE_S, abs=1e-6)
    assert found.between_batches_s == pytest.approx(BETWEEN_S, abs=1e-6)
    assert found.reply_per_item_s == pytest.approx(PER_ITEM_S, abs=1e-6)


def test_a_prediction_from_the_found_costs_is_the_run(sweep: Records, low_load: Records) -> None:
    """The circle closes: calibrate on one run, predict another, and find it request by request."""
    found = Calibration(
        **(
            KNOWN.model_dump()
            | {
                "service_times": costs.service_times(sweep),
                "host": costs.host_costs(STAGE, sweep, low_load),
            }
        )
    )
    times_s = np.cumsum(np.random.default_rng(7).exponential(1 / 200, 2000))
    schedule = Schedule(times_s, np.zeros(times_s.size, dtype=np.int64), float(times_s[-1]) + 1)
    truth = simulate(STAGE, schedule, calibration=KNOWN).requests
    predicted = simulate(STAGE, schedule, calibration=found).requests
    assert np.abs((truth["replied_s"] - predicted["replied_s"]).to_numpy()).max() < 1e-4


# ---- with a gateway ------------------------------------------------------------------------------------------

KNOWN_GATEWAY = GatewayCosts(
    send_quantiles_s=(0.0009,),
    forward_quantiles_s=(0.0008,),
    back_quantiles_s=(0.0007,),
    reply_quantiles_s=(0.0005,),
    busy_s=0.0006,
)
FRONTED = a_stage(
    batching={"max_batch_size": 4, "batch_wait_timeout_s": 0.005},
    admission={"max_queue_length": 64},
    gateway={"policy": "round-robin"},
)


def fronted(gaps_s: np.ndarray, stage: Stage = FRONTED, gateway: GatewayCosts = KNOWN_GATEWAY) -> Records:
    """The record of a run through a gateway of those costs."""
    times_s = np.cumsum(gaps_s)
    schedule = Schedule(times_s, np.zeros(times_s.size, dtype=np.int64), float(times_s[-1]) + 1)
    return simulate(stage, schedule, calibration=KNOWN.model_copy(update={"gateway": gateway}))


def test_gateway_costs_are_found() -> None:
    light = fronted(np.random.default_rng(5).exponential(0.05, 400))
    found = costs.gateway_costs(light, KNOWN_GATEWAY.busy_s)
    for hop in ("send", "forward", "back", "reply"):
        quantiles_s = getattr(found, f"{hop}_quantiles_s")
        assert len(quantiles_s) == costs.QUANTILES
        assert quantiles_s[0] == pytest.approx(getattr(KNOWN_GATEWAY, f"{hop}_quantiles_s")[0], abs=1e-6)
        assert np.median(quantiles_s) == pytest.approx(getattr(KNOWN_GATEWAY, f"{hop}_quantiles_s")[0], abs=1e-6)
    assert found.busy_s == KNOWN_GATEWAY.busy_s


def test_a_gateway_that_tells_no_times_is_one_hop_each_way() -> None:
    light = fronted(np.random.default_rng(5).exponential(0.05, 400))
    silent = light.requests.with_columns(gateway_in_s=pl.lit(None, pl.Float64), gateway_out_s=pl.lit(None, pl.Float64))
    found = costs.gateway_costs(dataclasses.replace(light, requests=silent), 0.0)
    assert found.send_quantiles_s == found.reply_quantiles_s == (0.0,)
    assert np.median(found.forward_quantiles_s) == pytest.approx(0.0017, abs=1e-6)
    assert np.median(found.back_quantiles_s) == pytest.approx(0.0012, abs=1e-6)


def test_a_prediction_of_a_fleet_from_one_replica_at_low_load_is_the_run() -> None:
    """Calibrate at 20 requests a second before one replica, predict 600 before three: request by request."""
    found = costs.gateway_costs(fronted(np.random.default_rng(5).exponential(0.05, 400)), KNOWN_GATEWAY.busy_s)
    fleet = FRONTED.model_copy(update={"fleet": Fleet(replicas=3)})
    gaps_s = np.random.default_rng(7).exponential(1 / 600, 3000)
    truth, predicted = (fronted(gaps_s, fleet, gateway).requests for gateway in (KNOWN_GATEWAY, found))
    off_s = np.abs((truth["replied_s"] - predicted["replied_s"]).to_numpy())
    assert np.quantile(off_s, 0.9) < 5e-4
    assert truth["replica"].n_unique() == 3


# ---- with a queue ----

QUEUED = a_stage(
    batching={"max_batch_size": 4, "batch_wait_timeout_s": 0.005},
    queue={"lease_s": 60.0, "request_reply_timeout_s": 60.0},
)
# As of a queue on a disk: a result is seen milliseconds after its batch, and the next claim waits for its commit.
KNOWN_QUEUE = KNOWN.model_copy(
    update={
        "host": KNOWN.host.model_copy(update={"between_batches_s": 0.004}),
        "gateway": KNOWN_GATEWAY.model_copy(update={"of": "jobs API", "back_quantiles_s": (0.012,)}),
    }
)


def through_a_queue(times_s: np.ndarray, calibration: Calibration = KNOWN_QUEUE, wait_s: float = 0.005) -> Records:
    """The record of a run through a queue on a machine of those costs."""
    batching = QUEUED.batching.model_copy(update={"batch_wait_timeout_s": wait_s})
    schedule = Schedule(times_s, np.zeros(times_s.size, dtype=np.int64), float(times_s[-1]) + 1)
    return simulate(QUEUED.model_copy(update={"batching": batching}), schedule, calibration=calibration)


def test_a_prediction_of_a_queue_from_its_sweep_and_low_load_is_the_run() -> None:
    """The circle closes for time to result, too, idle and loaded: what the API takes is found, and used."""
    sizes = [1, 2, 3, 4, 8] * 6
    sweep = through_a_queue(
        np.array([0.2 * k for k, size in enumerate(sizes) for _ in range(size)]), wait_s=calibrate.GATHER_S
    )
    light = through_a_queue(np.cumsum(np.random.default_rng(5).exponential(0.05, 400)))
    host = costs.host_costs(QUEUED, sweep, light)
    assert host.between_batches_s == pytest.approx(0.004, abs=1e-6), "longer than any replica's"
    door = costs.gateway_costs(light, KNOWN_GATEWAY.busy_s, "jobs API")
    assert np.median(door.back_quantiles_s) == pytest.approx(0.012, abs=1e-6)
    assert door.of == "jobs API"
    update = {"service_times": costs.service_times(sweep), "host": host, "gateway": door}
    found = KNOWN_QUEUE.model_copy(update=update)
    for gap_s in (0.05, 1 / 150):
        times_s = np.cumsum(np.random.default_rng(7).exponential(gap_s, 1500))
        truth, predicted = (through_a_queue(times_s, each).requests for each in (KNOWN_QUEUE, found))
        took_s, ours_s = ((each["replied_s"] - each["scheduled_s"]).to_numpy() for each in (truth, predicted))
        for percent in (50, 95, 99):
            assert np.percentile(ours_s, percent) == pytest.approx(np.percentile(took_s, percent), rel=0.02)


def test_a_calibration_of_another_door_is_told() -> None:
    queued = load_stage("queued")
    assert any("without a jobs API" in note for note in beyond_calibration(queued, KNOWN))
    assert not any("jobs API" in note for note in beyond_calibration(queued, KNOWN_QUEUE))
    other = KNOWN.model_copy(update={"gateway": KNOWN_GATEWAY})
    assert any("Calibrated through a gateway" in note for note in beyond_calibration(queued, other))
    told = beyond_calibration(load_stage("load-balanced"), KNOWN_QUEUE)
    assert any("Calibrated through a jobs API" in note for note in told)


def test_the_calibration_of_a_queue_is_kept_for_its_broker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RUNG_RUNS", str(tmp_path))
    keys: tuple[dict[str, object], ...] = ({}, {"queue.broker": "redis"}, {"queue.fsync": "interval"})
    assert len({calibrate.kept_path(load_stage("queued", each), short=False) for each in keys}) == 3
    more = {"queue.lease_s": 20.0, "scaling": None, "fleet.replicas": 3}
    assert calibrate.kept_path(load_stage("queued", more), False) == calibrate.kept_path(load_stage("queued"), False)


def test_a_queue_is_calibrated_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweep and low load through its jobs API, with its broker on the disk: few and short runs, rough figures."""
    monkeypatch.setattr(calibrate, "FOREIGN_CPU_MAX_OF_ATTEMPT", (1.0,))
    monkeypatch.setattr(calibrate, "IDLE_S", 0.5)
    stage = load_stage("queued", {"batching.max_batch_size": 2, "device.slowdown": 2.0, "overload": True})
    made = calibrate.calibrate(stage, tmp_path, rounds=6, low_load_duration_s=2.0)
    assert made.gateway is not None
    assert made.gateway.of == "jobs API"
    assert made.gateway.busy_s > 0.0
    for hop in ("send", "forward", "back", "reply"):
        assert np.median(getattr(made.gateway, f"{hop}_quantiles_s")) > 0.0
    # A result is on the disk before it is seen, and looked for every ten milliseconds.
    assert np.median(made.gateway.back_quantiles_s) > np.median(made.gateway.forward_quantiles_s)
    assert 0.0 < capacity_rps(stage, made) < 1.01 * 2 / made.service_times[-1].mean_s


HIT_BUSY_S, HIT_REPLY_S = KNOWN_GATEWAY.busy_s / 2, 0.0006  # as long as any other request takes until it is read
CACHED = a_stage(
    batching={"max_batch_size": 4, "batch_wait_timeout_s": 0.005},
    admission={"max_queue_length": 64},
    gateway={"policy": "round-robin"},
    cache={"policy": "lru"},
)
KNOWN_CACHE = KNOWN_GATEWAY.model_copy(update={"hit_busy_s": HIT_BUSY_S, "hit_reply_quantiles_s": (HIT_REPLY_S,)})


def test_the_costs_of_a_kept_answer_are_found() -> None:
    """All requests are for one item: the first is computed, the others are kept, and those count."""
    alike = fronted(np.random.default_rng(5).exponential(0.05, 400), CACHED, KNOWN_CACHE)
    assert (alike.requests["cache"] == "hit").sum() >= 390
    found = costs.with_hits(KNOWN_GATEWAY, alike, 0.00025)
    assert found.hit_busy_s == 0.00025
    assert len(found.hit_reply_quantiles_s) == costs.QUANTILES
    assert np.median(found.hit_reply_quantiles_s) == pytest.approx(HIT_REPLY_S, abs=1e-6)
    assert found.forward_quantiles_s == KNOWN_GATEWAY.forward_quantiles_s


def test_kept_answers_tell_nothing_of_the_hops_to_replicas() -> None:
    gaps_s = np.random.default_rng(5).exponential(0.05, 400)
    times_s = np.cumsum(gaps_s)
    schedule = Schedule(times_s, np.arange(times_s.size) % 200, float(times_s[-1]) + 1)
    half = simulate(CACHED, schedule, calibration=KNOWN.model_copy(update={"gateway": KNOWN_CACHE}))
    assert 150 < int((half.requests["cache"] == "hit").sum()) <= 200
    found = costs.gateway_costs(half, 0.0)
    assert np.median(found.forward_quantiles_s) == pytest.approx(KNOWN_GATEWAY.forward_quantiles_s[0], abs=1e-6)
    assert np.median(found.back_quantiles_s) == pytest.approx(KNOWN_GATEWAY.back_quantiles_s[0], abs=1e-6)


def test_without_any_kept_answer_the_costs_stay() -> None:
    """The place for answers was down, say."""
    none = fronted(np.random.default_rng(5).exponential(0.05, 40), FRONTED)
    assert costs.with_hits(KNOWN_GATEWAY, none, 0.1) == KNOWN_GATEWAY


def test_one_replica_of_each_kind_is_calibrated_and_never_a_fleet() -> None:
    profiles = ["t4-resnet50-fp16-pytorch", "t4-resnet50-fp32-pytorch"]
    fleet = {"fleet.replicas": 4, "fleet.profiles": profiles, "overload": True, "gateway.policy": "sticky"}
    first, second = calibrate.kinds(load_stage("load-balanced", fleet))
    assert [kind.device.profile for kind in (first, second)] == profiles
    for kind in (first, second):
        single = calibrate.alone(kind)
        assert (single.gateway, single.cache, single.fleet, single.device) == (None, None, Fleet(), kind.device)
    before = calibrate.before_one(first)
    assert before.fleet == Fleet()
    assert before.device == first.device
    assert before.gateway == Gateway(), "whom it chooses does not matter with one replica"
    assert len(calibrate.kinds(load_stage("micro-batched"))) == 1


def test_kept_calibration_depends_on_devices_and_engine_and_not_on_the_policy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RUNG_RUNS", str(tmp_path))

    def path(**overrides: object) -> Path:
        changes = {name.replace("__", "."): value for name, value in overrides.items()}
        return calibrate.kept_path(load_stage("load-balanced", {"overload": True} | changes), short=False)

    assert path(gateway__policy="sticky") == path(gateway__max_in_flight=2000) == path(fleet__replicas=4) == path()
    unequal = ["t4-resnet50-fp16-pytorch", "t4-resnet50-fp32-pytorch"]
    kept = path(cache__policy="lru")
    assert kept == path(cache__policy="lru", cache__max_bytes=4096)
    assert len({kept, path(), path(cache__policy="lfu"), path(cache__policy="lru", cache__store="redis")}) == 4
    assert path(gateway__engine="nginx") != path() != path(fleet__profiles=unequal)
    assert path(fleet__profiles=unequal) == path(fleet__profiles=unequal, fleet__replicas=6)


class Fronted:
    """A launcher whose gateway is this process, or that has none."""

    url, pids = "", ()

    def __init__(self, pid: int | None) -> None:
        self.gateway = None if pid is None else SimpleNamespace(pid=pid)


def test_the_gateways_processor_time_is_what_requests_took_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of three runs, all on a busy machine, the quietest counts: 2.5 s for 400 requests, half a second of it idle."""
    light = fronted(np.random.default_rng(5).exponential(0.05, 400))
    clock_s, cpu_s = iter([0.0, 10.0] * 3), iter([1.0, 9.0, 10.0, 12.5, 20.0, 29.0])
    shares = iter([0.5, 0.2, 0.3])
    monkeypatch.setattr(calibrate, "FOREIGN_CPU_MAX_OF_ATTEMPT", (0.03, 0.1, 0.1))
    monkeypatch.setattr(calibrate, "time", SimpleNamespace(monotonic=lambda: next(clock_s)))
    monkeypatch.setattr(calibrate, "_gateway_cpu_s", lambda launcher: next(cpu_s))
    quiet = SelfCheck(0.0, 0.0, 1.0, 0.1, 0.0)
    monkeypatch.setattr(
        calibrate,
        "fire",
        lambda *_, **__: Loaded(light, dataclasses.replace(quiet, foreign_cpu_share=next(shares))),
    )
    found = calibrate._fire_in_quiet(FRONTED, Fronted(1), tmp_path, lambda _: None, idle_share=0.05)  # type: ignore[arg-type]
    assert found.gateway_busy_s == pytest.approx(2.0 / 400)


def test_processor_time_is_asked_of_the_gateway_and_is_nothing_without_one() -> None:
    assert calibrate._gateway_cpu_s(Fronted(os.getpid())) > 0.0  # type: ignore[arg-type]
    assert calibrate._gateway_cpu_s(Fronted(None)) == 0.0  # type: ignore[arg-type]
    assert calibrate._gateway_cpu_s(Fronted(2**22 + 1)) == 0.0, "it has ended"  # type: ignore[arg-type]


def test_an_unequal_fleet_is_calibrated_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind alone, then one replica behind the gateway, then its cache: few and short runs, rough figures."""
    monkeypatch.setattr(calibrate, "FOREIGN_CPU_MAX_OF_ATTEMPT", (1.0,))
    monkeypatch.setattr(calibrate, "IDLE_S", 0.5)
    profiles = ["t4-resnet50-fp16-pytorch", "a100-resnet50-tf32-tensorflow"]
    fleet = {"fleet.profiles": profiles, "overload": True, "batching.max_batch_size": 2, "device.slowdown": 2.0}
    stage = load_stage("load-balanced", fleet | {"cache.policy": "lru"})
    made = calibrate.calibrate(stage, tmp_path, rounds=12, low_load_duration_s=2.0)
    first, second = (device_label(of_replica(stage, number)) for number in range(2))
    assert (made.device, list(made.other_devices)) == (first, [second])
    for number, label in enumerate((first, second)):
        profile = catalogue.profiles()[profiles[number]]
        for times in made.times_of(label):
            assert times.mean_s >= 2.0 * profile.service_time_s(times.batch_size)
        # On a busy machine every single request may have met another.
        assert [times.batch_size for times in made.times_of(label)][-1] == 2
    assert made.gateway is not None
    assert made.gateway.busy_s > 0.0
    for hop in ("send", "forward", "back", "reply"):
        assert np.median(getattr(made.gateway, f"{hop}_quantiles_s")) > 0.0
    assert made.gateway.hit_busy_s is not None
    assert made.gateway.hit_busy_s > 0.0
    assert np.median(made.gateway.hit_reply_quantiles_s) > 0.0
    assert capacity_rps(stage, made) > 0.0


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, [1]), (3, [1, 2, 3]), (8, list(range(1, 9))), (32, [*range(1, 9), 12, 18, 27, 32])]
)
def test_sweep_sizes(largest: int, sizes: list[int]) -> None:
    assert calibrate.sweep_sizes(largest) == sizes


def test_kept_under_what_it_depends_on(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("RUNG_RUNS", str(tmp_path))
    path = calibrate.kept_path(STAGE, short=False)
    larger = a_stage(batching={"max_batch_size": 8, "batch_wait_timeout_s": 0.005})
    busier = STAGE.model_copy(update={"traffic": STAGE.traffic.model_copy(update={"seed": 99})})
    assert calibrate.kept_path(busier, short=False) == path
    assert calibrate.kept_path(STAGE, short=True) != path
    assert calibrate.kept_path(larger, short=False) != path


def test_an_emulated_device_takes_the_times_of_its_own_sweep_only() -> None:
    stage = load_stage("single-vm")
    profile_s = catalogue.profiles()[str(stage.device.profile)].service_time_s(1)
    own = KNOWN.model_copy(update={"device": device_label(stage)})
    assert open_device(stage, own).service_time_s(1) == SERVICE_S[1][0]
    assert open_device(stage, KNOWN).service_time_s(1) == profile_s
    assert open_device(stage).service_time_s(1) == profile_s


def test_what_is_printed_calls_the_outermost_quantiles_by_their_name(capsys: pytest.CaptureFixture[str]) -> None:
    print_calibration(KNOWN)
    heading = next(line for line in capsys.readouterr().out.splitlines() if "batch size" in line)
    assert heading.split("┃")[-3:-1] == [" p0.5   ", " p99.5  "]
