"""Two versions in containers: nginx splits as both worlds say, and what our gateway writes down is on this machine."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from reference_apps import split_file
from reference_apps.launchers.launcher import Launcher
from stages.policies.splitting import bucket, bucket_of_nginx
from stages.spec import Stage, load_stage
from tests.conftest import PATIENCE_S
from tests.registries import two_versions

# An image that has yet to be built takes minutes.
pytestmark = [pytest.mark.docker, pytest.mark.timeout(900), pytest.mark.usefixtures("in_numpy")]

INPUT = {"input": [[[0.5] * 8] * 8]}
USERS = [str(user) for user in range(120)]


def a_stage(**changes: Any) -> Stage:
    quick = {
        "device.slowdown": 1.0,
        "batching.batch_wait_timeout_s": 0.002,
        "fleet.replicas": 1,
        "split.ramp": None,
        "feedback": None,
    }
    return load_stage("ab-test", quick | {key.replace("__", "."): value for key, value in changes.items()})


def looking(launcher: Launcher, condition: Callable[[], bool]) -> None:
    """Looks, as a supervisor does, until `condition` holds."""
    for _ in itertools.repeat(None, 600):
        launcher.look()
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to be so in time")


def arms(url: str) -> list[tuple[int, str]]:
    """Status and arm of a request of every user."""
    with httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False) as client:
        answers = [client.post("/predict", json=INPUT, headers={"x-rung-user": user}) for user in USERS]
    return [(answer.status_code, answer.headers["x-rung-arm"]) for answer in answers]


def expected(place: Callable[[str, str], float], salt: str, share: float) -> list[tuple[int, str]]:
    return [(200, "challenger" if place(user, salt) < share else "champion") for user in USERS]


def test_nginx_splits_as_both_worlds_say_and_goes_by_another_share(
    engine: Any, nginx_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reference_apps.launchers.docker import DockerLauncher

    two_versions(tmp_path, monkeypatch)
    plain = {"gateway__engine": "nginx", "split__guardrails": None}
    stage = a_stage(**plain, split__challenger_share=0.3, split__salt="salty")
    with DockerLauncher(stage, tmp_path / "run") as launcher:
        assert arms(launcher.url) == expected(bucket_of_nginx, "salty", 0.3)
        split_file.set_share(launcher.split_folder, 0.6)
        before = launcher.generation
        looking(launcher, lambda: launcher._seen_by_gateway()[0] >= launcher.generation > before)
        assert arms(launcher.url) == expected(bucket_of_nginx, "salty", 0.6)


def test_our_gateway_goes_by_the_control_file_and_writes_its_stop_there(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reference_apps.launchers.docker import DockerLauncher

    two_versions(tmp_path, monkeypatch)
    limits = {"requests_min": 5, "errors_share_max": 0.05}
    stage = a_stage(split__challenger="crashing", split__challenger_share=0.0, split__guardrails=limits)
    with DockerLauncher(stage, tmp_path / "run") as launcher:
        assert arms(launcher.url) == expected(bucket, "", 0.0)
        split_file.set_share(launcher.split_folder, 1.0)

        def stopped() -> bool:
            told = split_file.read(launcher.split_folder)
            arms(launcher.url)
            return told is not None and told.stopped == "errors"

        looking(launcher, stopped)
        assert {status for status, _ in arms(launcher.url)} == {200}
