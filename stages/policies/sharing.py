"""Which models may be on a GPU that is too small for all of them: who comes next, and who gives way.

    asks ──▶ [ line, in the order of asking ] ──▶ room? ──▶ on the card ──▶ somebody waits, turn over or idle ──▶ off

A card of 8 GiB takes a model of 3 or one of 6, and never both: whoever loads the second one fails. So each asks first,
and waits instead. Whoever is on the card keeps it for a turn, because loading a model takes longer than a batch; one
that has nothing to do gives way at once. Nobody overtakes the first of the line, so that a large model is not kept out
by small ones for ever; what fits beside the first may come in with it.

Times are seconds of one clock. Not decided here: parts of models, memory that a batch takes for itself, several cards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Loading a model of some gigabytes takes a second or two; a turn should be some times longer.
TURN_S = 10.0
# Sums of floats miss a full card by a unit in the last place.
_ROUNDING_GIB = 1e-9


@dataclass(frozen=True)
class Tenant:
    """A worker whose model is on the card, or that waits for room there."""

    owner: str
    memory_gib: float
    since_s: float  # when its model came onto the card; of one that waits, when it began to
    resident: bool
    idle: bool = False  # it is on the card and has nothing to do


def free_gib(card_gib: float, tenants: Sequence[Tenant]) -> float:
    """What the models on the card leave of its memory."""
    return card_gib - sum(tenant.memory_gib for tenant in tenants if tenant.resident)


def may_enter(card_gib: float, tenants: Sequence[Tenant], owner: str) -> bool:
    """Whether `owner`, which is among those that wait, may load its model now.

    Those before it in the line come in first; when one of them does not fit, nobody behind it comes in.
    """
    free = free_gib(card_gib, tenants)
    for tenant in _line(tenants):
        if tenant.memory_gib > free + _ROUNDING_GIB:
            return False
        if tenant.owner == owner:
            return True
        free -= tenant.memory_gib
    return False


def should_leave(card_gib: float, tenants: Sequence[Tenant], owner: str, now_s: float, turn_s: float = TURN_S) -> bool:
    """Whether `owner`, whose model is on the card, is to make room for the first of those that wait.

    Those that are idle go before those whose turn is over, and of each the longest there first; no more than it takes.
    While all of them together would not make room enough, nobody goes.
    """
    line = _line(tenants)
    if not line:
        return False
    missing = line[0].memory_gib - free_gib(card_gib, tenants)
    if missing <= _ROUNDING_GIB:
        return False
    may_go = [each for each in tenants if each.resident and (each.idle or now_s - each.since_s >= turn_s)]
    leaving = []
    for tenant in sorted(may_go, key=lambda each: (not each.idle, each.since_s, each.owner)):
        if missing <= _ROUNDING_GIB:
            break
        leaving.append(tenant.owner)
        missing -= tenant.memory_gib
    return missing <= _ROUNDING_GIB and owner in leaving


def _line(tenants: Sequence[Tenant]) -> list[Tenant]:
    """Those that wait, the first to come in first."""
    return sorted((each for each in tenants if not each.resident), key=lambda each: (each.since_s, each.owner))
