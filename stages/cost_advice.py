"""The advice of [cost], as stages/advice.py has it for the other tables."""

from __future__ import annotations

ADVICE: dict[str, tuple[str, str]] = {
    "cost": ("It is what a replica costs.", "Leave [cost] out where dollars do not matter."),
    "cost.machine": ("Nothing says what a replica costs.", "List the machines with `rung prices`."),
    "cost.machines": (
        "Unequal replicas stand on unequal machines.",
        "Give a machine out of `rung prices` for each of fleet.profiles.",
    ),
    "cost.pricing": ("A machine is rented by no other contract here.", 'Use "on-demand", or "spot".'),
    "cost.region": ("A price is one of a region.", "Use one of `rung prices`, or leave it out for the first of them."),
    "cost.usd_per_hour": ("No machine is for nothing.", "Give it in US dollars, or name a cost.machine."),
    "cost.challenger_machine": (
        "Nothing says what the challenger's machine costs.",
        "List the machines with `rung prices`, or leave it out for that of the champion.",
    ),
    "cost.challenger_usd_per_hour": (
        "No machine is for nothing.",
        "Give it in US dollars, or name a cost.challenger_machine.",
    ),
    "cost.host_machine": (
        "Nothing says what the gateway's machine costs.",
        "List the machines with `rung prices`.",
    ),
    "cost.host_usd_per_hour": (
        "No machine is for nothing.",
        "Give it in US dollars, or name a cost.host_machine.",
    ),
}

UNITS = {
    "usd_per_hour": "US dollars",
    "challenger_usd_per_hour": "US dollars",
    "host_usd_per_hour": "US dollars",
}
