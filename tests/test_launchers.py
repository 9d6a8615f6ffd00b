"""What every launcher has to be able to do, asked of processes and of containers alike, over real sockets."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from reference_apps.launchers.launcher import Launcher
from reference_apps.launchers.process import ProcessLauncher
from reference_apps.obeying import Told, write
from reference_apps.restarting import rolling
from stages.spec import load_stage
from tests.conftest import PATIENCE_S

pytestmark = pytest.mark.usefixtures("in_numpy")

INPUT = {"input": [[[0.5] * 8] * 8]}
PAUSE_S = 0.05  # of a client between two requests: what the test starts needs the processor, too
# An image that has yet to be built takes minutes.
DOCKER = [pytest.mark.docker, pytest.mark.timeout(900)]
QUICK = {
    "device.slowdown": 1.0,
    "batching.batch_wait_timeout_s": 0.002,
    "gateway.probe_interval_s": 0.2,
    "gateway.probe_timeout_s": 0.2,
    "gateway.unhealthy_after": 10,  # one that is kept from its processor for a second is not ill
    "gateway.eject_s": 1.0,
    "lifecycle.drain_timeout_s": 10.0,
}


@pytest.fixture(scope="module", params=["process", pytest.param("docker", marks=DOCKER)])
def launch(request: pytest.FixtureRequest) -> type[Launcher]:
    """The class of a launcher; that of containers where there is an engine."""
    if request.param == "process":
        return ProcessLauncher
    request.getfixturevalue("engine")
    from reference_apps.launchers.docker import DockerLauncher

    return DockerLauncher


@pytest.fixture(scope="module")
def fleet(launch: type[Launcher], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Two replicas behind the gateway, shared: every test leaves two that are ready, whatever their numbers."""
    with launch(load_stage("load-balanced", QUICK), tmp_path_factory.mktemp("fleet")) as launcher:
        yield launcher


def until(launcher: Launcher, condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    """Looks, as a supervisor does, until `condition` holds."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come to be so in time"
        launcher.look()
        time.sleep(0.02)


def record(answer: httpx.Response) -> dict[str, str]:
    """The record in an answer's header, by name."""
    return dict(part.split("=") for part in answer.headers["x-rung-record"].split(","))


class Load:
    """Clients that ask one after the other, each on a connection that it keeps, and take down what they are told.

    With `reconnects` they ask once more where a connection that they kept was closed before any answer, as RFC 9112
    (9.3.1) has clients do: nginx closes idle connections when it takes up another configuration.
    """

    def __init__(self, url: str, reconnects: bool = False) -> None:
        self.url = url
        self.reconnects = reconnects
        self.statuses: list[int | str] = []
        self.replicas: list[int] = []
        self.stopping = threading.Event()

    def ask(self) -> None:
        with httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False, verify=False) as client:
            while not self.stopping.is_set():
                try:
                    answer = self.post(client)
                except httpx.TransportError as error:
                    self.statuses.append(repr(error))
                    continue
                self.statuses.append(answer.status_code)
                if answer.status_code == 200:
                    self.replicas.append(int(record(answer)["replica"]))
                time.sleep(PAUSE_S)

    def post(self, client: httpx.Client) -> httpx.Response:
        try:
            return client.post("/predict", json=INPUT)
        except httpx.RemoteProtocolError:
            if not self.reconnects:
                raise
            return client.post("/predict", json=INPUT)

    @property
    def failed(self) -> list[int | str]:
        return [status for status in self.statuses if status != 200]


@contextmanager
def loaded(url: str, clients: int = 2, reconnects: bool = False) -> Iterator[Load]:
    """Clients that ask while the block runs; afterwards their counts are complete."""
    load = Load(url, reconnects)
    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(load.ask) for _ in range(clients)]
        try:
            yield load
        finally:
            load.stopping.set()
    for each in asking:
        each.result()


def numbers(launcher: Launcher) -> list[int]:
    return [replica.number for replica in launcher.replicas]


def test_clients_reach_every_replica_at_one_address(fleet: Launcher) -> None:
    with loaded(fleet.url) as load:
        until(fleet, lambda: set(load.replicas) == set(numbers(fleet)))
    assert load.failed == []
    assert fleet.gateway is not None
    assert fleet.url == fleet.gateway.url
    assert fleet.url.startswith("http://127.0.0.1:")


def test_a_container_and_this_machine_read_the_same_clock(fleet: Launcher) -> None:
    before_s = time.monotonic()
    answer = httpx.post(f"{fleet.url}/predict", json=INPUT, trust_env=False, timeout=PATIENCE_S)
    after_s = time.monotonic()
    told = record(answer)
    names = ["gateway_in_s", "arrived_s", "started_s", "finished_s", "gateway_out_s"]
    times_s = [before_s, *(float(told[name]) for name in names), after_s]
    # The record's times are rounded to a microsecond.
    assert all(later > earlier - 2e-6 for earlier, later in itertools.pairwise(times_s)), told


def test_replicas_come_and_go_under_load_and_no_request_is_lost(fleet: Launcher) -> None:
    first = fleet.replicas[0]
    with loaded(fleet.url) as load:
        new = fleet.add()
        until(fleet, lambda: fleet.in_rotation(new))
        until(fleet, lambda: new.number in load.replicas)
        fleet.drain(first.number)
        until(fleet, lambda: first.state == "gone")
        served = len(load.replicas)
        until(fleet, lambda: len(load.replicas) > served + 20)
    assert load.failed == []
    assert first.number not in load.replicas[served + 8 :]  # of those that were on their way when it went
    assert first.number not in numbers(fleet)
    assert first.process.poll() in (0, -signal.SIGTERM)
    assert [life.replica for life in fleet.lives()].count(first.number) == 1


def test_one_whose_machine_has_still_to_come_is_started_then_and_one_not_wanted_any_more_never_is(
    fleet: Launcher,
) -> None:
    asked_s = time.monotonic()
    new = fleet.add(launch_at_s=asked_s + 1.0)
    after_s = time.monotonic()
    never = fleet.add(launch_at_s=asked_s + 600.0)
    fleet.look()
    assert (new.state, never.state) == ("starting", "starting")
    assert 0 not in fleet.pids, "a machine that is not there has no process"
    fleet.drain(never.number)
    until(fleet, lambda: never.state == "gone" and fleet.in_rotation(new))
    assert not never.log.exists(), "it was never started"
    assert new.ready_s is not None and new.ready_s > asked_s + 1.0
    assert asked_s <= new.started_s <= after_s, "its bill began when it was asked for"
    fleet.drain(new.number)
    until(fleet, lambda: new.state == "gone")


def test_one_that_is_killed_is_found_once_and_comes_back_under_its_number(fleet: Launcher) -> None:
    victim = fleet.replicas[0]
    fleet.kill(victim.number)
    dead: list[Any] = []

    def found() -> bool:
        dead.extend(fleet.look())
        return victim.state == "died"

    until(fleet, found)
    assert dead == [victim]
    assert victim.process.poll() == -signal.SIGKILL
    assert f"replica {victim.number} (pid {victim.pid}) ended with signal SIGKILL" in fleet.told(victim)
    assert httpx.post(f"{fleet.url}/predict", json=INPUT, trust_env=False).status_code == 200
    again = fleet.restart(victim)
    until(fleet, lambda: fleet.in_rotation(again))
    assert (again.number, again.restarts, again.pid != victim.pid) == (victim.number, victim.restarts + 1, True)
    with loaded(fleet.url) as load:
        until(fleet, lambda: again.number in load.replicas)


def test_one_that_hangs_leaves_the_rotation_and_returns(fleet: Launcher) -> None:
    victim = fleet.replicas[0]
    fleet.pause(victim.number)
    until(fleet, lambda: not fleet.in_rotation(victim))
    assert victim.process.poll() is None
    fleet.resume(victim.number)
    until(fleet, lambda: fleet.in_rotation(victim))
    with loaded(fleet.url) as load:
        until(fleet, lambda: victim.number in load.replicas)


def test_one_that_is_told_to_refuse_leaves_the_rotation_and_returns(fleet: Launcher) -> None:
    victim, now_s = fleet.replicas[-1], time.monotonic()
    fleet.tell(victim.number, write(Told("refuse", now_s, now_s + 300.0)))
    until(fleet, lambda: not fleet.in_rotation(victim))
    fleet.tell(victim.number, "")
    until(fleet, lambda: fleet.in_rotation(victim))
    with loaded(fleet.url) as load:
        until(fleet, lambda: victim.number in load.replicas)
    assert load.failed == []


def test_a_rolling_restart_under_load_fails_no_request(fleet: Launcher) -> None:
    before = numbers(fleet)
    with loaded(fleet.url) as load:
        steps = rolling(fleet)
        deadline_s = time.monotonic() + 2 * PATIENCE_S
        try:
            while time.monotonic() < deadline_s:
                fleet.look()
                next(steps)
                time.sleep(0.02)
        except StopIteration as stop:
            assert [row["old"] for row in stop.value["replaced"]] == before
    assert load.failed == []
    assert len(load.statuses) > 20
    assert len(numbers(fleet)) == len(before)
    assert not set(numbers(fleet)) & set(before)


def test_a_stage_without_a_gateway_is_its_only_replica(launch: type[Launcher], tmp_path: Path) -> None:
    with launch(load_stage("micro-batched"), tmp_path) as launcher:
        (replica,) = launcher.replicas
        assert launcher.url == replica.url
        answer = httpx.post(f"{launcher.url}/predict", json=INPUT, trust_env=False, timeout=PATIENCE_S)
        assert answer.status_code == 200
        launcher.kill(0)
        until(launcher, lambda: replica.state == "died")
        again = launcher.restart(replica)
        until(launcher, lambda: again.state == "ready")
        assert again.url == replica.url
    assert again.process.poll() in (0, -signal.SIGTERM)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{again.url}/healthz", trust_env=False, timeout=1.0)
