"""What is told where there is no Docker, or it will not; what an image is built from. None of this needs an engine."""

from __future__ import annotations

import re
import socket
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import docker
import pytest
from requests.exceptions import ReadTimeout

from reference_apps.launchers import docker_container, docker_engine, docker_image, docker_queue
from reference_apps.launchers.docker import DockerLauncher
from reference_apps.launchers.member import LaunchError
from stages.spec import load_stage
from tests.conftest import Rung


def test_a_digest_changes_with_the_files_that_count_and_no_others(tmp_path: Path) -> None:
    for name in ("reference_apps", "stages/01_x/measured", ".ci/wheelhouse", "tests"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".dockerignore").write_text((docker_image.ROOT / ".dockerignore").read_text())
    files = ["reference_apps/Dockerfile", "reference_apps/a.py", "stages/b.py", "constraints.txt"]
    for name in files:
        (tmp_path / name).write_text("before")
    before = docker_image.digest(tmp_path)
    for name in ("tests/c.py", "stages/01_x/measured/d.json", "README.md"):
        (tmp_path / name).write_text("of no account")
    assert docker_image.digest(tmp_path) == before
    seen = {before}
    for name in files:
        (tmp_path / name).write_text("after!")
        seen.add(docker_image.digest(tmp_path))
    (tmp_path / ".ci/wheelhouse/torch-1.whl").write_text("wheel")
    seen.add(docker_image.digest(tmp_path))
    assert len(seen) == len(files) + 2


def test_a_failed_build_is_told_with_its_last_lines() -> None:
    said: list[str] = []
    stream = [{"stream": "Step 1/2 : FROM python:3.11-slim\n"}, {"stream": "no such host\n"}, {"error": "it is down"}]
    with pytest.raises(LaunchError) as caught:
        docker_image._listen(stream, said.append)
    assert said == ["Building the image: 1/2 : FROM python:3.11-slim"]
    assert "it is down" in str(caught.value)
    assert "  | no such host" in str(caught.value)


def test_the_image_has_what_is_imported() -> None:
    """The versions are those of constraints.txt, and every name is one of the project's, or of its extra `redis`."""
    names = (docker_image.ROOT / "reference_apps/requirements.txt").read_text().splitlines()
    wanted = {name for name in names if name and not name.startswith("#")}
    project = tomllib.loads((docker_image.ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *project["optional-dependencies"]["redis"]]
    assert wanted <= {re.split(r"[>=;]", each)[0].strip() for each in named}
    pinned = (docker_image.ROOT / "constraints.txt").read_text().lower().replace("_", "-")
    assert [name for name in wanted if f"\n{name}==" not in pinned] == []


def test_without_the_whole_project_there_is_no_image_to_build(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="must be there, with the whole project around it"):
        docker_image.ours(None, lambda _: None, tmp_path)


def test_an_engine_that_stops_answering_is_told_in_words() -> None:
    def late(_: str) -> None:
        raise ReadTimeout("Read timed out. (read timeout=60)")

    engine = SimpleNamespace(images=SimpleNamespace(get=late))
    with pytest.raises(LaunchError, match=r"docker: it was not told which image is there: Read timed out"):
        docker_image.ours(engine, lambda _: None)
    with pytest.raises(LaunchError, match=r"docker: it was not told whether nginx:stable is there: Read timed out"):
        docker_image.nginx(engine, lambda _: None)


def test_a_real_gpu_is_refused() -> None:
    stage = load_stage("single-vm", {"device.kind": "cuda", "device.profile": None})
    with pytest.raises(LaunchError, match=r'device\.kind: must be "cpu" or "emulated" in docker, got "cuda"'):
        docker_image.prepare(None, stage, lambda _: None)


def test_no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rung: Rung) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    up = rung("up", "micro-batched", "--on", "docker")
    assert up.returncode == 1
    assert "Traceback" not in up.stderr
    assert up.stderr.startswith("micro-batched did not start.\ndocker: an engine must answer, got:")
    assert "sudo systemctl start docker" in up.stderr
    assert rung("down").stdout == "Nothing is up.\n"


def test_an_engine_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://10.0.0.1:2375")
    with pytest.raises(LaunchError, match=r"DOCKER_HOST: must be a socket of this machine"):
        docker_engine.connect()


def test_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(LaunchError, match=r"pip install 'rung\[docker\]'"):
        docker_engine.connect()
    assert docker_engine.sweep_if_there(tmp_path) == []


def test_nobody_is_let_in() -> None:
    told = docker_engine._no_engine("Error while fetching server API version: PermissionError(13, 'Permission denied')")
    assert "Join the group docker" in told


def test_an_engine_that_does_not_answer_in_time_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection and says nothing, as one does that has too much to do."""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "engine"))
        silent.listen(8)
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'engine'}")
        with pytest.raises(LaunchError, match=r"docker: an engine must answer, got: .*timed out"):
            docker_engine.connect(0.2)
        connect = docker_engine.connect
        monkeypatch.setattr(docker_engine, "connect", lambda _: connect(0.2))
        assert docker_engine.sweep_if_there(tmp_path) == []


def test_a_container_that_the_engine_does_not_start_in_time_is_told_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[bool] = []

    class Container:
        def start(self) -> None:
            raise ReadTimeout("Read timed out. (read timeout=60)")

        def remove(self, force: bool) -> None:
            removed.append(force)
            raise ReadTimeout("Read timed out. (read timeout=60)")

    engine = SimpleNamespace(containers=SimpleNamespace(create=lambda *_, **__: Container()), close=lambda: None)
    monkeypatch.setattr(docker_engine, "connect", lambda: engine)
    launcher = DockerLauncher(load_stage("load-balanced"), tmp_path)
    with pytest.raises(LaunchError, match=r"replica \d+: its container was not started: Read timed out"):
        launcher.add()
    assert (removed, launcher.replicas) == ([True], [])


def test_links_are_not_followed_where_containers_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root, whoever a link leads to would be given to the containers' user."""
    given: list[tuple[str, bool]] = []

    def chown(path: Path | str, *_: int, dir_fd: int | None = None, follow_symlinks: bool = True) -> None:
        given.append((Path(path).name, follow_symlinks))

    (tmp_path / "queue" / "payloads").mkdir(parents=True)
    (tmp_path / "queue" / "payloads" / "a").write_text("")
    (tmp_path / "queue" / "link").symlink_to("/etc/passwd")
    monkeypatch.setattr(docker_queue.os, "getuid", lambda: 0)
    monkeypatch.setattr(docker_queue.os, "chown", chown)
    docker_queue.prepare(tmp_path / "queue")
    assert sorted(given) == [("a", False), ("link", False), ("payloads", False), ("queue", True)]


def test_docker_desktop_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    desktop = SimpleNamespace(info=lambda: {"OperatingSystem": "Docker Desktop"}, close=lambda: closed.append(True))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(docker, "from_env", lambda **_: desktop)
    with pytest.raises(LaunchError, match="the engine must run on this machine itself"):
        docker_engine.connect()
    assert closed == [True]


@pytest.mark.parametrize(("code", "status"), [(0, 0), (2, 2), (137, -9), (143, -15), (255, 255), (129 + 90, 219)])
def test_the_status_of_a_container_is_that_of_a_process(code: int, status: int) -> None:
    assert docker_container._as_process(code) == status
