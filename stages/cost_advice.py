"""The advice of [cost], as stages/advice.py has it for the other tables."""

from __future__ import annotations

ADVICE: dict[str, tuple[str, str]] = {
    "cost": ("It is what a replica costs.", "Leave [cost] out where dollars do not matter."),
    "cost.machine": ("Nothing says what a replica costs.", "List the machines with `rung prices`."),
    "cost.machines": (
        "Unequal replicas stand on unequal machines.",
        "Give a machine out of `rung prices` for each of fleet.profiles.",
    ),
    "cost.usd_per_hour": ("No machine is for nothing.", "Give it in US dollars, or name a cost.machine."),
}

UNITS = {"usd_per_hour": "US dollars"}
