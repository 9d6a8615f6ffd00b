"""The trouble that a queued stage is put through: a short round of it on either broker, with all that goes with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.chaos import DISK_BYTES, Tally, fill
from tests.conftest import PATIENCE_S, ROOT
from tests.test_broker_redis import faketime

pytestmark = pytest.mark.usefixtures("in_numpy")

JOBS, KILLS = 400, 5


def mounts() -> bool:
    """Whether this user may have a mount namespace of its own."""
    words = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "true"]
    return subprocess.run(words, capture_output=True, timeout=PATIENCE_S, check=False).returncode == 0


@pytest.mark.parametrize("broker", ["sqlite", "redis"])
def test_nothing_is_lost_in_trouble(broker: str) -> None:
    faketime()
    if not mounts():
        pytest.skip("no mount namespace for this user")
    words = ["--broker", broker, "--jobs", str(JOBS), "--kills", str(KILLS), "--full-for", "1.5", "--json"]
    ran = subprocess.run(
        [sys.executable, "-m", "loadtests.chaos", *words],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
        check=False,
        cwd=ROOT,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(ran.stdout)
    assert found["sound"] and found["accepted"] == JOBS == found["answered"] + found["dead"]
    assert sum(found["kills"].values()) == KILLS
    assert found["clock_steps"] == ["+3600", "-3600"]
    # So few jobs may all find room in what SQLite's write-ahead log has already; a Redis server's log only grows.
    assert found["refused_while_full"] > 0 or broker == "sqlite"


@pytest.mark.parametrize("flaw", ["lost", "unasked", "keys_with_two_jobs"])
def test_a_flaw_is_told(flaw: str) -> None:
    whole = Tally("sqlite", 2, accepted=2, answered=1, dead=1)
    assert whole.sound
    setattr(whole, flaw, 1)
    assert not whole.sound


def test_a_disk_that_is_another_is_not_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert DISK_BYTES > 1_000_000
    monkeypatch.setattr("loadtests.chaos.DISK_BYTES", 10_000)
    fill(tmp_path / "ballast")
    assert (tmp_path / "ballast").stat().st_size <= 10_000 + 4_194_304
