"""What spares tests of whole real runs the load that warms a stack up before: they do not look at how long it took.

Whoever uses the fixture imports it by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loadtests import drill, rehearse, spike
from loadtests.load import Loaded
from reference_apps.launchers.launcher import Launcher
from stages.spec import Stage


@contextmanager
def not_warmed_up() -> Iterator[pytest.MonkeyPatch]:
    """Drills, rehearsals and spikes of the block go without; gives what undoes that, and more if it is to."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (drill, rehearse, spike):
            patch.setattr(module, "fire_at_stack", _but_no_warm_up(module.fire_at_stack))
        yield patch


@pytest.fixture
def no_warm_up() -> Iterator[None]:
    with not_warmed_up():
        yield


def _but_no_warm_up(fire: Callable[..., Loaded]) -> Callable[..., Loaded | None]:
    def fired(stage: Stage, launcher: Launcher, folder: Path, **more: Any) -> Loaded | None:
        return None if folder.name == "warm-up" else fire(stage, launcher, folder, **more)

    return fired
