"""Commands to a supervisor as files: taken once, answered once, withdrawn when nobody took them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reference_apps import commands
from reference_apps.commands import Command, CommandError, Inbox, ask
from tests.conftest import PATIENCE_S


@contextmanager
def supervised(folder: Path, handle: Callable[[Command], None]) -> Iterator[list[Command]]:
    """Somebody who takes commands in a thread and handles each."""
    inbox, over, taken = Inbox(folder), threading.Event(), []

    def work() -> None:
        while not over.wait(0.01):
            for command in inbox.take():
                taken.append(command)
                handle(command)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield taken
    finally:
        over.set()
        thread.join(PATIENCE_S)


def test_what_is_asked_is_done_and_answered(tmp_path: Path) -> None:
    with supervised(tmp_path, lambda command: command.done({"twice": 2 * command.arguments["number"]})) as taken:
        assert [ask(tmp_path, "double", {"number": n}, PATIENCE_S) for n in (1, 2)] == [{"twice": 2}, {"twice": 4}]
    assert [command.name for command in taken] == ["double", "double"]
    assert list((tmp_path / "commands").iterdir()) == []
    assert (tmp_path / "commands").stat().st_mode & 0o077 == 0  # nobody else's


def test_a_refusal_comes_back_in_words(tmp_path: Path) -> None:
    with (
        supervised(tmp_path, lambda command: command.refuse(f"{command.name}: not today.")),
        pytest.raises(CommandError, match=r"^sing: not today\.$"),
    ):
        ask(tmp_path, "sing", {}, PATIENCE_S)


def test_a_command_that_nobody_takes_is_withdrawn(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"restart: the supervisor did not take it within 0\.1 s; it was withdrawn"):
        ask(tmp_path, "restart", {}, 0.1)
    assert Inbox(tmp_path).take() == []


def test_a_command_that_was_taken_goes_on(tmp_path: Path) -> None:
    with supervised(tmp_path, lambda _: None) as taken:
        with pytest.raises(CommandError, match=r"restart: is not done after 0\.3 s, and goes on"):
            ask(tmp_path, "restart", {}, 0.3)
        assert len(taken) == 1


def test_a_supervisor_that_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="the supervisor ended before it had answered"):
        ask(tmp_path, "restart", {}, PATIENCE_S, alive=lambda: False)
    assert list((tmp_path / "commands").iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "x"}', '{"name": "x", "arguments": 7}'])
def test_what_is_no_command_is_refused_and_does_no_harm(tmp_path: Path, text: str) -> None:
    inbox = Inbox(tmp_path)
    (tmp_path / "commands" / "1.command.json").write_text(text)
    assert inbox.take() == []
    assert "is no command" in (tmp_path / "commands" / "1.answer.json").read_text()
    assert inbox.take() == []


def test_what_an_earlier_supervisor_left_is_not_done(tmp_path: Path) -> None:
    with pytest.raises(CommandError):
        ask(tmp_path, "restart", {}, 0.05, alive=lambda: True)
    (tmp_path / "commands" / "1.command.json").write_text('{"name": "restart", "arguments": {}}')
    assert Inbox(tmp_path).take() == []


def test_not_everything_may_wait(tmp_path: Path) -> None:
    Inbox(tmp_path)
    for number in range(commands.WAITING_MAX):
        (tmp_path / "commands" / f"{number}.command.json").write_text("{}")
    with pytest.raises(CommandError, match="16 commands wait already"):
        ask(tmp_path, "restart", {}, PATIENCE_S)


def test_they_are_taken_in_the_order_of_their_coming(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    threads = []
    for number in range(4):
        thread = threading.Thread(target=ask, args=(tmp_path, f"c{number}", {}, PATIENCE_S))
        thread.start()
        threads.append(thread)
        while len(list((tmp_path / "commands").glob("*.command.json"))) <= number:
            pass
    taken = inbox.take()
    for command in taken:
        command.done({})
    for thread in threads:
        thread.join(PATIENCE_S)
    assert [command.name for command in taken] == ["c0", "c1", "c2", "c3"]
