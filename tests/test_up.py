"""`rung up`, `status`, `restart` and `down` as commands, and what happens when one of their processes dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from reference_apps import up as upkeep
from reference_apps.asking import probe, wait_until
from reference_apps.launchers import docker_engine
from reference_apps.launchers.member import LaunchError
from reference_apps.launchers.process import ProcessLauncher
from reference_apps.models.inputs import WEIGHTS_DIR
from reference_apps.up import Up, list_up
from stages.spec import load_stage, stage_toml
from tests.conftest import PATIENCE_S, ROOT, Rung, processes_of, result
from tests.listening import listening
from tests.test_launchers import loaded

pytestmark = pytest.mark.usefixtures("in_numpy")

INPUT = {"input": [[[0.5] * 8] * 8]}


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pids_of(described: dict[str, Any]) -> list[int]:
    members = [*described["replicas"], *([described["gateway"]] if described["gateway"] else [])]
    return [described["supervisor_pid"], *(member["pid"] for member in members)]


def answers(url: str) -> bool:
    try:
        return httpx.post(f"{url}/predict", json=INPUT, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_up_status_restart_down(rung: Rung, verb: Rung, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    up = result(rung("up", "micro-batched", "--set", "slo.latency_s=0.25", "--json"))
    assert up["stage"] == "micro-batched"
    assert answers(up["url"])
    (replica,) = up["replicas"]
    assert (replica["url"], replica["ready"], alive(replica["pid"])) == (up["url"], True, True)
    assert load_stage(Path(up["folder"]) / "stage.toml").slo.latency_s == 0.25

    (status,) = result(verb("status", "--json"))["stages"]
    assert {key: status[key] for key in up if key != "up_for_s"} == {k: up[k] for k in up if k != "up_for_s"}
    assert status["up_for_s"] > 0
    table = verb("status").stdout
    assert str(replica["pid"]) in table

    again = verb("up", "micro-batched")
    assert again.returncode == 2
    assert again.stderr.strip() == (
        "micro-batched: is up already. See `rung status`, or stop it with `rung down micro-batched`."
    )
    monkeypatch.setattr(docker_engine, "sweep_if_there", lambda *_: [])  # see test_nothing_is_up
    another = verb("down", "single-vm")
    assert another.returncode == 2
    assert another.stderr.strip() == "single-vm: is not up. What is up: micro-batched."
    refused = verb("restart", "micro-batched", "--rolling")
    assert refused.returncode == 1
    assert refused.stderr.startswith("micro-batched: has no [gateway]: clients go to the replica itself")
    assert answers(up["url"])

    after = result(rung("restart", "micro-batched", "--json"))
    assert answers(after["url"])
    assert load_stage(Path(after["folder"]) / "stage.toml").slo.latency_s == 0.25
    assert [pid for pid in pids_of(up) if alive(pid)] == []

    assert result(verb("down", "micro-batched", "--json")) == {"stopped": [{"stage": "micro-batched", "drained": True}]}
    assert [pid for pid in pids_of(after) if alive(pid)] == []
    assert not probe(f"{after['url']}/healthz")
    assert list((runs / "up").glob("*.json")) == []
    assert result(verb("status", "--json")) == {"stages": []}


def test_nothing_is_up(verb: Rung, monkeypatch: pytest.MonkeyPatch) -> None:
    # An engine that is not there leaves sockets open.
    monkeypatch.setattr(docker_engine, "sweep_if_there", lambda *_: [])
    assert verb("status").stdout == "Nothing is up. Start a stage with `rung up micro-batched`.\n"
    assert verb("down").stdout == "Nothing is up.\n"
    assert result(verb("down", "--json")) == {"stopped": []}
    for word in ("down", "restart"):
        done = verb(word, "micro-batched")
        assert (done.returncode, done.stderr) == (2, "micro-batched: is not up. What is up: nothing.\n")


def test_two_commands_at_once_start_a_stage_once_and_nothing_of_it_outlives_its_supervisor(
    verb: Rung, runs: Path
) -> None:
    commands = [[sys.executable, "-m", "rung", "up", "single-vm", "--json"]] * 2
    both = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) for c in commands]
    said = [process.communicate(timeout=2 * PATIENCE_S) for process in both]
    assert sorted(process.returncode for process in both) in ([0, 1], [0, 2])
    assert any("up already" in stderr for _, stderr in said)
    (up,) = [json.loads(stdout) for process, (stdout, _) in zip(both, said, strict=True) if process.returncode == 0]
    assert len(result(verb("status", "--json"))["stages"]) == 1

    (before,) = up["replicas"]
    os.kill(before["pid"], signal.SIGKILL)

    def replaced() -> bool:
        (now,) = list_up()
        return now.replicas[0]["pid"] != before["pid"] and now.replicas[0]["state"] == "ready"

    assert wait_until(replaced, PATIENCE_S)
    (status,) = result(verb("status", "--json"))["stages"]
    (after,) = status["replicas"]
    assert (after["port"], after["ready"]) == (before["port"], True)
    assert answers(up["url"])
    log = (Path(up["folder"]) / "supervisor.log").read_text()
    assert f"replica 0 (pid {before['pid']}) ended with signal SIGKILL." in log
    assert f"replica 0 is started again on port {before['port']}" in log
    assert status["up_for_s"] > up["up_for_s"]

    os.kill(up["supervisor_pid"], signal.SIGKILL)
    assert wait_until(lambda: not any(map(alive, pids_of(status))), PATIENCE_S)
    assert processes_of(runs) == []
    assert result(verb("status", "--json")) == {"stages": []}


def test_a_bad_weights_file_is_told_with_its_log_and_leaves_nothing_running(
    verb: Rung, runs: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "torn.safetensors"
    weights.write_bytes((WEIGHTS_DIR / "digits.safetensors").read_bytes()[:5000])
    done = verb("up", "micro-batched", "--set", f"model.weights={weights}")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("micro-batched did not start.\n")
    assert f"{weights}: 1 problem\n" in done.stderr
    assert "must be a readable safetensors file" in done.stderr
    assert "replica 0" in done.stderr
    assert "ended with exit status 2." in done.stderr
    log = Path(done.stderr.strip().splitlines()[-1].removeprefix("The whole log: "))
    assert log.read_text() != ""
    assert processes_of(runs) == []
    assert result(verb("status", "--json")) == {"stages": []}


def test_a_bad_stage_is_refused_before_anything_is_started(verb: Rung, runs: Path) -> None:
    done = verb("up", "micro-batched", "--set", "batching.max_batch_siz=4")
    assert done.returncode == 2
    assert "Did you mean 'max_batch_size'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not runs.exists()


def test_a_runs_folder_that_cannot_be_written_to_is_told(
    verb: Rung, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("RUNG_RUNS", str(file))
    done = verb("up", "micro-batched")
    assert done.returncode == 2
    assert done.stderr.strip() == (
        f"{file}: must be a folder that can be written to, got 'Not a directory'. "
        "Logs and state would have no place. Set RUNG_RUNS to another."
    )


def test_what_a_crash_left_behind_is_cleared_away(runs: Path) -> None:
    states = runs / "up"
    states.mkdir(parents=True)
    gone = Up("gone", "http://127.0.0.1:9", "", 2**22 - 1, 0.0, [], 0.0)
    (states / "gone.json").write_text(json.dumps(vars(gone)))
    reused = Up("reused", "http://127.0.0.1:9", "", os.getpid(), 0.0, [], 0.0)  # the pid of somebody else by now
    (states / "reused.json").write_text(json.dumps(vars(reused)))
    (states / "half.json").write_text('{"stage": "ha')
    (states / "other.json").write_text('{"some": "thing"}')
    assert list_up() == []
    assert list(states.iterdir()) == []


def test_a_stage_whose_files_have_gone_is_told_of_beside_the_others(
    verb: Rung, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = psutil.Process()
    (runs / "up").mkdir(parents=True)
    gateway = {"name": "gateway", "pid": me.pid, "port": 9, "url": "http://127.0.0.1:9", "state": "ready"}
    texts = {"broken": "tls_certificate = '/gone/tls.crt'\ntls_key = '/gone/tls.key'", "sound": ""}
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        stage = stage_toml(load_stage("load-balanced", {"gateway.edge.port": 4321}))
        assert "port = 4321\n" in stage
        (tmp_path / name / "stage.toml").write_text(stage.replace("port = 4321\n", f"port = 4321\n{text}\n"))
        up = Up(name, gateway["url"], str(tmp_path / name), me.pid, me.create_time(), [], 0.0, gateway)
        (runs / "up" / f"{name}.json").write_text(json.dumps(vars(up)))
    broken, sound = result(verb("status", "--json"))["stages"]
    assert "gateway.edge.tls_certificate: must be" in broken["unreadable"]
    assert (broken["stage"], sound["stage"], sound["unreadable"]) == ("broken", "sound", "")
    assert "Its stage cannot be read any more" in verb("status").stdout


def test_a_supervisor_that_says_nothing_is_told_with_its_log(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        pid = 0

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def poll(self) -> None: ...

        def terminate(self) -> None: ...

    waited_s: list[float] = []
    monkeypatch.setattr(upkeep.subprocess, "Popen", Silent)
    monkeypatch.setattr(upkeep, "wait_until", lambda _, timeout_s: waited_s.append(timeout_s))
    for name in ("load-balanced", "queued"):
        with pytest.raises(LaunchError, match=r"did not say why\. Its log: .*supervisor\.log"):
            upkeep.start(load_stage(name))
    times = load_stage("queued").lifecycle
    assert waited_s[1] > 2 * times.ready_timeout_s + times.drain_timeout_s
    assert waited_s[0] > max(times.ready_timeout_s, times.drain_timeout_s) + times.drain_timeout_s


def test_a_launcher_that_fails_leaves_nothing_behind(runs: Path, tmp_path: Path) -> None:
    stage = load_stage("micro-batched", {"lifecycle.ready_timeout_s": 0.05})
    with pytest.raises(LaunchError, match=r"replica 0 was not ready after 0\.05 s \(lifecycle\.ready_timeout_s\)"):
        ProcessLauncher(stage, tmp_path / "stack").start()
    assert processes_of(runs) == []


def test_a_replica_that_dies_while_it_starts_again_keeps_its_port(tmp_path: Path) -> None:
    with ProcessLauncher(load_stage("micro-batched"), tmp_path) as launcher:
        (first,) = launcher.replicas
        port, kept = first.port, launcher.stage_file.read_text()
        launcher.kill(0)
        first.process.wait(PATIENCE_S)
        assert launcher.look() == [first]
        launcher.stage_file.write_text("no stage")
        second = launcher.restart(first)
        with pytest.raises(LaunchError, match=r"replica 0 \(pid \d+\) ended with exit status 2"):
            launcher.settle()
        launcher.stage_file.write_text(kept)
        third = launcher.restart(second)
        launcher.settle()
        assert (third.port, third.restarts) == (port, 2)
        assert answers(third.url)
        batches = httpx.get(f"{third.url}/batches", trust_env=False).json()
        assert [batch[0] for batch in batches] == [2_000_000_000]  # no number is used twice
    assert [(life.replica, life.ready_s is None) for life in launcher.lives()] == [(0, False), (0, True), (0, False)]


# ---- with a gateway --------------------------------------------------------------------------------------------


def test_a_fleet_is_restarted_under_load_and_outlives_its_members_and_not_its_supervisor(
    rung: Rung, verb: Rung, runs: Path
) -> None:
    # On a machine that is busy for a moment no replica is called ill.
    patient = ["--set", "device.slowdown=1", "--set", "gateway.unhealthy_after=100"]
    up = result(rung("up", "load-balanced", *patient, "--json"))
    assert (up["gateway"]["url"], up["gateway"]["ready"], alive(up["gateway"]["pid"])) == (up["url"], True, True)
    assert [(each["replica"], each["ready"], each["state"]) for each in up["replicas"]] == [
        (0, True, "ready"),
        (1, True, "ready"),
    ]
    table = verb("status").stdout
    assert all(str(pid) in table for pid in pids_of(up)[1:])
    with loaded(up["url"]) as load:
        done = result(verb("restart", "load-balanced", "--rolling", "--json"))
        assert wait_until(lambda: set(load.replicas[-20:]) == {2, 3}, PATIENCE_S)
        assert done == {"stage": "load-balanced", "replaced": [{"old": 0, "new": 2}, {"old": 1, "new": 3}]}
        (status,) = result(verb("status", "--json"))["stages"]
        assert (status["url"], status["gateway"]["pid"]) == (up["url"], up["gateway"]["pid"])
        victim, other = status["replicas"]
        assert (victim["replica"], other["replica"]) == (2, 3)
        (now,) = list_up()
        assert [(life[0], life[4] is None) for life in now.lives] == [(0, False), (1, False), (2, True), (3, True)]

        os.kill(victim["pid"], signal.SIGKILL)

        def is_back() -> bool:
            (now,) = list_up()
            return now.replicas[0]["pid"] != victim["pid"] and now.replicas[0]["state"] == "ready"

        assert wait_until(is_back, PATIENCE_S)
        assert wait_until(lambda: victim["replica"] in load.replicas[-10:], PATIENCE_S)
    assert load.failed == []
    (now,) = list_up()
    assert now.replicas[1]["pid"] == other["pid"]  # nobody else was disturbed

    os.kill(up["gateway"]["pid"], signal.SIGKILL)
    assert wait_until(lambda: not alive(up["gateway"]["pid"]) and answers(up["url"]), PATIENCE_S)
    (now,) = list_up()
    assert [each["state"] for each in now.replicas] == ["ready", "ready"]
    assert len(set(now.pids)) == 3

    os.kill(now.supervisor_pid, signal.SIGKILL)
    assert wait_until(lambda: processes_of(runs) == [], PATIENCE_S)
    assert result(verb("status", "--json")) == {"stages": []}


def test_probing_asks_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with listening(lambda handler, _: 200 if handler.path == "/readyz" else 404) as url:
        assert probe(f"{url}/readyz")
        assert not probe(f"{url}/nowhere")
