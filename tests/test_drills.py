"""What is done to a running replica, by itself and by its supervisor, and that nobody outside can ask for it.

drill file ─▶ obey ─▶ slow device, shut door          a folder of the user's ─▶ supervisor ─▶ SIGKILL, SIGSTOP, …
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from loadtests.tending import tended
from reference_apps import drills
from reference_apps.asking import wait_until
from reference_apps.commands import CommandError, ask
from reference_apps.gateway import Gateway as RunningGateway
from reference_apps.launchers.docker import DockerLauncher
from reference_apps.launchers.member import LaunchError
from reference_apps.launchers.process import ProcessLauncher
from reference_apps.obeying import LENGTH_MAX_S, Told, obey, read, write
from reference_apps.replica import Replica as RunningReplica
from reference_apps.supervisor import COMMANDS
from reference_apps.up import Up, list_up
from stages import catalogue
from stages.spec import load_stage
from tests.conftest import PATIENCE_S, ROOT, processes_of
from tests.drill_cases import INPUT, QUICK

pytestmark = pytest.mark.usefixtures("in_numpy")

# ---- a replica does what its file says -------------------------------------------------------------------------


class Dummy:
    """A device and a door that note what is done to them."""

    def __init__(self) -> None:
        self.done: list[Any] = []

    def slow(self, factor: float) -> None:
        self.done.append(factor)

    def shut(self) -> None:
        self.done.append("shut")

    async def open_again(self) -> None:
        self.done.append("open")


async def _obeying(file: Path, dummy: Dummy, until: int) -> None:
    """Obeys until so many things were done, and a little longer."""
    task = asyncio.create_task(obey(file, dummy, dummy))
    deadline_s = time.monotonic() + PATIENCE_S
    while len(dummy.done) < until and time.monotonic() < deadline_s:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.15)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _soon(failure: str, for_s: float, factor: float = 1.0) -> Told:
    now_s = time.monotonic()
    return Told(failure, now_s + 0.05, now_s + 0.05 + for_s, factor)


def test_it_is_slow_for_its_time_and_then_as_before(tmp_path: Path) -> None:
    file, dummy = tmp_path / "drill-0.json", Dummy()
    file.write_text(write(_soon("slow", 0.2, 10.0)))
    asyncio.run(_obeying(file, dummy, 2))
    assert dummy.done == [10.0, 1.0]


def test_it_shuts_its_door_until_the_file_says_no_more(tmp_path: Path) -> None:
    file, dummy = tmp_path / "drill-0.json", Dummy()

    async def change() -> None:
        file.write_text(write(_soon("refuse", 100.0)))
        asking = asyncio.create_task(_obeying(file, dummy, 2))
        while not dummy.done:
            await asyncio.sleep(0.01)
        file.write_text("")
        await asking

    asyncio.run(change())
    assert dummy.done == ["shut", "open"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '"slow"',
        '{"failure": "slow"}',
        write(Told("explode", 0.0, 1e9, 2.0)),
        write(Told("slow", 0.0, LENGTH_MAX_S + 1.0, 2.0)),
        write(Told("slow", 5.0, 5.0, 2.0)),
        write(Told("slow", 0.0, 1.0, 0.5)),
        write(Told("slow", 0.0, 1.0, math.inf)),
        '{"failure": "slow", "from_s": "0", "until_s": 1, "factor": 2}',
    ],
)
def test_a_file_that_makes_no_sense_changes_nothing(text: str, tmp_path: Path) -> None:
    file = tmp_path / "drill-0.json"
    file.write_text(text)
    assert read(file) is None


def test_what_is_over_is_not_begun(tmp_path: Path) -> None:
    file, dummy = tmp_path / "drill-0.json", Dummy()
    now_s = time.monotonic()
    file.write_text(write(Told("slow", now_s - 2.0, now_s - 1.0, 3.0)))
    asyncio.run(_obeying(file, dummy, 0))
    assert dummy.done == []
    assert read(tmp_path / "none.json") is None


def _post(client: httpx.Client) -> httpx.Response:
    return client.post("/predict", json=INPUT)


def _took_s(response: httpx.Response) -> float:
    told = dict(part.split("=") for part in response.headers["x-rung-record"].split(","))
    return float(told["finished_s"]) - float(told["started_s"])


def test_a_real_replica_slows_down_and_refuses_and_comes_back_at_its_address(tmp_path: Path) -> None:
    stage = load_stage("single-vm")
    pace_s = catalogue.profiles()[str(stage.device.profile)].service_time_s(1)
    with ProcessLauncher(stage, tmp_path) as launcher, httpx.Client(base_url=launcher.url, trust_env=False) as client:
        assert _took_s(_post(client)) < 10.0 * pace_s
        launcher.tell(0, write(_soon("slow", 100.0, 10.0)))
        assert wait_until(lambda: _took_s(_post(client)) >= 10.0 * pace_s, PATIENCE_S)
        launcher.tell(0, "")
        assert wait_until(lambda: _took_s(_post(client)) < 10.0 * pace_s, PATIENCE_S)

        launcher.tell(0, write(_soon("refuse", 1.5)))

        def refused() -> bool:
            try:
                httpx.get(f"{launcher.url}/readyz", trust_env=False, timeout=PATIENCE_S)
            except httpx.ConnectError:
                return True
            except httpx.TransportError:
                return False
            return False

        assert wait_until(refused, PATIENCE_S)
        with pytest.raises(httpx.TransportError):  # the connection that was open is broken too
            _post(client)
        assert wait_until(lambda: not refused(), PATIENCE_S)
        assert _post(client).status_code == 200
        assert launcher.replicas[0].process.poll() is None


# ---- the supervisor --------------------------------------------------------------------------------------------


def _status(pid: int) -> str:
    try:
        return psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return "gone"


def _arguments(**changes: Any) -> dict[str, Any]:
    now_s = time.monotonic()
    return {"failure": "hang", "replica": 0, "at_s": now_s, "for_s": 0.5, "factor": 10.0} | changes


def test_one_that_was_stopped_goes_on_at_its_time_and_one_that_was_killed_is_started_again(tmp_path: Path) -> None:
    with ProcessLauncher(load_stage("single-vm"), tmp_path) as launcher:
        pid = launcher.replicas[0].pid
        steps = drills.drill(launcher, _arguments(for_s=60.0))
        next(steps)
        assert wait_until(lambda: _status(pid) == psutil.STATUS_STOPPED, PATIENCE_S)
        steps.close()  # as when the stage is being stopped
        assert wait_until(lambda: _status(pid) != psutil.STATUS_STOPPED, PATIENCE_S)

        with tended(launcher):
            asked_s = time.monotonic()
            told = ask(tmp_path, "drill", _arguments(at_s=asked_s + 0.3, for_s=0.5), PATIENCE_S)
            assert told["ended_s"] - told["struck_s"] == pytest.approx(0.5)
            assert told["struck_s"] >= asked_s + 0.3
            assert wait_until(lambda: _status(pid) != psutil.STATUS_STOPPED, PATIENCE_S)
            assert httpx.post(f"{launcher.url}/predict", json=INPUT, trust_env=False).status_code == 200

            ask(tmp_path, "drill", _arguments(failure="kill"), PATIENCE_S)
            assert wait_until(lambda: launcher.replicas[0].restarts == 1, PATIENCE_S)
            assert wait_until(lambda: launcher.replicas[0].state == "ready", PATIENCE_S)
            assert launcher.replicas[0].pid != pid


_DIES_WITHIN_A_DRILL = """
import os, signal, sys, time
from pathlib import Path
import psutil
from reference_apps import drills
from reference_apps.launchers.process import ProcessLauncher
from stages.spec import load_stage

launcher = ProcessLauncher(load_stage("single-vm"), Path(sys.argv[1]))
launcher.start()
pid = launcher.replicas[0].pid
arguments = {"failure": "hang", "replica": 0, "at_s": time.monotonic(), "for_s": 600.0, "factor": 1.0}
steps = drills.drill(launcher, arguments)
next(steps)
while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
    time.sleep(0.01)
print(pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_stopped_process_does_not_outlive_a_supervisor_that_was_killed(runs: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _DIES_WITHIN_A_DRILL, str(tmp_path / "stack")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=4 * PATIENCE_S, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert wait_until(lambda: _status(int(done.stdout)) in ("gone", psutil.STATUS_ZOMBIE), 2 * PATIENCE_S)
    assert wait_until(lambda: not processes_of(runs), PATIENCE_S)


@pytest.mark.parametrize("ours", [True, False])
def test_what_stands_still_of_a_stage_whose_supervisor_is_gone_is_cleared_away(ours: bool, runs: Path) -> None:
    folder = runs / "up-gone"
    words = [str(folder / "stage.toml")] if ours else []
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", *words])
    try:
        os.kill(child.pid, signal.SIGSTOP)
        assert wait_until(lambda: _status(child.pid) == psutil.STATUS_STOPPED, PATIENCE_S)
        replicas = [{"replica": 0, "pid": child.pid, "port": 1, "url": "http://127.0.0.1:1", "state": "ready"}]
        gone = Up("gone", "http://127.0.0.1:1", str(folder), 2**22 - 1, 0.0, replicas, 0.0)
        (runs / "up").mkdir(parents=True)
        (runs / "up" / "gone.json").write_text(json.dumps(vars(gone)))
        assert list_up() == []
        if ours:
            assert child.wait(PATIENCE_S) == -signal.SIGKILL
        else:  # somebody else has that pid by now
            assert child.poll() is None
    finally:
        child.kill()
        child.wait()


class Pretend:
    """A launcher without processes."""

    folder = Path("nowhere")

    def __init__(self, state: str = "ready") -> None:
        from types import SimpleNamespace

        self.replicas = [SimpleNamespace(number=0, state=state, title="replica 0", process=None)]
        self.killed: list[int] = []

    def replica(self, number: int) -> Any:
        return self.replicas[number]

    def kill(self, number: int) -> None:
        self.killed.append(number)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"failure": "explode"}, "drill: must be one of kill, hang, slow, refuse, cut, got explode."),
        ({"failure": "cut"}, "cut takes a replica off its network, and processes share this machine's"),
        ({"replica": 7}, r"--replica: must be one that runs \(0\), got 7\."),
        ({"replica": "first"}, "drill: needs failure, replica, at_s, for_s and factor"),
        ({"for_s": 0.0}, "drill: must begin within 3600 s and last at most 600 s"),
        ({"for_s": 601.0}, "drill: must begin within 3600 s and last at most 600 s"),
        ({"at_s": math.nan}, "drill: must begin within 3600 s"),
        ({"at_s": math.inf}, "drill: must begin within 3600 s"),
        ({"factor": 0.1}, "--factor: must be 1 to 1000, got 0.1"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words_before_anything_is_done(changes: dict[str, Any], said: str) -> None:
    launcher: Any = Pretend()
    with pytest.raises(LaunchError, match=said):
        next(drills.drill(launcher, _arguments(failure="kill") | changes))
    assert launcher.killed == []


def test_one_that_is_not_ready_is_left_alone() -> None:
    launcher: Any = Pretend("starting")
    with pytest.raises(LaunchError, match="replica 0: must be ready to be drilled, and is starting"):
        next(drills.drill(launcher, _arguments(failure="kill")))
    assert launcher.killed == []


@pytest.mark.docker
@pytest.mark.timeout(300)
def test_containers_that_fail_leave_the_rotation_and_come_back(engine: Any, tmp_path: Path) -> None:
    del engine  # it is there, with the image
    with DockerLauncher(load_stage("load-balanced", QUICK), tmp_path) as launcher, tended(launcher):
        replica = launcher.replicas[0]
        assert wait_until(lambda: launcher.in_rotation(replica), PATIENCE_S)
        for failure in ("cut", "hang", "refuse"):
            told: list[Any] = []
            arguments = _arguments(failure=failure, at_s=time.monotonic() + 0.5, for_s=5.0)
            asking = threading.Thread(
                target=lambda given=arguments, told=told: told.append(ask(tmp_path, "drill", given, 2 * PATIENCE_S))
            )
            asking.start()
            assert wait_until(lambda: not launcher.in_rotation(replica), PATIENCE_S), failure
            answer = httpx.post(f"{launcher.url}/predict", json=INPUT, trust_env=False, timeout=PATIENCE_S)
            assert (answer.status_code, "replica=1" in answer.headers["x-rung-record"]) == (200, True), failure
            asking.join(2 * PATIENCE_S)
            assert told and told[0]["ended_s"] - told[0]["struck_s"] == pytest.approx(5.0)
            assert wait_until(lambda: launcher.in_rotation(replica), PATIENCE_S), failure
        ask(tmp_path, "drill", _arguments(failure="kill"), PATIENCE_S)
        assert wait_until(lambda: launcher.replicas[0].restarts == 1, PATIENCE_S)
        assert wait_until(lambda: launcher.in_rotation(launcher.replicas[0]), 2 * PATIENCE_S)


# ---- nobody from outside ----------------------------------------------------------------------------------------

_SERVED = {
    "/predict",
    "/healthz",
    "/readyz",
    "/metrics",
    "/batches",
    "/openapi.json",
    "/docs",
    "/redoc",
    "/docs/oauth2-redirect",
    "/static-offline-docs",
}


def _paths(web: Any) -> set[str]:
    return {route.path for route in web.routes}


def test_no_address_that_is_served_leads_to_a_drill(tmp_path: Path) -> None:
    stage = load_stage("load-balanced")
    gateway, replica = RunningGateway(stage, tmp_path / "replicas.json"), RunningReplica(stage)
    assert _paths(replica._web) <= _SERVED
    assert _paths(gateway._web) <= _SERVED | {"/replicas"}
    for web in (gateway._web, replica._web):
        for route in web.routes:  # type: ignore[attr-defined]
            writes = set(getattr(route, "methods", None) or ()) - {"GET", "HEAD"}
            assert not writes or route.path == "/predict", route


def test_what_is_served_knows_of_no_drill_and_no_command() -> None:
    served = ("gateway", "gateway_web", "gateway_metrics", "rotation", "upstream", "replica", "replica_metrics", "asgi")
    for name in served:
        tree = ast.parse((ROOT / "reference_apps" / f"{name}.py").read_text(encoding="utf-8"))
        imported = {
            getattr(node, "module", None) or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        forbidden = {f"reference_apps.{module}" for module in ("drills", "obeying", "commands", "supervisor")}
        assert not imported & forbidden, name


@pytest.mark.parametrize(
    "path", ["/drill", "/drills", "/commands", "/commands/drill", "/replicas", "/restart", "/scale"]
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_a_request_from_outside_drills_nobody(path: str, method: str, tmp_path: Path) -> None:
    stage = load_stage("load-balanced")

    async def asked() -> list[int]:
        statuses = []
        for served in (RunningGateway(stage, tmp_path / "replicas.json"), RunningReplica(stage)):
            transport = httpx.ASGITransport(app=served)
            async with httpx.AsyncClient(transport=transport, base_url="http://outside") as client:
                answer = await client.request(method, path, json=_arguments(failure="kill"))
                statuses.append(answer.status_code)
        return statuses

    assert set(asyncio.run(asked())) <= {404, 405}


def test_the_folder_of_commands_is_the_users_alone(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="the supervisor ended"):
        ask(tmp_path, "drill", {}, 1.0, lambda: False)
    assert (tmp_path / "commands").stat().st_mode & 0o077 == 0
    assert "drill" in COMMANDS
