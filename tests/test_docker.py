"""Containers: what is made for a stage, how it is limited and labelled, what a crash leaves, and what users are told.

What they have in common with processes is in tests/test_launchers.py.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from reference_apps import nginx
from reference_apps.asking import wait_until
from reference_apps.launchers import docker_engine, docker_files, docker_image
from reference_apps.launchers.docker import DockerLauncher
from reference_apps.launchers.docker_engine import OWNER, ROLE, RUN, RUNS, STAGE
from reference_apps.launchers.member import LaunchError
from stages.fleet import NGINX_POLICIES
from stages.spec import load_stage
from tests.conftest import PATIENCE_S, Rung, result
from tests.test_launchers import DOCKER, INPUT, QUICK, loaded, numbers, until

KEY = "a-key.of+forty~characters/and_a_little=="

pytestmark = [*DOCKER, pytest.mark.usefixtures("in_numpy")]


@pytest.fixture(scope="module")
def fleet(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerLauncher]:
    """Two replicas behind our gateway, each on a machine of one processor and 1 GiB."""
    size = {"machine.cpus": 1.0, "machine.memory_mib": 1024}
    with DockerLauncher(load_stage("load-balanced", QUICK | size), tmp_path_factory.mktemp("fleet")) as launcher:
        yield launcher


@pytest.fixture(scope="module")
def proxied(engine: Any, nginx_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerLauncher]:
    """Two replicas behind nginx."""
    stage = load_stage("load-balanced", nginx_keys())
    with DockerLauncher(stage, tmp_path_factory.mktemp("proxied")) as launcher:
        yield launcher


def nginx_keys() -> dict[str, Any]:
    """QUICK without what nginx has not."""
    ours = ("probe", "unhealthy")
    kept = {key: value for key, value in QUICK.items() if not any(word in key for word in ours)}
    return kept | {"gateway.engine": "nginx"}


def inspected(launcher: DockerLauncher, member: Any) -> dict[str, Any]:
    container = member.process.container
    container.reload()
    attributes: dict[str, Any] = container.attrs
    return attributes


def left_of(engine: Any, run: Path) -> list[Any]:
    """What the engine has of one run: containers and networks."""
    label = {"label": f"{RUN}={run}"}
    return [*engine.api.containers(all=True, filters=label), *engine.api.networks(filters=label)]


# ---- what is made ----


def test_only_the_gateway_is_published_and_only_on_loopback(fleet: DockerLauncher) -> None:
    published = {m.name: inspected(fleet, m)["NetworkSettings"]["Ports"] for m in fleet.members}
    assert fleet.gateway is not None
    assert published.pop("gateway") == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(fleet.gateway.port)}]}
    assert set(map(str, published.values())) == {"{'8000/tcp': None}"}


def test_a_replica_has_the_size_of_its_machine_and_no_more_rights_than_it_needs(fleet: DockerLauncher) -> None:
    told = inspected(fleet, fleet.replicas[0])
    host = told["HostConfig"]
    assert host["NanoCpus"] == 1_000_000_000
    assert host["Memory"] == host["MemorySwap"] == 1024 * 2**20
    assert (host["ReadonlyRootfs"], host["CapDrop"], host["Privileged"]) == (True, ["ALL"], False)
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["PidsLimit"] > 0
    assert not any(mount["RW"] for mount in told["Mounts"])
    uid = psutil.Process(fleet.replicas[0].pid).uids().real
    assert uid == docker_files.user()[0] != 0


def test_the_pid_is_that_of_the_server_itself(fleet: DockerLauncher) -> None:
    for member in fleet.members:
        words = psutil.Process(member.pid).cmdline()
        assert ("reference_apps.serve_gateway" if member is fleet.gateway else "reference_apps.serve") in words


def test_everything_is_labelled(fleet: DockerLauncher, engine: Any) -> None:
    rows = left_of(engine, fleet.folder)
    roles = sorted(row["Labels"][ROLE] for row in rows)
    assert roles == ["gateway", "network", "replica", "replica"]
    assert {row["Labels"][STAGE] for row in rows} == {"load-balanced"}
    assert {row["Labels"][OWNER] for row in rows} == {docker_engine.owner()}


def test_the_health_check_of_the_image_finds_a_replica_alive(fleet: DockerLauncher) -> None:
    container = fleet.replicas[0].process.container  # type: ignore[attr-defined]
    check = container.attrs["Config"]["Healthcheck"]["Test"]
    assert check[0] == "CMD"
    assert container.exec_run(check[1:]).exit_code == 0
    assert container.exec_run([word.replace("8000", "8001") for word in check[1:]]).exit_code != 0


def test_the_logs_of_containers_are_in_the_folder_of_the_run(fleet: DockerLauncher) -> None:
    for member in fleet.members:
        assert wait_until(lambda log=member.log: "ready" in log.read_text(), PATIENCE_S)


def test_one_that_is_cut_off_leaves_the_rotation_and_returns(fleet: DockerLauncher) -> None:
    victim = fleet.replicas[0]
    fleet.cut_off(victim.number)
    until(fleet, lambda: not fleet.in_rotation(victim))
    assert victim.process.poll() is None
    fleet.rejoin(victim.number)
    until(fleet, lambda: fleet.in_rotation(victim))
    with loaded(fleet.url) as load:
        until(fleet, lambda: victim.number in load.replicas)
    assert load.failed == []


def test_weights_and_a_trace_of_this_machine_are_found_inside_and_nothing_is_left(engine: Any, tmp_path: Path) -> None:
    """The files in the folder were for the containers alone."""
    from reference_apps.models.inputs import WEIGHTS_DIR

    weights, trace, folder = tmp_path / "my weights.safetensors", tmp_path / "trace.csv", tmp_path / "run"
    weights.write_bytes((WEIGHTS_DIR / "digits.safetensors").read_bytes())
    weights.chmod(0o644)
    source = Path(__file__).parent / "invalid_stages/traces/times.csv"
    trace.write_bytes(source.read_bytes())
    trace.chmod(0o644)
    changes = {
        "model.weights": str(weights),
        "traffic.duration_s": 5.0,
        "traffic.rate": {"shape": "trace", "path": str(trace)},
    }
    with DockerLauncher(load_stage("single-vm", changes), folder) as launcher:
        answer = httpx.post(f"{launcher.url}/predict", json=INPUT, trust_env=False, timeout=PATIENCE_S)
        assert answer.status_code == 200
        assert left_of(engine, folder)
        assert (folder / "replica").stat().st_mode & 0o077 == 0
        assert (folder / "replica").stat().st_uid == docker_files.user()[0]
        assert launcher.replicas[0].port != 8000
    assert left_of(engine, folder) == []


def test_too_little_memory_is_told(engine: Any, tmp_path: Path) -> None:
    changes = {"machine.memory_mib": 256, "model.name": "resnet50", "batching.max_batch_size": 8}
    stage = load_stage("micro-batched", changes | {"device.kind": "cpu", "device.profile": None})
    with pytest.raises(LaunchError) as caught:
        DockerLauncher(stage, tmp_path).start()
    assert "Its machine had too little memory: machine.memory_mib = 256." in str(caught.value)
    assert left_of(engine, tmp_path) == []


def test_a_replica_that_cannot_start_is_told_with_its_last_lines(engine: Any, tmp_path: Path) -> None:
    """Of a process: test_up.py."""
    weights = tmp_path / "torn.safetensors"
    weights.write_bytes(b"\0" * 100)
    weights.chmod(0o644)
    launcher = DockerLauncher(load_stage("micro-batched", {"model.weights": str(weights)}), tmp_path / "stack")
    with pytest.raises(LaunchError) as caught:
        launcher.start()
    assert "replica 0 (pid " in str(caught.value)
    assert "ended with exit status 2." in str(caught.value)
    assert "must be a readable safetensors file" in str(caught.value)
    assert launcher.pids == ()


def test_more_processors_than_there_are_is_told(engine: Any, tmp_path: Path) -> None:
    with pytest.raises(LaunchError) as caught:
        DockerLauncher(load_stage("micro-batched", {"machine.cpus": 1000.0}), tmp_path).start()
    count = engine.info()["NCPU"]
    assert str(caught.value) == (
        f"machine.cpus: must be at most {count}, the processors of this machine, got 1000. "
        "A container cannot have more. Lower it, or leave it out for no limit."
    )
    assert left_of(engine, tmp_path) == []


def test_a_port_in_use_is_told(engine: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        stage = load_stage("load-balanced", {"gateway.edge.port": port, "fleet.replicas": 1, "overload": True})
        with pytest.raises(LaunchError) as caught:
            DockerLauncher(stage, tmp_path).start()
    assert str(caught.value) == (
        f"gateway.edge.port: must be a free port, got {port}. Another program listens there. "
        "Stop it, or set gateway.edge.port=0 for a free one."
    )
    assert left_of(engine, tmp_path) == []


# ---- up and down, and what a crash leaves ----


def test_up_status_and_down_and_what_a_crash_left(rung: Rung, verb: Rung, runs: Path, engine: Any) -> None:
    host = docker_engine.owner().rsplit(" ", 2)[0]
    labels = {OWNER: f"{host} {2**22 - 1} 0.0", STAGE: "single-vm", RUNS: str(runs)}
    engine.networks.create(f"rung-left-{os.getpid()}", labels=labels)
    up = result(rung("up", "single-vm", "--on", "docker", "--json"))
    try:
        assert engine.networks.list(names=[f"rung-left-{os.getpid()}"]) == [], "rung up has removed what was left"
        assert up["on"] == "docker"
        answer = httpx.post(f"{up['url']}/predict", json=INPUT, trust_env=False, timeout=PATIENCE_S)
        assert answer.status_code == 200
        (status,) = result(verb("status", "--json"))["stages"]
        assert [replica["ready"] for replica in status["replicas"]] == [True]
    finally:
        down = verb("down", "single-vm", "--json")
    assert result(down) == {"stopped": [{"stage": "single-vm", "drained": True}]}
    assert left_of(engine, Path(up["folder"])) == []

    up = result(rung("up", "single-vm", "--on", "docker", "--json"))
    pid, folder = up["supervisor_pid"], Path(up["folder"])
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not psutil.pid_exists(pid) or _zombie(pid), PATIENCE_S)
    assert len(left_of(engine, folder)) == 2
    assert len(result(verb("down", "single-vm", "--json"))["removed"]) == 2
    assert left_of(engine, folder) == []


def _zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_only_what_belongs_to_nobody_is_swept(engine: Any, tmp_path: Path) -> None:
    me = docker_engine.owner()
    host, pid, born_s = me.rsplit(" ", 2)
    owners = {
        "mine": me,
        "set-clock": f"{host} {pid} {float(born_s) + 1.0}",  # the clock was set between the two readings
        "elsewhere": f"another-{host} 1 0.0",
        "unreadable": "somebody",
        "dead": f"{host} {2**22 - 1} 0.0",
        "reused": f"{host} {pid} {float(born_s) - 100.0}",  # the pid of somebody else by now
    }
    networks = {
        name: engine.networks.create(
            f"rung-sweep-{os.getpid()}-{name}", labels={OWNER: owner, STAGE: f"s-{name}", RUNS: str(tmp_path)}
        )
        for name, owner in owners.items()
    }
    try:
        assert docker_engine.sweep(engine, tmp_path / "other") == []
        assert docker_engine.sweep(engine, tmp_path, "s-mine") == []
        assert docker_engine.sweep(engine, tmp_path, "s-reused") == [networks["reused"].name]
        assert docker_engine.sweep(engine, tmp_path) == [networks["dead"].name]
        left = {network.id for network in engine.networks.list()}
        assert [name for name, each in networks.items() if each.id in left] == list(owners)[:4]
    finally:
        for name in ("mine", "set-clock", "elsewhere", "unreadable"):
            networks[name].remove()


# ---- nginx ----


def test_nginx_takes_what_is_written_for_it(engine: Any, nginx_image: str, tmp_path: Path) -> None:
    """Every policy, with nobody behind it and with two."""
    written = [(policy, fleet_of) for policy in NGINX_POLICIES for fleet_of in (0, 2)]
    for policy, fleet_of in written:
        stage = load_stage("load-balanced", nginx_keys() | {"gateway.policy": policy})
        addresses = {number: f"172.30.0.{number + 2}:8000" for number in range(fleet_of)}
        text = nginx.configuration(stage, addresses, 3, api_keys=(KEY,) if fleet_of else ())
        docker_files.StageFiles(stage, tmp_path).deliver("gateway", f"{policy}-{fleet_of}.conf", text, secret=True)
    uid, gid = docker_files.user()
    said = engine.containers.run(
        nginx_image,
        ["-c", "for file in /stage/*.conf; do nginx -e stderr -t -c $file || exit 1; done"],
        entrypoint=["sh"],
        user=f"{uid}:{gid}",
        volumes=[f"{tmp_path / 'gateway'}:/stage:ro"],
        read_only=True,
        tmpfs={"/tmp": ""},
        cap_drop=["ALL"],
        network_mode="none",
        stderr=True,
        remove=True,
    ).decode()
    assert said.count("test is successful") == len(written)
    assert "warn" not in said


def test_nginx_serves_with_ids_and_refuses_as_our_gateway_does(proxied: DockerLauncher) -> None:
    with httpx.Client(base_url=proxied.url, timeout=PATIENCE_S, trust_env=False) as client:
        answer = client.post("/predict", json=INPUT, headers={"x-request-id": "mine-1"})
        assert (answer.status_code, answer.headers.get_list("x-request-id")) == (200, ["mine-1"])
        assert "replica=" in answer.headers["x-rung-record"]
        made = client.post("/predict", json=INPUT, headers={"x-request-id": "no id: {}"}).headers["x-request-id"]
        assert len(made) == 32
        limit = proxied.stage.admission.max_body_bytes
        refused = {
            "not_found": client.get("/metrics"),
            "bad_input": client.post("/predict", content=b"0" * (limit + 1)),
        }
        assert [answer.status_code for answer in refused.values()] == [404, 413]
        for title, answer in refused.items():
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["title"] == title
            assert answer.json()["status"] == answer.status_code
            assert answer.headers["x-request-id"]
        own = client.post("/predict", json={"input": "no picture"})
        assert own.status_code == 422
        assert own.json()["title"] == "bad_input"
        assert client.get("/readyz").status_code == 200


def test_nginx_sees_the_fleet_change_under_load_and_no_request_is_lost(proxied: DockerLauncher) -> None:
    first = proxied.replicas[0]
    with loaded(proxied.url, reconnects=True) as load:
        until(proxied, lambda: set(load.replicas) == set(numbers(proxied)))
        new = proxied.add()
        until(proxied, lambda: proxied.in_rotation(new))
        until(proxied, lambda: new.number in load.replicas)
        proxied.drain(first.number)
        until(proxied, lambda: first.state == "gone")
        served = len(load.replicas)
        until(proxied, lambda: len(load.replicas) > served + 20)
    assert load.failed == []
    assert first.number not in load.replicas[served + 8 :]


def test_nginx_tries_another_replica_where_a_connection_is_refused(proxied: DockerLauncher) -> None:
    addresses = {r.number: r.inner_url.removeprefix("http://") for r in proxied.replicas}
    first = numbers(proxied)[0]
    addresses[first] = addresses[first].replace(":8000", ":8009")  # the machine is there, and nobody listens
    text = nginx.configuration(proxied.stage, addresses, proxied.generation + 1)
    proxied._files.deliver("gateway", "nginx.conf", text, secret=True)
    assert proxied.gateway is not None
    proxied.gateway.process.send_signal(signal.SIGHUP)
    generation = str(proxied.generation + 1)
    assert wait_until(lambda: httpx.get(f"{proxied.url}/generation", trust_env=False).text == generation, PATIENCE_S)
    with loaded(proxied.url) as load:
        assert wait_until(lambda: len(load.statuses) > 40, PATIENCE_S)
    assert load.failed == []
    proxied.generation += 1
    proxied._publish()
    until(proxied, lambda: all(proxied.in_rotation(replica) for replica in proxied.replicas))


def test_nginx_without_a_replica_says_so(proxied: DockerLauncher) -> None:
    for number in numbers(proxied):
        proxied.drain(number)
    until(proxied, lambda: proxied.replicas == [])
    answer = httpx.post(f"{proxied.url}/predict", json=INPUT, trust_env=False, timeout=PATIENCE_S)
    assert (answer.status_code, answer.json()["title"]) == (503, "no_replica")
    assert int(answer.headers["retry-after"]) >= 1
    again = proxied.add()
    until(proxied, lambda: proxied.in_rotation(again))
    assert httpx.post(f"{proxied.url}/predict", json=INPUT, trust_env=False).status_code == 200


@pytest.mark.parametrize("kind", ["rung", "nginx"])
def test_keys_and_tls_at_the_edge(
    engine: Any, nginx_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    certificate, key = tmp_path / "edge.crt", tmp_path / "edge.key"
    words = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -keyout {key} -out {certificate}"
    subprocess.run(words.split(), check=True, capture_output=True, timeout=PATIENCE_S)
    monkeypatch.setenv("RUNG_TEST_KEYS", f"another-key-0123456789,{KEY}")
    edge = {
        "gateway.edge.api_keys_env": "RUNG_TEST_KEYS",
        "gateway.edge.tls_certificate": str(certificate),
        "gateway.edge.tls_key": str(key),
        "fleet.replicas": 1,
    }
    keys = nginx_keys() if kind == "nginx" else QUICK
    stage = load_stage("load-balanced", keys | edge | {"overload": True})
    with DockerLauncher(stage, tmp_path / "run") as launcher:
        assert launcher.url.startswith("https://127.0.0.1:")
        with httpx.Client(base_url=launcher.url, verify=False, timeout=PATIENCE_S, trust_env=False) as client:
            assert client.get("/healthz").status_code == 200

            def status(**headers: str) -> int:
                named = {name.replace("_", "-"): value for name, value in headers.items()}
                return client.post("/predict", json=INPUT, headers=named).status_code

            assert status(authorization=f"Bearer {KEY}") == 200
            assert status(authorization=f"bearer {KEY}") == 200
            assert status(x_api_key="another-key-0123456789") == 200
            assert status() == 401
            assert status(authorization=f"Bearer {KEY.upper()}") == 401
            assert status(authorization=f"Bearer {KEY}x") == 401
            assert status(authorization=KEY) == 401
            assert status(x_api_key="another-key-0123456789,another-key-0123456789") == 401
        assert (tmp_path / "run/replica/tls.key").read_bytes() == b""
        container = launcher.gateway.process.container  # type: ignore[union-attr]
        container.reload()
        assert container.exec_run(container.attrs["Config"]["Healthcheck"]["Test"][1:]).exit_code == 0


# ---- images ----


def test_the_image_is_not_built_twice_from_the_same_files(engine: Any) -> None:
    said: list[str] = []
    one, two = (docker_image.ours(engine, said.append) for _ in range(2))
    assert one == two
    assert said == []


def test_a_cache_has_a_server_of_its_own_in_the_network(engine: Any, tmp_path: Path) -> None:
    cache = {"cache.policy": "lru", "cache.store": "redis", "cache.down_s": 0.2}
    stage = load_stage("load-balanced", QUICK | cache | {"fleet.replicas": 1, "overload": True})

    def had() -> str:
        answer = httpx.post(f"{launcher.url}/predict", json=INPUT, trust_env=False, timeout=PATIENCE_S)
        assert answer.status_code == 200
        return answer.headers["x-rung-cache"]

    with DockerLauncher(stage, tmp_path) as launcher:
        member = launcher.cache
        assert member is not None
        assert not inspected(launcher, member)["HostConfig"]["PortBindings"]
        assert wait_until(lambda: had() == "hit", PATIENCE_S)
        launcher.empty_cache()
        assert had() == "miss"
        member.process.kill()
        until(launcher, lambda: member.state == "died")
        assert had() in ("hit", "miss")
        again = launcher.restart(member)
        until(launcher, lambda: again.state == "ready")
        assert wait_until(lambda: had() == "hit", PATIENCE_S)
