"""Versions on their way into a stage: the alias is resolved, the digest checked, and both worlds go by the facts."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from loadtests.calibrate import kept_path
from loadtests.payloads import crash_positions, make_payloads
from reference_apps import device as running_device
from reference_apps.decoding import decode, input_bytes
from reference_apps.device import Device
from reference_apps.launchers.launcher import ASKED_FILE
from reference_apps.launchers.member import LaunchError
from reference_apps.launchers.process import ProcessLauncher
from reference_apps.models import load_inputs, load_model
from reference_apps.models.crashing import CrashError, Crashing
from reference_apps.registry import WEIGHTS, Registry, pinned
from reference_apps.replica import Replica
from reference_apps.restarting import rolling
from simulator import device as simulated_device
from simulator.run import beyond_calibration, capacity_rps, simulate
from stages.capacity import fleet_capacity
from stages.policies.crashing import crashes, item_position, position
from stages.problems import StageError
from stages.records import Records
from stages.spec import Model, Stage, load_stage, parse_stage, stage_toml
from stages.traffic import Schedule
from tests.conftest import PATIENCE_S
from tests.made import a_calibration, a_stage
from tests.versions import publish, published

RAW = {"content-type": "application/octet-stream", "x-rung-shape": "1x8x8"}


def a_version(root: Path, name: str = "champion", **keys: Any) -> dict[str, Any]:
    """Overrides of a stage that has a version answer."""
    return {"model.version": name, "model.registry": str(root), "overload": True} | keys


# ---- from the alias to the version ----


def test_pinning_resolves_the_alias_and_brings_the_facts(tmp_path: Path) -> None:
    registry = published(tmp_path, service_time_factor=3.0, metrics={"accuracy": 0.75})
    stage = load_stage("single-vm", a_version(tmp_path, "champion"))
    first = pinned(stage)
    assert (first.model.version, first.model.registry, first.model.known.service_time_factor) == ("1", str(tmp_path), 1)
    registry.set_alias("digits", "champion", "2")
    assert pinned(first) is first
    second = pinned(stage)
    assert second.model.version == "2"
    assert (second.model.known.service_time_factor, second.model.known.accuracy) == (3.0, 0.75)
    (tmp_path / "stage.toml").write_text(stage_toml(second))
    assert load_stage(tmp_path / "stage.toml") == second
    assert pinned(load_stage("single-vm")) == load_stage("single-vm")


def test_facts_of_the_stage_stand(tmp_path: Path) -> None:
    published(tmp_path, service_time_factor=3.0)
    asked = a_version(tmp_path, "2", **{"model.facts": {"crash_share": 0.5}})
    known = pinned(load_stage("single-vm", asked)).model.known
    assert (known.service_time_factor, known.crash_share) == (1.0, 0.5)


def test_a_version_that_is_too_slow_for_the_stage_is_told_when_it_is_pinned(tmp_path: Path) -> None:
    published(tmp_path, service_time_factor=3.0)
    stage = load_stage("single-vm", a_version(tmp_path, "2") | {"overload": False})
    with pytest.raises(StageError, match=r"capacity of 26\.3 requests per second \(.*, a model 3 times slower"):
        pinned(stage)


@pytest.mark.parametrize("damage", ["a version that is not there", "damaged weights"])
def test_what_cannot_be_served_is_told_before_anything_is_started(tmp_path: Path, damage: str) -> None:
    registry = published(tmp_path / "registry")
    name = "3"
    if damage == "damaged weights":
        name = "2"
        weights = registry.load("digits", name).weights
        weights.chmod(0o644)
        weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    stage = load_stage("single-vm", a_version(registry.root, name))
    said = "must be a version or an alias" if name == "3" else f"2/{WEIGHTS}: must have the digest"
    for refusing in (pinned, lambda stage: load_model(stage.model, "cpu")):
        with pytest.raises(StageError, match=said):
            refusing(stage)
    with pytest.raises(LaunchError, match=said):
        ProcessLauncher(stage, tmp_path / "run")


def test_a_model_out_of_the_registry_has_its_weights_and_names_its_version(tmp_path: Path) -> None:
    registry = published(tmp_path)
    for name in ("1", "2"):
        model = load_model(Model(name="digits", version=name, registry=str(tmp_path)), "cpu")
        by_path = load_model(Model(name="digits", weights=str(registry.load("digits", name).weights)), "cpu")
        inputs = model.examples(20, seed=1)
        assert model.version == name
        assert model.predict(inputs) == by_path.predict(inputs)
        assert {answer["label"] for answer in model.predict(inputs)} == {int(name)}
    assert load_model(Model(name="xor"), "cpu").version == "1"


def test_weights_that_do_not_fit_are_told(tmp_path: Path) -> None:
    publish(Registry(tmp_path), "x").model_dump()
    folder = tmp_path / "xor"
    (tmp_path / "digits").rename(folder)
    metadata = folder / "x" / "metadata.json"
    metadata.chmod(0o644)
    metadata.write_text(metadata.read_text().replace('"model": "digits"', '"model": "xor"'))
    with pytest.raises(StageError, match="in the file, but xor has no such layer"):
        load_model(Model(name="xor", version="x", registry=str(tmp_path)), "cpu")


# ---- slower, in both worlds ----


@pytest.mark.parametrize("slowdown", [1.0, 8.0])
def test_a_slower_version_takes_as_long_on_both_emulated_devices(slowdown: float) -> None:
    facts = {"service_time_factor": 3.0}
    stage = load_stage("micro-batched", {"model.facts": facts, "device.slowdown": slowdown, "overload": True})
    plain = simulated_device.open_device(load_stage("micro-batched", {"device.slowdown": slowdown, "overload": True}))
    running = running_device.open_device(stage, load_model(Model(name="digits"), "cpu"))
    simulated = simulated_device.open_device(stage)
    assert running.service_time_s is not None
    for size in range(1, 9):
        assert running.service_time_s(size) == simulated.service_time_s(size)
        assert simulated.service_time_s(size) == pytest.approx(3 * plain.service_time_s(size))
    assert running.label == simulated.label == plain.label


class Clock:
    """A monotonic clock that goes on when somebody sleeps, and while a model computes."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Takes:
    """A model that computes for a second, and fails where it is told to."""

    def __init__(self, clock: Clock, fails: bool) -> None:
        self.clock, self.fails = clock, fails

    def predict(self, inputs: np.ndarray) -> list[dict[str, Any]]:
        self.clock.sleep(1.0)
        if self.fails:
            raise RuntimeError("no such layer")
        return [{} for _ in inputs]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("pace_s", [None, 6.0])
def test_a_batch_takes_its_time_whether_it_fails_or_not(
    monkeypatch: pytest.MonkeyPatch, fails: bool, pace_s: float | None
) -> None:
    clock = Clock()
    monkeypatch.setattr(running_device, "time", clock)
    monkeypatch.setattr(running_device, "SPIN_S", 0.0)
    pace = None if pace_s is None else lambda _: pace_s
    device = Device("cpu", Takes(clock, fails), pace, 3.0)
    device.slow(2.0)
    if fails:
        with pytest.raises(RuntimeError):
            device.run([np.ones(2, np.float32)])
    else:
        device.run([np.ones(2, np.float32)])
    # A timed device: a second, times 3 of the model, times 2 of the drill. The other's pace has the model in it.
    assert clock.now_s - 100.0 == pytest.approx(6.0 if pace_s is None else 2 * pace_s)
    assert device.overruns == 0


def test_a_calibration_is_of_the_device_and_predictions_add_the_version(tmp_path: Path, runs: Path) -> None:
    published(tmp_path, service_time_factor=3.0)
    plain, slower = load_stage("single-vm"), pinned(load_stage("single-vm", a_version(tmp_path, "2")))
    assert kept_path(slower, short=True) == kept_path(plain, short=True)
    calibration = a_calibration({1: (0.01, 0.02)})
    found = {}
    for name, facts in (("plain", None), ("slower", {"service_time_factor": 2.0})):
        stage = a_stage(model={"facts": facts})
        found[name] = simulate(stage, evenly(50), calibration=calibration)
        assert capacity_rps(stage, calibration) == pytest.approx(1 / (0.015 * (2 if facts else 1)))
    took = [(run.batches["finished_s"] - run.batches["started_s"]).to_numpy() for run in found.values()]
    assert took[1] == pytest.approx(2 * took[0])


def test_the_capacity_of_a_stage_has_the_factor_in_it() -> None:
    stage = load_stage("load-balanced", {"model.facts": {"service_time_factor": 4.0}, "overload": True})
    found = fleet_capacity(stage.device, stage.batching, stage.fleet, stage.model.known.service_time_factor)
    plain = fleet_capacity(stage.device, stage.batching, stage.fleet)
    assert found is not None and plain is not None
    assert found.rps == pytest.approx(plain.rps / 4)
    assert "a model 4 times slower" in str(found)


# ---- crashing, in both worlds ----


def evenly(count: int, gap_s: float = 1.0, items: list[int] | None = None) -> Schedule:
    """Requests at even gaps, each for an item of its own, unless `items` says for which."""
    wanted = np.arange(count) if items is None else np.array(items)
    return Schedule(gap_s * np.arange(1, count + 1), wanted, gap_s * (count + 1))


@given(of=st.binary(max_size=300), share=st.floats(0.0, 1.0))
def test_an_input_crashes_always_or_never_and_no_more_share_lets_it_go(of: bytes, share: float) -> None:
    where = position(of)
    assert 0.0 <= where < 1.0
    assert position(of) == where
    assert not crashes(where, 0.0) and crashes(where, 1.0)
    if crashes(where, share / 2):
        assert crashes(where, share)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5])
def test_about_the_share_of_all_inputs_crashes(share: float) -> None:
    """Within five deviations of the binomial: a right one is outside once in two million."""
    rng, count = np.random.default_rng(11), 8_000
    found = sum(crashes(position(rng.bytes(256)), share) for _ in range(count))
    assert abs(found - share * count) < 5 * (count * share * (1 - share)) ** 0.5


def test_a_crashing_model_fails_on_its_inputs_and_on_no_others() -> None:
    model = load_model(Model.model_validate({"name": "digits", "facts": {"crash_share": 0.2}}), "cpu")
    plain = load_model(Model(name="digits"), "cpu")
    assert isinstance(model, Crashing)
    inputs = plain.examples(100, seed=3)
    assert np.array_equal(model.examples(100, seed=3), inputs)
    bad = [crashes(position(input_bytes(each)), 0.2) for each in inputs]
    assert 5 < sum(bad) < 40
    for each, fails in zip(inputs, bad, strict=True):
        if fails:
            with pytest.raises(CrashError, match="version 1 of digits fails on 1 of these 1 inputs"):
                model.predict(each[np.newaxis])
        else:
            assert model.predict(each[np.newaxis]) == plain.predict(each[np.newaxis])
    with pytest.raises(CrashError, match=f"fails on {sum(bad)} of these 100 inputs"):
        model.predict(inputs)


@pytest.mark.parametrize("input_format", ["raw", "json", "png"])
def test_a_prediction_has_the_items_crash_that_the_running_version_crashes_on(input_format: str) -> None:
    changes = {"model.facts": {"crash_share": 0.1}, "traffic.items.count": 700, "traffic.input_format": input_format}
    stage = load_stage("single-vm", changes)
    found, payloads, model = crash_positions(stage), make_payloads(stage), load_inputs(stage.model)
    for item in (0, 5, 255, 256, 699):
        shape = payloads.headers.get("x-rung-shape", "")
        decoded: Any = decode(model, payloads.headers["content-type"], shape, payloads.body(item))
        assert found(item) == position(input_bytes(decoded))
    # A comment makes a file another one, and no other picture.
    pictures = 700 if input_format != "png" else len(payloads.bodies)
    assert len({found(item) for item in range(700)}) == pictures
    assert crash_positions(load_stage("single-vm")) is item_position


def reasons(records: Records) -> list[str]:
    return records.requests["reason"].cast(pl.String).to_list()


def crashing_stage(share: float, **tables: Any) -> Stage:
    return a_stage(model={"facts": {"crash_share": share}}, **tables)


@pytest.mark.parametrize("door", [{}, {"gateway": {"eject_after": 1000}}], ids=["alone", "behind a gateway"])
@pytest.mark.parametrize("loop", ["open", "closed"])
def test_the_simulated_replica_fails_on_the_items_below_the_share(door: dict[str, Any], loop: str) -> None:
    traffic = {} if loop == "open" else {"loop": "closed", "rate": None, "users": 3, "duration_s": 30.0}
    stage = crashing_stage(0.3, **door, traffic=traffic)
    schedule = evenly(200) if loop == "open" else None
    records = simulate(stage, schedule, calibration=a_calibration({1: (0.25,)}))
    items = records.requests["item"].to_list()
    assert reasons(records) == ["model_error" if item_position(item) < 0.3 else "" for item in items]
    assert 0 < reasons(records).count("model_error") < len(items)
    failed = records.requests.filter(pl.col("reason") == "model_error")
    assert failed["outcome"].cast(pl.String).unique().to_list() == ["failed"]
    other = simulate(stage, schedule, calibration=a_calibration({1: (0.25,)}), crash_position=lambda _: 0.9)
    assert set(reasons(other)) == {""}


def test_a_simulated_batch_that_fails_is_run_again_one_by_one() -> None:
    stage = crashing_stage(0.5, batching={"max_batch_size": 4, "batch_wait_timeout_s": 10.0})
    calibration = a_calibration({size: (0.5 + 0.25 * size,) for size in (1, 2, 3, 4)})
    schedule = Schedule(np.full(8, 1.0), np.array([0, 1, 2, 3, 4, 4, 4, 4]), 2.0)
    positions = {0: 0.9, 1: 0.4, 2: 0.9, 3: 0.1, 4: 0.9}
    records = simulate(stage, schedule, calibration=calibration, crash_position=lambda item: positions[int(item)])
    took = (records.batches["finished_s"] - records.batches["started_s"]).to_list()
    assert took == [1.5 + 4 * 0.75, 1.5]
    assert reasons(records) == ["", "model_error", "", "model_error", "", "", "", ""]
    alone = simulate(crashing_stage(1.0), evenly(3, gap_s=9.0), calibration=calibration, crash_position=lambda _: 0.0)
    assert (alone.batches["finished_s"] - alone.batches["started_s"]).to_list() == [0.75] * 3


def test_failures_alone_change_nobody_elses_times() -> None:
    """One request at a time: one that fails takes as long as one that does not, and nothing is run again."""
    found = [simulate(load_stage("single-vm", {"model.facts": {"crash_share": share}})) for share in (0.0, 0.2)]
    columns = pl.all().exclude("outcome", "reason")
    assert_frame_equal(*(records.requests.select(columns) for records in found))
    assert reasons(found[0]).count("model_error") == 0 < reasons(found[1]).count("model_error")


def test_where_a_prediction_leaves_crashes_out_it_says_so() -> None:
    stage = load_stage("queued", {"model.facts": {"crash_share": 0.1}})
    assert any("never fail" in note for note in beyond_calibration(stage, a_calibration({1: (1.0,)})))
    assert not any("never fail" in n for n in beyond_calibration(load_stage("queued"), a_calibration({1: (1.0,)})))


# ---- served ----


@pytest.fixture
def versions(tmp_path: Path) -> Iterator[Registry]:
    yield published(tmp_path / "registry")


def ask(url: str, body: bytes) -> httpx.Response:
    return httpx.post(f"{url}/predict", headers=RAW, content=body, timeout=PATIENCE_S, trust_env=False)


@contextlib.contextmanager
def in_a_thread(stage: Stage) -> Iterator[str]:
    """A replica of the stage over a real socket of this process; gives its address."""
    replica = Replica(stage)
    replica.load()
    server = uvicorn.Server(uvicorn.Config(replica, log_level="warning", lifespan="on", ws="none"))
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield "http://{}:{}".format(*listener.getsockname())
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_a_replica_answers_as_the_version_it_is_and_survives_what_it_crashes_on(versions: Registry) -> None:
    publish(versions, "crashing", crash_share=0.2)
    versions.set_alias("digits", "champion", "crashing")
    stage = pinned(load_stage("micro-batched", a_version(versions.root)))
    inputs = load_inputs(stage.model).examples(60, seed=4)
    with in_a_thread(stage) as url, httpx.Client(timeout=PATIENCE_S, trust_env=False) as client:
        for each in inputs:
            response = client.post(f"{url}/predict", headers=RAW, content=each.astype("<f4").tobytes())
            if crashes(position(input_bytes(each)), 0.2):
                assert (response.status_code, response.json()["title"]) == (500, "model_error")
            else:
                assert (response.status_code, response.json()["version"]) == (200, "crashing")
                assert response.json()["label"] == 7
    assert any(crashes(position(input_bytes(each)), 0.2) for each in inputs)


@pytest.mark.usefixtures("in_numpy")
def test_a_rolling_restart_deploys_where_the_alias_is_now(tmp_path: Path, versions: Registry) -> None:
    changes = {"fleet.replicas": 1, "gateway.probe_interval_s": 0.5, "gateway.probe_timeout_s": 0.4}
    changes |= {"gateway.unhealthy_after": 100}  # on a machine that is busy for a moment nobody is called ill
    stage = load_stage("load-balanced", a_version(versions.root) | changes | {"cache": {}})
    body = load_inputs(stage.model).examples(1, seed=4)[0].astype("<f4").tobytes()
    run = tmp_path / "run"
    with ProcessLauncher(stage, run) as launcher:

        def restarted() -> dict[str, Any]:
            steps = rolling(launcher)
            while True:
                try:
                    next(steps)
                except StopIteration as stop:
                    return dict(stop.value)
                assert ask(launcher.url, body).status_code == 200
                launcher.look()

        def answered() -> tuple[str, int]:
            launcher.settle()
            answer = ask(launcher.url, body)
            return answer.json()["version"], answer.json()["label"]

        assert answered() == ("1", 1)
        assert load_stage(run / "stage.toml").model.version == "1"
        assert load_stage(run / ASKED_FILE).model.version == "champion"
        versions.set_alias("digits", "champion", "2")
        assert answered() == ("1", 1)
        assert restarted()["version"] == "2"
        assert answered() == ("2", 2)  # the cache does not have the other's answer any more
        assert load_stage(run / "stage.toml").model.version == "2"
        weights = versions.load("digits", "1").weights
        weights.chmod(0o644)
        weights.write_bytes(b"damaged")
        (versions.root / "digits" / "aliases.json").write_text(json.dumps({"champion": "1"}))
        with pytest.raises(LaunchError, match="must have the digest"):
            next(rolling(launcher))
        assert answered() == ("2", 2)


def test_a_rollback_is_served_by_whoever_is_started_next(tmp_path: Path, versions: Registry) -> None:
    launcher = ProcessLauncher(load_stage("single-vm", a_version(versions.root)), tmp_path)
    assert not launcher.pin()
    versions.set_alias("digits", "champion", "2")
    assert launcher.pin() and load_stage(launcher.stage_file) == launcher.stage
    assert launcher.stage.model.version == "2"
    versions.rollback("digits", "champion")
    assert launcher.pin() and load_stage(launcher.stage_file).model.version == "1"


def test_a_stage_that_names_no_version_needs_no_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNG_REGISTRY", str(tmp_path / "nowhere"))
    stage = parse_stage(
        {
            "name": "plain",
            "title": "Plain",
            "question": "Why?",
            "model": {"name": "digits"},
            "device": {"kind": "cpu"},
            "traffic": {"rate": {"shape": "constant", "rate_rps": 1.0}},
            "slo": {"latency_s": 0.1},
        }
    )
    assert pinned(stage) is stage
    assert load_model(stage.model, "cpu").version == "1"
    assert not (tmp_path / "nowhere").exists()
