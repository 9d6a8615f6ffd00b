"""Rules over the keys of [cost]: one price for each replica, of a machine that has the replica's device.

Asked by stages/rules.py, like the rules there. A stage without [cost] breaks none of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from stages import unread
from stages.catalogue import profiles
from stages.cost import Cost
from stages.fleet import Fleet
from stages.prices import Price, find, gpu_family, machines, prices, rows_of
from stages.problems import Problem, did_you_mean, shown
from stages.spec import Device
from stages.split import Split


def no_unread_cost_keys(cost: Cost | None, split: Split | None) -> Iterator[Problem]:
    """A key that nothing reads would look like a choice."""
    return (key.problem() for key in unread.of_cost(cost, split) if key.given)


def cost_is_told_once(cost: Cost | None) -> Iterator[Problem]:
    """Of the three ways to tell a price, a stage takes one; of the two for a challenger's or a host's, one at most."""
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
    for of, whose in (("challenger", "the challenger's"), ("host", "the gateway's")):
        machine, figure = getattr(cost, f"{of}_machine"), getattr(cost, f"{of}_usd_per_hour")
        if machine is not None and figure is not None:
            yield Problem(
                f"cost.{of}_usd_per_hour",
                f"must not stand beside cost.{of}_machine",
                f"{figure:g}",
                f"The price of {whose} machine would be unclear.",
                "Keep one of them.",
            )


def machines_are_known(cost: Cost | None) -> Iterator[Problem]:
    """A price has a source."""
    for key, machine in _machines(cost):
        if not rows_of(machine):
            yield Problem(
                key,
                "must be a machine of the price list",
                shown(machine),
                "Nothing says what it costs.",
                did_you_mean(machine, machines(), f"List them with `rung prices`, or give {_figure(key)} instead."),
            )


def contracts_are_known(cost: Cost | None) -> Iterator[Problem]:
    """A machine has its price under a contract and in a region, and a figure has neither."""
    if cost is None:
        return
    own = cost.usd_per_hour is not None and cost.challenger_machine is None
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
    key = "cost.machines" if cost.machines else "cost.machine"
    several = "" if cost.machines or len(set(names)) == 1 else " For unequal replicas give cost.machines."
    for name, machine in dict.fromkeys(zip(names, rented, strict=True)):
        yield from _of_another_device(key, name, machine, several)


def challenger_is_paid_as_what_it_is(
    cost: Cost | None, split: Split | None, device: Device, fleet: Fleet
) -> Iterator[Problem]:
    """A challenger on another device than the champion has a price of its own, of a machine with that device."""
    if cost is None or split is None or device.kind != "emulated":
        return
    name = split.challenger_profile or device.profile or ""
    if cost.challenger_machine is not None:
        yield from _of_another_device("cost.challenger_machine", name, cost.challenger_machine)
        return
    own, champions = _family(name), [_family(each) for each in fleet.profiles or (device.profile or "",)]
    if cost.challenger_usd_per_hour is not None or own is None or (own in champions and not cost.machines):
        return
    yield Problem(
        "cost.challenger_machine",
        "is required beside cost.machines"
        if cost.machines
        else f"is required where the challenger has another GPU ({own}, of {name}) than the champion",
        None,
        "Nothing says what its machine costs.",
        _use(own, "cost.challenger_machine"),
    )


def _of_another_device(key: str, profile: str, machine: str, several: str = "") -> Iterator[Problem]:
    """The machine has another GPU than the profile; nothing where one of them is not known."""
    family, rows = _family(profile), rows_of(machine)
    if family is not None and rows and family != rows[0].gpu_family:
        yield Problem(
            key,
            f"must have the GPU of the profile {profile} ({family})",
            f"{shown(machine)} with {f'a {rows[0].gpu}' if rows[0].gpu else 'no GPU'}",
            "The dollars would be those of another device.",
            _use(family, key) + several,
        )


def _family(profile: str) -> str | None:
    """The GPU of a profile; None for one that is not in the catalogue, as another rule says."""
    found = profiles().get(profile)
    return None if found is None else gpu_family(found.device)


def _use(family: str, key: str) -> str:
    """Which machine to use instead."""
    fitting = _fitting(family)
    return f"Use {fitting[0].machine}, or give {_figure(key)}." if fitting else f"Give {_figure(key)}."


def _figure(key: str) -> str:
    """The key of a price that one gives oneself, instead of the machine under `key`."""
    of = key.removeprefix("cost.").removesuffix("_machine")
    return f"cost.{of}_usd_per_hour" if of in ("host", "challenger") else "cost.usd_per_hour"


def _fitting(family: str) -> list[Price]:
    """Machines with that GPU, those with one of them first, in the order of the list."""
    return sorted((row for row in prices() if row.gpu_family == family), key=lambda row: row.gpu_count)


def _machines(cost: Cost | None) -> Iterator[tuple[str, str]]:
    if cost is None:
        return
    if cost.machine:
        yield "cost.machine", cost.machine
    yield from (("cost.machines", machine) for machine in cost.machines)
    if cost.challenger_machine:
        yield "cost.challenger_machine", cost.challenger_machine
    if cost.host_machine:
        yield "cost.host_machine", cost.host_machine


RULES = (
    no_unread_cost_keys,
    cost_is_told_once,
    machines_are_known,
    contracts_are_known,
    machines_match_profiles,
    machines_have_the_device,
    challenger_is_paid_as_what_it_is,
)
