"""Rules over the keys of [cost]: one price for each replica, of a machine that has the replica's device.

Asked by stages/rules.py, like the rules there. A stage without [cost] breaks none of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from stages.catalogue import profiles
from stages.cost import Cost
from stages.fleet import Fleet
from stages.prices import Price, find, gpu_family, machines, prices, rows_of
from stages.problems import Problem, did_you_mean, shown
from stages.spec import Device


def cost_is_told_once(cost: Cost | None) -> Iterator[Problem]:
    """Of the three ways to tell a price, a stage takes one; of the two for a host's, one at most."""
    if cost is None:
        return
    given = {"machine": cost.machine, "machines": cost.machines, "usd_per_hour": cost.usd_per_hour}
    told = [f"cost.{key}" for key, value in given.items() if value]
    if len(told) != 1:
        yield Problem(
            "cost",
            "must have one of machine, machines and usd_per_hour",
            " and ".join(told) or "none",
            "The price of a replica would be unclear." if told else "Nothing says what a replica costs.",
            "Keep one of them." if told else 'Write machine = "aws/g4dn.xlarge", or another one of `rung prices`.',
        )
    if cost.host_machine is not None and cost.host_usd_per_hour is not None:
        yield Problem(
            "cost.host_usd_per_hour",
            "must not stand beside cost.host_machine",
            f"{cost.host_usd_per_hour:g}",
            "The price of the gateway's machine would be unclear.",
            "Keep one of them.",
        )


def machines_are_known(cost: Cost | None) -> Iterator[Problem]:
    """A price has a source."""
    for key, machine in _machines(cost):
        if not rows_of(machine):
            figure = "cost.host_usd_per_hour" if key == "cost.host_machine" else "cost.usd_per_hour"
            yield Problem(
                key,
                "must be a machine of the price list",
                shown(machine),
                "Nothing says what it costs.",
                did_you_mean(machine, machines(), f"List them with `rung prices`, or give {figure} instead."),
            )


def contracts_are_known(cost: Cost | None) -> Iterator[Problem]:
    """A machine has its price under a contract and in a region, and a figure has neither."""
    if cost is None:
        return
    own = cost.usd_per_hour is not None
    if own:
        for key in ("pricing", "region"):
            if (value := getattr(cost, key)) is not None:
                consequence = "A price that you give yourself has its contract and its region in it."
                remedy = "Remove it, or name a machine instead of cost.usd_per_hour."
                rule = "belongs to machines of the price list only"
                yield Problem(f"cost.{key}", rule, shown(value), consequence, remedy)
    for key, machine in _machines(cost):
        if own and key != "cost.host_machine":
            continue
        wanted = (None, None) if key == "cost.host_machine" else (cost.pricing, cost.region)
        contradiction = machine.endswith("-spot") and wanted[0] == "on-demand"
        if (contradiction or find(machine, *wanted) is None) and (rows := rows_of(machine)):
            asked = ", ".join(each for each in wanted if each is not None) or "on-demand"
            there = ", ".join(f"{row.pricing} in {row.region}" for row in rows)
            rule = "must have a price under cost.pricing and in cost.region"
            got = f"{shown(machine)} for {asked}"
            yield Problem(key, rule, got, "Nothing says what it costs.", f"The list has it {there}.")


def machines_match_profiles(cost: Cost | None, fleet: Fleet) -> Iterator[Problem]:
    """Where devices take turns, their machines take the same turns."""
    if cost is not None and cost.machines and len(cost.machines) != len(fleet.profiles):
        yield Problem(
            "cost.machines",
            f"must be as many as fleet.profiles ({len(fleet.profiles)})",
            str(len(cost.machines)),
            "A replica would have the device of one and the price of another.",
            "Give one for each." if fleet.profiles else "Use cost.machine where all replicas are alike.",
        )


def machines_have_the_device(cost: Cost | None, device: Device, fleet: Fleet) -> Iterator[Problem]:
    """An emulated GPU is paid as what it is."""
    if device.kind != "emulated" or cost is None or (cost.machines and len(cost.machines) != len(fleet.profiles)):
        return
    names = fleet.profiles or (device.profile or "",)
    rented = cost.machines or (cost.machine or "",) * len(names)
    for name, machine in dict.fromkeys(zip(names, rented, strict=True)):
        profile, rows = profiles().get(name), rows_of(machine)
        if profile is None or not rows or gpu_family(profile.device) == rows[0].gpu_family:
            continue
        fitting = _fitting(gpu_family(profile.device))
        several = "" if cost.machines or len(set(names)) == 1 else " For unequal replicas give cost.machines."
        use = f"Use {fitting[0].machine}, or give cost.usd_per_hour." if fitting else "Give cost.usd_per_hour."
        yield Problem(
            "cost.machines" if cost.machines else "cost.machine",
            f"must have the GPU of the profile {name} ({gpu_family(profile.device)})",
            f"{shown(machine)} with {f'a {rows[0].gpu}' if rows[0].gpu else 'no GPU'}",
            "The dollars would be those of another device.",
            use + several,
        )


def _fitting(family: str) -> list[Price]:
    """Machines with that GPU, those with one of them first, in the order of the list."""
    return sorted((row for row in prices() if row.gpu_family == family), key=lambda row: row.gpu_count)


def _machines(cost: Cost | None) -> Iterator[tuple[str, str]]:
    if cost is None:
        return
    if cost.machine:
        yield "cost.machine", cost.machine
    yield from (("cost.machines", machine) for machine in cost.machines)
    if cost.host_machine:
        yield "cost.host_machine", cost.host_machine


RULES = (
    cost_is_told_once,
    machines_are_known,
    contracts_are_known,
    machines_match_profiles,
    machines_have_the_device,
)
