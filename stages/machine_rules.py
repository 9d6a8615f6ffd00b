"""The rule over a replica's machine and what runs on it; asked by stages/rules.py, like the rules there."""

from __future__ import annotations

from collections.abc import Iterator

from stages.machine import Machine
from stages.problems import Problem
from stages.spec import Device


def machine_has_the_threads(machine: Machine, device: Device) -> Iterator[Problem]:
    """A thread beyond the processors only waits for the others."""
    if machine.cpus is not None and device.cpu_threads > 1 and device.cpu_threads > machine.cpus:
        yield Problem(
            "device.cpu_threads",
            f"must be at most machine.cpus ({machine.cpus:g} processors)",
            str(device.cpu_threads),
            "The threads of a batch would take turns, and be held up together for part of every 0.1 seconds.",
            "Lower it, or raise machine.cpus.",
        )


RULES = (machine_has_the_threads,)
