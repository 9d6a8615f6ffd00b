"""A registry of a test's own: the project's weights under several versions, which differ in their facts alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from reference_apps.model_metadata import About
from reference_apps.models.inputs import WEIGHTS_DIR
from reference_apps.registry import REGISTRY_ENV, Registry

ACCURACY = {"accuracy": 0.97}


def two_versions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Champion and challenger, which are alike, and one each that is slower and that always crashes."""
    monkeypatch.setenv(REGISTRY_ENV, str(folder / "registry"))
    registry = Registry(folder / "registry")
    weights = (WEIGHTS_DIR / "digits.safetensors").read_bytes()
    for version, facts in (
        ("1", {}),
        ("2", {}),
        ("slower", {"service_time_factor": 4.0}),
        ("crashing", {"crash_share": 1.0}),
    ):
        registry.publish(About.model_validate({"model": "digits", "metrics": ACCURACY, **facts}), weights, version)
    registry.set_alias("digits", "champion", "1")
    registry.set_alias("digits", "challenger", "2")
    return registry
