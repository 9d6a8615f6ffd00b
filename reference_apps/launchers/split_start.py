"""What the split of a stage begins with: when it starts, and when another version has become its challenger.

    start ──▶ begin ──▶ split.json: the stage's own share or ramp; a challenger that a guardrail had stopped stays out
    rolling restart, all replicas replaced ──▶ renew ──▶ the same, if the challenger is another version than before

What the file is, and who else changes it, is in reference_apps/split_file.py.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from reference_apps import split_file
from reference_apps.launchers.member import LaunchError
from reference_apps.registry import identity
from stages.arms import model_of
from stages.problems import StageError
from stages.spec import Stage


def begin(stage: Stage, folder: Path) -> None:
    """Writes the control file of a stage that starts; one without a split has none. Raises LaunchError."""
    if stage.split is not None:
        with _in_words(stage):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            split_file.begin(folder, _first(stage))


def renew(stage: Stage, folder: Path) -> None:
    """All replicas are of the versions that the stage has now: a challenger that is another one begins anew.

    Raises LaunchError.
    """
    if stage.split is not None:
        with _in_words(stage):
            split_file.renew(folder, _first(stage))


def _first(stage: Stage) -> split_file.Told:
    assert stage.split is not None
    return split_file.first(stage.split, time.monotonic(), identity(model_of(stage, "challenger")), time.time())


@contextlib.contextmanager
def _in_words(stage: Stage) -> Iterator[None]:
    try:
        yield
    except (StageError, OSError, split_file.SplitError) as error:
        raise LaunchError(f"{stage.name}: its split cannot begin. {error}") from None
