"""What writes files, killed with SIGKILL at every step that it takes on the file system, one step after the other.

    for k = 0, 1, …: a folder ──▶ a forked child that is killed at its k-th step ──▶ what is found in the folder

A step is anything that Python tells its audit hooks of a file (open, rename, mkdir, chmod, remove), an fsync, and the
moment after a file was opened, when it may be there and empty. Run as a process of its own, which has one thread and
may fork: `python -m tests.killed CASE FOLDER` prints what it found as JSON. A kill loses nothing that was written: that
needs a power cut, and for that each step is forced to the disk in order.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reference_apps import model_metadata
from reference_apps.durable import append_line, replace_durably
from reference_apps.model_metadata import About
from reference_apps.registry import Registry

_STEPS = ("open", "os.rename", "os.mkdir", "os.chmod", "os.remove", "os.rmdir", "shutil.rmtree")


class Killer:
    """Ends this process at step number `at`, counted from 0."""

    def __init__(self, at: int) -> None:
        self._left = at

    def install(self) -> None:
        """From now on steps are counted."""
        sys.addaudithook(lambda event, _: self.step() if event in _STEPS else None)
        fsync, opened = os.fsync, io.open

        def counted_fsync(handle: Any) -> None:
            self.step()
            fsync(handle)

        def counted_open(*args: Any, **kwargs: Any) -> Any:
            file = opened(*args, **kwargs)
            self.step()
            return file

        os.fsync = counted_fsync
        io.open = builtins.open = counted_open  # type: ignore[assignment]

    def step(self) -> None:
        """One more step is about to be taken."""
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1


def killed_everywhere(
    folder: Path,
    prepare: Callable[[Path], None],
    act: Callable[[Path], None],
    look: Callable[[Path], Any],
) -> list[Any]:
    """What `look` finds after `act` was killed at its first step, its second …, and last what it finds undisturbed."""
    found = []
    for at in range(1000):
        here = folder / str(at)
        here.mkdir(parents=True)
        prepare(here)
        child = os.fork()
        if child == 0:
            Killer(at).install()
            act(here)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        found.append(look(here))
        if status == 0:
            return found
        assert os.WIFSIGNALED(status), status
    raise AssertionError("it never came to an end")


# ---- cases ----

FIRST, SECOND = b"first weights", b"second weights"


def _one_version(folder: Path) -> None:
    registry = Registry(folder)
    registry.publish(About(model="digits"), FIRST)
    registry.set_alias("digits", "champion", "1")


def _two_versions(folder: Path) -> None:
    _one_version(folder)
    Registry(folder).publish(About(model="digits"), SECOND)


def _moved(folder: Path) -> None:
    _two_versions(folder)
    Registry(folder).set_alias("digits", "champion", "2")


def _registry(folder: Path) -> dict[str, Any]:
    """What there is, and whether the next one who publishes and sets aliases can go on."""
    registry = Registry(folder)
    found = {
        "versions": registry.versions("digits"),
        "verify": registry.verify("digits"),
        "champion": registry.aliases("digits").get("champion"),
        "before": registry.previous("digits", "champion"),
    }
    again = registry.publish(About(model="digits"), b"more weights").version
    moved = registry.set_alias("digits", "champion", again)
    back = registry.rollback("digits", "champion")
    left = sorted(path.name for path in (folder / "digits").iterdir() if path.name.startswith("."))
    return {**found, "again": again, "moved_from": moved.before, "back_to": back.now, "left": left}


def _text(folder: Path) -> dict[str, Any]:
    file, lines = folder / "share.json", folder / "lines"
    append_line(lines, "last")
    return {"text": file.read_text(), "lines": [line for line in lines.read_text().splitlines() if line]}


def _write_text(folder: Path) -> None:
    replace_durably(folder / "share.json", "new")
    append_line(folder / "lines", "second")


def _prepare_text(folder: Path) -> None:
    replace_durably(folder / "share.json", "old")
    append_line(folder / "lines", "first")


CASES: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any], Callable[[Path], Any]]] = {
    "publish": (_one_version, lambda f: Registry(f).publish(About(model="digits"), SECOND), _registry),
    "publish-first": (lambda f: None, _one_version, lambda f: Registry(f).verify("digits")),
    "alias": (_two_versions, lambda f: Registry(f).set_alias("digits", "champion", "2"), _registry),
    "rollback": (_moved, lambda f: Registry(f).rollback("digits", "champion"), _registry),
    "file": (_prepare_text, _write_text, _text),
}

if __name__ == "__main__":
    model_metadata.code_version = lambda: "asks git, whose steps are not ours"
    print(json.dumps(killed_everywhere(Path(sys.argv[2]), *CASES[sys.argv[1]])))  # noqa: T201
