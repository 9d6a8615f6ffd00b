"""What is known of one version of a model, in the file metadata.json beside its weights.

    whoever trained it: About ──▶ Registry.publish adds version, digest, code and time ──▶ Metadata ──▶ metadata.json

Not here: how a model is trained (reference_apps/models/), and where versions are kept (reference_apps/registry.py).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import importlib.metadata
import subprocess
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from stages.model_facts import ModelFacts

DIGEST_BYTES = 32
GIT_TIMEOUT_S = 5.0


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(_Part):
    """What a version was trained on, and how much was held out to judge it by. Sizes are examples."""

    name: str
    digest: str = ""  # of the bytes of the examples that it was trained on, and of their labels
    train_size: int = Field(0, ge=0)
    held_out_size: int = Field(0, ge=0)


class About(_Part):
    """What whoever publishes a version says of it."""

    model: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    architecture: str = ""  # the class of its network
    data: Data | None = None
    metrics: dict[str, float] = {}  # on the data held out: "accuracy" is the share of right answers
    service_time_factor: float = Field(1.0, ge=1.0, le=1000.0)  # every batch takes so many times the device's time
    crash_share: float = Field(0.0, ge=0.0, le=1.0)  # of all inputs: those that it is made to fail on
    note: str = ""


class Metadata(About):
    """That, and what the registry knows. Nothing of it changes once it is published."""

    version: str
    digest: str  # BLAKE2b of the file of its weights, hexadecimal
    weights_bytes: int = Field(ge=0)
    code_version: str
    created_at: str  # ISO 8601, UTC

    def facts(self) -> ModelFacts:
        """What both worlds take the version to be."""
        accuracy = self.metrics.get("accuracy")
        return ModelFacts(
            service_time_factor=self.service_time_factor,
            crash_share=self.crash_share,
            accuracy=accuracy if accuracy is not None and 0.0 <= accuracy <= 1.0 else None,
        )


def described(about: About, version: str, weights: bytes) -> Metadata:
    """The metadata of a version that is published now, by the code that is running."""
    return Metadata(
        **about.model_dump(include=set(About.model_fields)),
        version=version,
        digest=digest_of(weights),
        weights_bytes=len(weights),
        code_version=code_version(),
        created_at=dt.datetime.now(dt.UTC).isoformat(timespec="microseconds"),
    )


def digest_of(*parts: bytes) -> str:
    """BLAKE2b over the parts one after the other, hexadecimal."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def code_version() -> str:
    """The version of the distribution; in a checkout the commit too, with a plus where files differ from it."""
    version = "unknown"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version("rung")
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return version
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return version
    return f"{version} {done.stdout.strip()}" if done.returncode == 0 and done.stdout.strip() else version
