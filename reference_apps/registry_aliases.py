"""Names for versions that move: champion, challenger. What they are now, and what they were before.

    set_alias ──▶ 1. a line is added to history.jsonl ──▶ 2. aliases.json is replaced      each is forced to the disk
    rollback  ──▶ what the alias was before, by the history ──▶ the same two steps

After a crash between the two steps the history has a last line about a move that was never made. It is told from the
others by what comes after it, so that a rollback never goes by it. Who may write is in reference_apps/registry.py.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from reference_apps.durable import append_line, replace_durably

ALIASES, HISTORY = "aliases.json", "history.jsonl"
_Aliases = TypeAdapter(dict[str, str])


class Move(BaseModel):
    """An alias that was moved, or was about to be; a line of the history."""

    model_config = ConfigDict(frozen=True)

    alias: str
    before: str | None  # the version that it was, None for a new one
    version: str
    how: Literal["set", "rollback"]
    at: str  # ISO 8601, UTC


class Aliases:
    """The aliases of one model, in its folder of the registry. Whoever writes holds the folder's lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def now(self) -> dict[str, str]:
        """Alias → version. Raises ValueError for a file that says nothing of the kind, and OSError."""
        try:
            text = (self._folder / ALIASES).read_bytes()
        except FileNotFoundError:
            return {}
        return _Aliases.validate_json(text)

    def before(self, alias: str) -> list[str]:
        """The versions that the alias can go back to, the next one last. Raises like `now`."""
        return gone_before([move for move in self.history() if move.alias == alias], self.now().get(alias))

    def move(self, alias: str, version: str, how: Literal["set", "rollback"]) -> str | None:
        """From now on the alias is that version; gives back what it was. Raises like `now`."""
        now = self.now()
        before = now.get(alias)
        at = dt.datetime.now(dt.UTC).isoformat(timespec="microseconds")
        append_line(
            self._folder / HISTORY,
            Move(alias=alias, before=before, version=version, how=how, at=at).model_dump_json(),
        )
        replace_durably(self._folder / ALIASES, json.dumps(now | {alias: version}, indent=2, sort_keys=True) + "\n")
        return before

    def history(self) -> list[Move]:
        """Every move, oldest first, with those that were only about to be made; what cannot be read is left out."""
        try:
            lines = (self._folder / HISTORY).read_bytes().splitlines()
        except FileNotFoundError:
            return []
        moves = []
        for line in lines:
            try:
                moves.append(Move.model_validate_json(line))
            except ValidationError:  # cut off by a crash
                continue
        return moves


def gone_before(moves: Sequence[Move], now: str | None) -> list[str]:
    """The versions that one alias can go back to, given all its moves and what it is now; the next one last.

    A rollback takes one off, so that a second goes back further. A move after which the alias was not what the move
    says was never made.
    """
    was: list[str] = []
    nexts = [*(move.before for move in moves), now][1:]
    for move, afterwards in zip(moves, nexts, strict=True):
        if afterwards != move.version:
            continue
        if move.how == "rollback":
            was = was[:-1]
        elif move.before is not None:
            was = [*was, move.before]
    return was
