"""A queued stage in containers: workers and API share one queue on this machine's disk, and outlive each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from reference_apps.asking import wait_until
from reference_apps.launchers.docker import DockerLauncher
from stages.spec import Stage
from tests.conftest import PATIENCE_S
from tests.queued import INPUTS, put, queued, results, stored
from tests.test_launchers import DOCKER, until

pytestmark = [*DOCKER, pytest.mark.usefixtures("in_numpy")]
BODY = {"input": INPUTS[0].tolist()}


@pytest.mark.parametrize("broker", ["sqlite", "redis"])
def test_jobs_are_done_by_containers_and_workers_come_and_go(
    engine: Any, tmp_path: Path, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNG_RUNS", str(tmp_path / "runs"))
    stage = queued(queue__broker=broker, queue__lease_s=2.0, fleet__replicas=2)
    with DockerLauncher(stage, tmp_path / "run") as launcher:
        names = [member.name for member in launcher.members]
        assert names == ["worker-0", "worker-1", "jobs", *(["broker"] if broker == "redis" else [])]
        assert launcher.url.startswith("http://127.0.0.1:")
        with httpx.Client(base_url=launcher.url, timeout=PATIENCE_S, trust_env=False) as client:
            assert client.post("/predict", json=BODY).json()["model"] == "digits"
            jobs = [client.post("/jobs", json=BODY).json()["job"] for _ in range(40)]
            launcher.kill(0)
            new = launcher.add()
            launcher.drain(1)
            until(launcher, lambda: new.state == "ready" and len(launcher.replicas) == 2)
            done = [client.get(f"/jobs/{job}", params={"wait_s": 20}).json() for job in jobs]
            assert {each["outcome"] for each in done} == {"ok"}
            assert b"rung_queue_jobs" in client.get("/metrics").content
        if broker == "sqlite":
            can_be_read_from_outside(stage, tmp_path / "run")


def can_be_read_from_outside(stage: Stage, folder: Path) -> None:
    """What containers keep is put, and found, by this process too."""
    with stored(stage, folder) as store:
        found = results(store, put(store, *INPUTS))
        assert {orjson.loads(each.answer)["label"] in range(10) for each in found.values()} == {True}
        assert wait_until(lambda: store.broker.depth().leased == 0, PATIENCE_S)
