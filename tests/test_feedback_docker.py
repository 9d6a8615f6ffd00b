"""Labels of a stage in containers: they are written outside of them, and outlive them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from reference_apps.feedback_reading import FeedbackReader
from reference_apps.launchers.docker import DockerLauncher
from stages.spec import load_stage
from tests.conftest import PATIENCE_S
from tests.queued import INPUTS
from tests.test_launchers import DOCKER

pytestmark = [*DOCKER, pytest.mark.usefixtures("in_numpy")]


def test_labels_are_kept_outside_of_the_containers(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNG_RUNS", str(tmp_path / "runs"))
    stage = load_stage("load-balanced", {"fleet.replicas": 1, "feedback.share": 1.0, "overload": True})
    with (
        DockerLauncher(stage, tmp_path / "run") as launcher,
        httpx.Client(base_url=launcher.url, timeout=PATIENCE_S, trust_env=False) as client,
    ):
        for number, picture in enumerate(INPUTS):
            headers = {"x-request-id": f"r{number}"}
            answer = client.post("/predict", json={"input": picture.tolist()}, headers=headers).json()
            label = {"request_id": f"r{number}", "label": answer["label"]}
            assert client.post("/feedback", json=label).json()["status"] == "stored"
    assert stage.feedback is not None
    with FeedbackReader(stage.feedback, launcher.feedback_folder) as reader:
        counts = reader.counts(reader.newest()[""], 0.0)
    assert (counts.predictions, counts.labelled, counts.right) == (len(INPUTS),) * 3
