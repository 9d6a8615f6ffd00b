"""How a supervisor looks after processes that a test lets live and die: each by itself, nobody waits for another."""

from __future__ import annotations

import errno
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from reference_apps import supervisor as supervising
from reference_apps.commands import Command, CommandError, Inbox, ask
from reference_apps.launched_fleet import LaunchedFleet
from reference_apps.launchers import fleet_file, launcher, members
from reference_apps.launchers.launcher import Launcher
from reference_apps.launchers.member import GATEWAY, LaunchError, Member
from reference_apps.restarting import rolling
from reference_apps.supervisor import Supervisor
from stages.spec import load_stage, stage_toml
from tests.conftest import PATIENCE_S


class Pretended:
    """A process that ends when it is told to, or when the test says so."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None
        self.deaf = False  # does not hear SIGTERM

    def poll(self) -> int | None:
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        assert self.code is not None, timeout
        return self.code

    def send_signal(self, sig: int) -> None:
        if sig == signal.SIGTERM and not self.deaf:
            self.code = 0

    def kill(self) -> None:
        self.code = -signal.SIGKILL


class Pretender(Launcher):
    """A launcher of pretended processes, all of which answer at one real address: what the gateway says is `told`."""

    def __init__(self, folder: Path, url: str, told: dict[str, Any], **overrides: Any) -> None:
        super().__init__(load_stage("load-balanced", {"fleet.replicas": 2, "overload": True} | overrides), folder)
        self.started: list[str] = []
        self.told_by_gateway = told
        self.listening: Callable[[Member], bool] = lambda _: True
        self.refusal: Exception | None = None  # what starting anything comes to
        self._url = url

    def _start_replica(self, member: Member) -> Pretended:
        if self.refusal is not None:
            raise self.refusal
        self.started.append(member.name)
        return Pretended(1000 + len(self.started))

    def _start_gateway(self, member: Member) -> Pretended:
        return self._start_replica(member)

    def _start_cache(self, member: Member) -> Pretended:
        return self._start_replica(member)

    def _addresses(self, member: Member) -> tuple[int, str, str] | None:
        return (7000 + member.number, self._url, self._url) if self.listening(member) else None

    def _published(self) -> None:
        """The gateway takes over what was written, at once."""
        told = json.loads(self.replicas_file.read_text())
        busy = {row["replica"]: row["outstanding"] for row in self.told_by_gateway.get("replicas", [])}
        rows = [row | {"ready": True, "outstanding": busy.get(row["replica"], 0)} for row in told["replicas"]]
        self.told_by_gateway.update(generation=told["generation"], replicas=rows)

    def has(self, number: int, outstanding: int) -> None:
        """The gateway has so many requests there."""
        next(row for row in self.told_by_gateway["replicas"] if row["replica"] == number)["outstanding"] = outstanding

    def process(self, number: int) -> Pretended:
        member = self.gateway if number == GATEWAY else self.replica(number)
        assert member is not None
        assert isinstance(member.process, Pretended)
        return member.process

    def published(self) -> dict[int, bool]:
        """Replicas in the file: number → draining."""
        return {row["replica"]: row["draining"] for row in json.loads(self.replicas_file.read_text())["replicas"]}


@pytest.fixture
def answering() -> Iterator[tuple[str, dict[str, Any]]]:
    """An address that answers everything with 200 and what a gateway would tell."""
    told: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", told
        server.shutdown()
        thread.join(PATIENCE_S)


@pytest.fixture
def fleet(tmp_path: Path, answering: tuple[str, dict[str, Any]]) -> Iterator[Pretender]:
    with Pretender(tmp_path, *answering) as launcher:
        yield launcher


@contextmanager
def clock_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Seconds that the test adds to the supervisor's clock."""
    ahead, real = [0.0], time.monotonic
    with monkeypatch.context() as patched:
        patched.setattr(supervising.time, "monotonic", lambda: real() + ahead[0])
        yield ahead


def look_until(supervisor: Supervisor, condition: Callable[[], bool]) -> None:
    deadline_s = time.perf_counter() + PATIENCE_S
    while not condition():
        assert time.perf_counter() < deadline_s
        supervisor.look()


def test_one_that_dies_leaves_the_rotation_at_once_and_comes_back_after_a_pause(
    fleet: Pretender, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = Supervisor(fleet, Inbox(fleet.folder))
    with clock_of(monkeypatch) as ahead:
        assert fleet.published() == {0: False, 1: False}
        fleet.process(1).kill()
        supervisor.look()
        assert fleet.published() == {0: False}
        for pause_s in (1.0, 2.0, 4.0):
            before = len(fleet.started)
            ahead[0] += pause_s - 0.5
            supervisor.look()
            assert len(fleet.started) == before
            ahead[0] += 0.6
            look_until(supervisor, lambda: fleet.published() == {0: False, 1: False})
            assert fleet.started[before:] == ["replica-1"]
            fleet.process(1).kill()
            supervisor.look()
    assert fleet.replica(0).restarts == 0
    assert fleet.replica(1).port == 7001


def test_two_that_die_do_not_wait_for_each_other(fleet: Pretender, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = Supervisor(fleet, Inbox(fleet.folder))
    with clock_of(monkeypatch) as ahead:
        fleet.process(0).kill()
        supervisor.look()
        fleet.listening = lambda member: member.number != 0  # comes up slowly
        ahead[0] += 1.1
        supervisor.look()
        assert fleet.replica(0).state == "starting"
        fleet.process(1).kill()
        supervisor.look()
        ahead[0] += 1.1
        look_until(supervisor, lambda: fleet.published() == {1: False})
        assert fleet.replica(0).state == "starting"
        fleet.listening = lambda _: True
        look_until(supervisor, lambda: fleet.published() == {0: False, 1: False})


def test_a_fleet_is_given_up_with_its_last_replica_only(fleet: Pretender, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = Supervisor(fleet, Inbox(fleet.folder))
    with clock_of(monkeypatch) as ahead:
        for _ in range(supervising.RESTARTS_MAX + 2):  # one that dies again and again, beside one that does not
            fleet.process(1).kill()
            supervisor.look()
            ahead[0] += supervising.RESTART_PAUSE_MAX_S + 0.1
            supervisor.look()
        fleet.process(0).kill()
        fleet.process(1).kill()
        with pytest.raises(LaunchError, match=r"replica 1 died 8 times in a row: given up\."):
            supervisor.look()


def test_the_gateway_is_started_again_and_the_replicas_stay(fleet: Pretender, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = Supervisor(fleet, Inbox(fleet.folder))
    pids = [replica.pid for replica in fleet.replicas]
    with clock_of(monkeypatch) as ahead:
        fleet.process(GATEWAY).kill()
        supervisor.look()
        assert fleet.gateway is not None
        assert fleet.gateway.state == "died"
        ahead[0] += 1.1
        look_until(supervisor, lambda: fleet.gateway is not None and fleet.gateway.state == "ready")
    assert [replica.pid for replica in fleet.replicas] == pids
    assert fleet.gateway.port == 7000 + GATEWAY


@pytest.mark.parametrize("refusal", [OSError("Resource temporarily unavailable"), LaunchError("the engine is gone")])
def test_one_that_cannot_be_started_is_left_out_and_the_others_serve_on(
    fleet: Pretender, refusal: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = Supervisor(fleet, Inbox(fleet.folder))
    fleet.refusal = refusal
    with pytest.raises(LaunchError, match=str(refusal)):
        fleet.add()
    LaunchedFleet(fleet).start(0.0)  # as an autoscaler does
    assert str(refusal) in caplog.text
    supervisor.look()
    assert [(r.number, r.state) for r in fleet.replicas] == [(0, "ready"), (1, "ready")]


@pytest.mark.parametrize("number", [1, GATEWAY])
def test_one_that_cannot_be_started_again_is_tried_later_and_the_others_serve_on(
    fleet: Pretender, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = Supervisor(fleet, Inbox(fleet.folder))
    with clock_of(monkeypatch) as ahead:
        fleet.process(number).kill()
        supervisor.look()
        fleet.refusal = OSError("Resource temporarily unavailable")
        for pause_s in (1.0, 2.0):
            ahead[0] += pause_s + 0.1
            supervisor.look()  # tries
            supervisor.look()  # finds it dead
        assert caplog.text.count("could not be started again") == 2
        fleet.refusal = None
        ahead[0] += 4.1
        look_until(supervisor, lambda: all(member.state == "ready" for member in fleet.members))
    assert fleet.published() == {0: False, 1: False}


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_fleet_that_cannot_be_written_is_told_when_it_can(
    fleet: Pretender, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.process(1).kill()
    with monkeypatch.context() as patched:
        patched.setattr(fleet_file, "write_atomically", full)
        for _ in range(3):
            fleet.look()
    assert caplog.text.count("No space left on device") == 1
    assert fleet.published() == {0: False, 1: False}
    fleet.look()
    assert fleet.published() == {0: False}


def test_an_answer_that_cannot_be_written_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Command("restart", {}, tmp_path / "not there" / "1.taken.json").done({})
    assert "restart: the answer cannot be written, and whoever asked waits in vain: " in caplog.text


class Looks(threading.Event):
    """Never set, and after so many waits it is."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    def wait(self, timeout: float | None = None) -> bool:
        del timeout
        self.left -= 1
        return self.left < 0


def test_a_state_that_cannot_be_written_is_written_when_it_can(
    tmp_path: Path, runs: Path, answering: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stage.toml").write_text(stage_toml(load_stage("load-balanced", {"overload": True})))
    monkeypatch.setattr(supervising, "_made", lambda *_: Pretender(tmp_path, *answering))
    monkeypatch.setattr(supervising.alerts, "watching", lambda _: nullcontext())
    monkeypatch.setattr(supervising.logs, "configure", lambda *_: None)
    really, tried = supervising.write_atomically, list[str]()

    def write(path: Path, text: str) -> None:
        tried.append(path.name)
        really(path, text) if len(tried) > 2 else full()

    monkeypatch.setattr(supervising, "write_atomically", write)
    supervising.supervise(tmp_path, Looks(5))
    assert tried == ["load-balanced.json"] * 3
    assert list((runs / "up").glob("*.json")) == []


def test_a_replica_is_stopped_when_the_gateway_has_nothing_there_any_more(fleet: Pretender) -> None:
    supervisor = Supervisor(fleet, Inbox(fleet.folder))
    member, process = fleet.replica(0), fleet.process(0)
    fleet.has(0, 2)
    fleet.drain(0)
    assert fleet.published() == {0: True, 1: False}
    for _ in range(3):
        supervisor.look()
    assert (member.state, process.code) == ("draining", None)
    fleet.told_by_gateway["generation"] -= 1  # it has not seen the file yet
    fleet.has(0, 0)
    supervisor.look()
    assert (member.state, process.code) == ("draining", None)
    fleet.told_by_gateway["generation"] += 1
    look_until(supervisor, lambda: member.state == "gone")
    assert (process.code, fleet.published()) == (0, {1: False})
    assert [life.replica for life in fleet.lives()] == [0, 1]
    assert fleet.lives()[0].stopped_s is not None
    assert fleet.lives()[1].stopped_s is None
    with pytest.raises(KeyError):
        fleet.drain(0)


def test_one_that_does_not_end_is_killed(fleet: Pretender) -> None:
    supervisor = Supervisor(fleet, Inbox(fleet.folder))
    member, process = fleet.replica(1), fleet.process(1)
    process.deaf = True
    fleet.drain(1)
    look_until(supervisor, lambda: member.state == "stopping")
    assert process.code is None
    member.kill_at_s = 0.0
    look_until(supervisor, lambda: member.state == "gone")
    assert process.code == -signal.SIGKILL


def test_one_that_no_signal_ends_does_not_keep_the_others(
    fleet: Pretender, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, other = fleet.process(0), fleet.process(1)
    stuck.deaf = other.deaf = True
    monkeypatch.setattr(stuck, "kill", lambda: None)
    monkeypatch.setattr(launcher, "STOP_GRACE_S", 0.0)
    monkeypatch.setattr(members, "STOP_GRACE_S", 0.0)
    fleet.stage = fleet.stage.model_copy(
        update={"lifecycle": fleet.stage.lifecycle.model_copy(update={"drain_timeout_s": 0.01})}
    )
    fleet.stop()
    assert (stuck.code, other.code) == (None, -signal.SIGKILL)
    assert "replica 0 (pid 1001) was killed, and has not ended within 0 s" in caplog.text


def test_of_many_lives_the_last_are_remembered(fleet: Pretender) -> None:
    for _ in range(members.LIVED_MAX + 5):
        fleet.restart(fleet.replica(0))
    assert len(fleet.lives()) == members.LIVED_MAX + len(fleet.replicas)


def test_one_more_has_a_number_of_its_own_and_the_device_of_its_like(
    tmp_path: Path, answering: tuple[str, dict[str, Any]]
) -> None:
    kinds = ["t4-resnet50-fp16-pytorch", "v100-resnet50-fp32-pytorch"]
    with Pretender(tmp_path, *answering, **{"fleet.profiles": kinds}) as fleet:
        devices = [replica.device for replica in fleet.replicas]
        assert fleet.add(like=1).number == 3
        assert fleet.add(like=1).number == 5
        assert fleet.add(like=0).number == 6
        assert fleet.add().number == 7
        fleet.settle()
        assert {replica.number: devices.index(replica.device) for replica in fleet.replicas} == {
            0: 0, 1: 1, 3: 1, 5: 1, 6: 0, 7: 1
        }  # fmt: skip


# ---- commands --------------------------------------------------------------------------------------------------


@contextmanager
def asked(fleet: Pretender, name: str) -> Iterator[list[Any]]:
    """Somebody who asks for this; what comes of it is in the list."""
    answers: list[Any] = []

    def work() -> None:
        try:
            answers.append(ask(fleet.folder, name, {}, PATIENCE_S))
        except CommandError as error:
            answers.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    yield answers
    thread.join(PATIENCE_S)


def test_a_rolling_restart_has_a_new_one_before_the_old_one_goes(fleet: Pretender) -> None:
    supervisor = Supervisor(fleet, Inbox(fleet.folder))
    serving: list[int] = []

    def done() -> bool:
        serving.append(sum(not draining for draining in fleet.published().values()))
        return bool(answers)

    with asked(fleet, "restart") as answers:
        look_until(supervisor, done)
    assert answers == [{"replaced": [{"old": 0, "new": 2}, {"old": 1, "new": 3}]}]
    assert min(serving) >= 2
    assert fleet.published() == {2: False, 3: False}


def test_a_rolling_restart_goes_on_where_an_old_one_dies_meanwhile(
    fleet: Pretender, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = Supervisor(fleet, Inbox(fleet.folder))
    fleet.listening = lambda member: member.number != 2  # comes up slowly
    with clock_of(monkeypatch) as ahead, asked(fleet, "restart") as answers:
        look_until(supervisor, lambda: len(fleet.replicas) == 3)
        fleet.process(0).kill()
        supervisor.look()
        ahead[0] += 1.1
        look_until(supervisor, lambda: fleet.replica(0).restarts == 1 and fleet.replica(0).state == "ready")
        fleet.listening = lambda _: True
        look_until(supervisor, lambda: bool(answers))
    assert answers == [{"replaced": [{"old": 0, "new": 2}, {"old": 1, "new": 3}]}]
    assert fleet.published() == {2: False, 3: False}


def test_answers_of_a_rolling_restart_are_kept_apart_from_those_before_and_after(
    tmp_path: Path, answering: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    with Pretender(tmp_path, *answering, **{"cache.policy": "lru"}) as fleet:
        start = fleet._start_replica

        def started(member: Member) -> Pretended:
            epochs.append(json.loads(fleet.replicas_file.read_text())["cache"])
            return start(member)

        monkeypatch.setattr(fleet, "_start_replica", started)
        monkeypatch.setattr(fleet, "pin", lambda: True)
        for _ in rolling(fleet):
            fleet.look()
        after = fleet.cache_epoch
    assert 0 < epochs[0] == epochs[1] < after


def test_a_rolling_restart_that_fails_leaves_the_old_ones(fleet: Pretender) -> None:
    supervisor = Supervisor(fleet, Inbox(fleet.folder))
    with asked(fleet, "restart") as answers:
        look_until(supervisor, lambda: len(fleet.replicas) == 3)
        fleet.listening = lambda _: False
        fleet.process(2).code = 1
        look_until(supervisor, lambda: bool(answers))
    assert "replica 2 (pid" in answers[0]
    assert "ended with exit status 1." in answers[0]
    assert "The replicas that were there serve on." in answers[0]
    assert fleet.published() == {0: False, 1: False}
    started = len(fleet.started)
    supervisor.look()
    assert len(fleet.started) == started  # nobody tries to bring it back


def test_what_cannot_be_done_is_refused(
    fleet: Pretender, tmp_path: Path, answering: tuple[str, dict[str, Any]]
) -> None:
    supervisor = Supervisor(fleet, Inbox(fleet.folder))
    with asked(fleet, "sing") as answers:
        look_until(supervisor, lambda: bool(answers))
    assert answers[0].startswith("sing: is no command of this supervisor, which has ")
    alone = {"fleet": None, "gateway": None, "traffic.rate.rate_rps": 10.0}
    with Pretender(tmp_path / "alone", *answering, **alone | {"fleet.replicas": None}) as single:
        supervisor = Supervisor(single, Inbox(single.folder))
        with asked(single, "restart") as answers:
            look_until(supervisor, lambda: bool(answers))
    assert answers[0].startswith("load-balanced: has no [gateway]: clients go to the replica itself")


def test_a_command_that_breaks_does_not_break_the_supervisor(
    fleet: Pretender, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Iterator[None]:
        yield
        raise ZeroDivisionError("oh")

    monkeypatch.setitem(supervising.COMMANDS, "break", broken)  # type: ignore[arg-type]
    supervisor = Supervisor(fleet, Inbox(fleet.folder))
    with asked(fleet, "break") as answers:
        look_until(supervisor, lambda: bool(answers))
    assert answers == ["break: failed (ZeroDivisionError('oh')). The supervisor's log has more."]
    assert "ZeroDivisionError" in caplog.text
    supervisor.look()


def test_what_is_not_done_when_the_stage_stops_is_refused(fleet: Pretender) -> None:
    supervisor = Supervisor(fleet, Inbox(fleet.folder))
    fleet.has(0, 1)
    with asked(fleet, "restart") as first, asked(fleet, "restart") as second:
        look_until(supervisor, lambda: fleet.published().get(0) is True)
        time.sleep(0.1)
        supervisor.look()
        supervisor.refuse_all()
    assert first == second == ["restart: was not finished, because the stage is being stopped."]
