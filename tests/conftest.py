"""What the tests of the real stack share: stages that serve, a runs folder of a test's own, and the end of both.

Whatever a test started is stopped after it, also when it failed: launchers by leaving their `with`, and what
`rung up` left in the background by the environment that it inherited.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from typer.testing import CliRunner

from reference_apps.launchers import docker_engine, docker_image
from reference_apps.launchers.member import LaunchError, Member
from reference_apps.launchers.process import ProcessLauncher
from rung import app
from stages.spec import Stage, load_stage
from tests.containers_in_numpy import containers_in_numpy
from tests.long_files import LONGEST_FIRST

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 60.0  # for what takes a second on a quiet machine


@dataclass(frozen=True)
class Served:
    """A replica that serves a stage."""

    stage: Stage
    folder: Path
    replica: Member

    @property
    def url(self) -> str:
        return self.replica.url

    @property
    def pid(self) -> int:
        return self.replica.pid

    def client(self) -> httpx.Client:
        """A client of this replica that asks no proxy, and loads no certificates for its plain HTTP."""
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False, verify=False)

    def log(self) -> str:
        return self.replica.log.read_text()


@contextlib.contextmanager
def serving(name: str, folder: Path, overrides: Mapping[str, Any] | None = None) -> Iterator[Served]:
    """One replica of a stage on a free port, in a process of its own."""
    stage = load_stage(name, {"overload": True} | dict(overrides or {}))
    with ProcessLauncher(stage, folder) as launcher:
        yield Served(stage, folder, launcher.replicas[0])


@pytest.fixture(scope="module")
def in_numpy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Processes and containers that are started compute `digits` in NumPy: see tests/in_numpy/sitecustomize.py.

    For tests that look at how they come, go and speak with each other. That a replica answers as PyTorch does is asked
    by others: in test_replica.py and test_versions.py, and of containers that `rung up` starts.
    """
    path = os.pathsep.join([str(ROOT / "tests/in_numpy"), *filter(None, [os.environ.get("PYTHONPATH")])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        with contextlib.suppress(ImportError):
            containers_in_numpy(patch, ROOT / "tests/in_numpy", tmp_path_factory.mktemp("in_numpy"))
        yield


@pytest.fixture(scope="session")
def micro_batched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The stage micro-batched, shared: tests look at what is added to its counts. It has room for all who come late."""
    room = {"admission.max_queue_length": 10_000}
    with serving("micro-batched", tmp_path_factory.mktemp("micro-batched"), room) as served:
        yield served


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    """A Docker engine that answers, with the image of these very files. Its tests carry the marker `docker`."""
    try:
        client = docker_engine.connect()
    except LaunchError as error:
        pytest.skip(str(error))
    with contextlib.closing(client):
        docker_image.ours(client, docker_image.say)
        yield client


@pytest.fixture(scope="session")
def nginx_image(engine: Any) -> str:
    """The name of nginx's image, which is there."""
    try:
        docker_image.nginx(engine, docker_image.say)
    except LaunchError as error:
        pytest.skip(str(error))
    return docker_image.NGINX_IMAGE


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis-compatible server that fsyncs before it answers; every test takes a name of its own."""
    from tests.redis_server import redis_server

    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


def pytest_configure(config: pytest.Config) -> None:
    """Has pytest-xdist, where it is there, begin with files in the order in which they were collected."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take longest first; all others, and the tests of a file, stay in their order."""
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a test that is skipped has failed, but for those that need a GPU: CI installs all else."""
    report = yield
    if os.environ.get("CI") and report.skipped and item.get_closest_marker("gpu") is None:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where nothing but a GPU may be missing: {report.longrepr}"
    return report


Rung = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def runs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runs folder of this test's own; what was started under it and still runs afterwards is killed."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("RUNG_RUNS", str(folder))
    yield folder
    left = processes_of(folder)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=PATIENCE_S)
    if request.node.get_closest_marker("docker") is not None:
        docker_engine.sweep_if_there(folder)


@pytest.fixture
def rung(runs: Path) -> Rung:
    """Runs a command line of `rung` in a process of its own, and gives back its exit status and what it said."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rung", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=2 * PATIENCE_S, check=False)

    return run


@pytest.fixture
def verb(runs: Path) -> Rung:
    """The same in this process, which spares a process its imports: for verbs that leave nothing running.

    What they start would have this process for its parent, and be waited for by nobody; and without an engine `down`
    leaves sockets of the Docker client open, which is a warning here.
    """

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        done = CliRunner().invoke(app, words)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)

    return run


def result(done: subprocess.CompletedProcess[str]) -> Any:
    """What a command with --json printed. It fails the test when the command failed."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def processes_of(runs: Path) -> list[psutil.Process]:
    """The processes, other than this one, that were started with this runs folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RUNG_RUNS") == str(runs) and process.pid != os.getpid():
                found.append(process)
    return found
