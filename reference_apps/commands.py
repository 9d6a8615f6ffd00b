"""What the command line asks of a supervisor that runs: a file there, a file back, never a port.

    rung restart ──▶ <run folder>/commands/<id>.command.json ──▶ supervisor, at its next look
                 ◀── <id>.answer.json ◀──────────────────────────┘ when it is done

Every file is written under another name and renamed, so that nobody reads half of one. A command that nobody took is
withdrawn when its time is over; one that was taken goes on, and that is what is said then.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reference_apps.asking import POLL_S
from reference_apps.launchers.member import write_atomically
from reference_apps.tolerated import Tolerated

WAITING_MAX = 16  # commands that may wait for the supervisor; more are refused
_COMMAND, _TAKEN, _ANSWER = ".command.json", ".taken.json", ".answer.json"

log = logging.getLogger("rung.supervisor")


class CommandError(RuntimeError):
    """A command was refused, failed, or was not answered in its time; the text is for the user."""


@dataclass(frozen=True)
class Command:
    """One command that was taken; it has to be answered once, by `done` or `refuse`."""

    name: str
    arguments: dict[str, Any]
    _taken: Path

    def done(self, result: Mapping[str, Any]) -> None:
        """Answers that it was done."""
        self._answer({"result": dict(result)})

    def refuse(self, error: str) -> None:
        """Answers that it was not done, and why, in words for the user."""
        self._answer({"error": error})

    def _answer(self, answer: Mapping[str, Any]) -> None:
        with Tolerated(f"{self.name}: the answer cannot be written, and whoever asked waits in vain", log):
            write_atomically(self._taken.with_name(self._taken.name.removesuffix(_TAKEN) + _ANSWER), json.dumps(answer))
            self._taken.unlink(missing_ok=True)


class Inbox:
    """The supervisor's side. What an earlier supervisor left in the folder is thrown away."""

    def __init__(self, folder: Path) -> None:
        self._folder = _commands(folder)
        for stale in self._folder.iterdir():
            stale.unlink(missing_ok=True)

    def take(self) -> list[Command]:
        """The commands that have come since the last look, oldest first; what is no command is refused at once."""
        taken = []
        for path in sorted(self._folder.glob(f"*{_COMMAND}")):
            mine = path.with_name(path.name.removesuffix(_COMMAND) + _TAKEN)
            try:
                path.rename(mine)  # from here on it cannot be withdrawn
                told = json.loads(mine.read_text(encoding="utf-8"))
                command = Command(str(told["name"]), dict(told["arguments"]), mine)
            except FileNotFoundError:  # withdrawn between two looks
                continue
            except (OSError, ValueError, KeyError, TypeError):
                Command("", {}, mine).refuse(f"{mine.name}: is no command.")
                continue
            taken.append(command)
        return taken


def ask(
    folder: Path,
    name: str,
    arguments: Mapping[str, Any],
    timeout_s: float,
    alive: Callable[[], bool] = lambda: True,
) -> dict[str, Any]:
    """Has the supervisor of the run folder do something, and gives what it answers.

    Raises CommandError when it refuses or fails, when it is not (or no longer) `alive`, and after `timeout_s`.
    """
    commands = _commands(folder)
    if sum(1 for _ in commands.glob(f"*{_COMMAND}")) >= WAITING_MAX:
        raise CommandError(f"{folder}: {WAITING_MAX} commands wait already. Wait until they are done.")
    stem = f"{time.time_ns():020d}-{uuid.uuid4().hex}"
    sent, answer = commands / f"{stem}{_COMMAND}", commands / f"{stem}{_ANSWER}"
    write_atomically(sent, json.dumps({"name": name, "arguments": dict(arguments)}))
    deadline_s = time.monotonic() + timeout_s
    while not answer.exists():
        if not alive():
            sent.unlink(missing_ok=True)
            raise CommandError(f"{name}: the supervisor ended before it had answered. See {folder}/supervisor.log.")
        if time.monotonic() > deadline_s:
            raise CommandError(_too_late(sent, name, timeout_s))
        time.sleep(POLL_S)
    told = json.loads(answer.read_text(encoding="utf-8"))
    answer.unlink(missing_ok=True)
    if "error" in told:
        raise CommandError(str(told["error"]))
    result: dict[str, Any] = told["result"]
    return result


def _too_late(sent: Path, name: str, timeout_s: float) -> str:
    try:
        sent.unlink()
    except FileNotFoundError:
        return f"{name}: is not done after {timeout_s:g} s, and goes on. Look again with `rung status`."
    return f"{name}: the supervisor did not take it within {timeout_s:g} s; it was withdrawn. See its log."


def _commands(folder: Path) -> Path:
    commands = folder / "commands"
    commands.mkdir(mode=0o700, parents=True, exist_ok=True)
    return commands
