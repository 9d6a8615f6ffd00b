"""What can be rented to run a model on: the devices of the catalogue that have a price.

    catalogue/devices.csv × stages/prices.py ──▶ offers(model, spot, provider, devices) ──▶ Offer: profile, machines

No twin. Not here: whether a machine can be had today, and discounts for long contracts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.draws import Floats
from stages.catalogue import Profile, profiles
from stages.prices import Price, find, gpu_family, prices
from stages.problems import Problem, StageError, did_you_mean, shown

Replicas = int | Floats  # of a fleet that stays as it is, or at evenly spaced moments

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Offer:
    """A device that can be rented: what it does in how long, and the machines that have it."""

    profile: Profile
    prices: tuple[Price, ...]

    @property
    def gpu(self) -> str:
        """Its family: "T4"."""
        return gpu_family(self.profile.device)

    def price_of(self, replicas: Replicas) -> Price:
        """The machine that is cheapest for so many replicas, over time; of as cheap ones the smallest."""
        return min(self.prices, key=lambda price: (paid_usd_per_hour(price, replicas), price.gpu_count))


@dataclass(frozen=True)
class Host:
    """What an hour of a gateway's machine costs: a machine of the price list, or a figure of the user's own."""

    usd_per_hour: float
    machine: str | None
    source: str


def host_of(usd_per_hour: float | None) -> Host | None:
    """The gateway's machine at that price; without one the cheapest without a GPU, on demand; None where none is."""
    if usd_per_hour is not None:
        return Host(usd_per_hour, None, "a figure of yours")
    rows = [price for price in prices() if not price.gpu and price.pricing == "on-demand"]
    rows = [price for price in rows if find(price.machine) == price]
    if not rows:
        return None
    price = min(rows, key=lambda row: row.usd_per_hour)
    return Host(price.usd_per_hour, price.machine, f"{price.machine}, {price.source}")


def paid_usd_per_hour(price: Price, replicas: Replicas) -> float:
    """US dollars an hour of the machines that hold so many replicas; of counts at several moments, the mean."""
    machines = np.ceil(np.asarray(replicas) / max(1, price.gpu_count))
    return price.usd_per_hour * float(machines.mean())


def offers(
    model: str = "resnet50",
    *,
    spot: bool = False,
    provider: str | None = None,
    devices: Sequence[str] = (),
    pruned: bool = True,
) -> list[Offer]:
    """The devices of the catalogue for that model that can be rented; `devices` are families or profiles, none: all.

    With `spot` machines of both contracts. Of one family, a profile that is slower than another at every batch size is
    left out. Raises StageError for what is not known, and when nothing is left.
    """
    known = sorted({profile.model.removesuffix("-v1.5") for profile in profiles().values()})
    if model not in known:
        raise _unknown("--model", "a model of the device catalogue", model, known)
    own = [profile for profile in profiles().values() if profile.model.removesuffix("-v1.5") == model]
    names = {name.lower() for profile in own for name in (profile.name, gpu_family(profile.device))}
    for device in devices:
        if device.lower() not in names:
            raise _unknown("--devices", f"devices of the catalogue with a profile of {model}", device, sorted(names))
    providers = sorted({price.provider.lower() for price in prices()})
    if provider is not None and provider.lower() not in providers:
        raise _unknown("--provider", "a provider of the price list", provider, providers)
    wanted = {device.lower() for device in devices}
    found = []
    for profile in own:
        family = gpu_family(profile.device)
        if wanted and not wanted & {profile.name.lower(), family.lower()}:
            continue
        rows = tuple(price for price in prices() if _rentable(price, family, spot, provider))
        if rows:
            found.append(Offer(profile, rows))
    if not found:
        rule = f"must leave a machine with a price for {model}"
        got = " ".join(part for part in (provider or "", *devices) if part) or "none"
        remedy = "List them with `rung prices`, or give your own with --prices."
        raise StageError(
            "what is to be rented", [Problem("--provider", rule, got, "There is nothing to rent.", remedy)]
        )
    return [offer for offer in found if not (pruned and any(_slower(offer, other) for other in found))]


def _rentable(price: Price, family: str, spot: bool, provider: str | None) -> bool:
    """Whether a row may be used; of two rows for the same, the user's own, as stages/cost.py does."""
    contract = price.pricing == "on-demand" or spot
    wanted = price.gpu_family == family and contract and (provider or price.provider).lower() == price.provider.lower()
    return wanted and find(price.machine, price.pricing, price.region) == price


def _slower(offer: Offer, other: Offer) -> bool:
    """Whether another profile of the same GPU is never slower, and somewhere quicker."""
    if other.gpu != offer.gpu or other.profile.max_batch_size < offer.profile.max_batch_size:
        return False
    sizes = [size for size in BATCHES if size <= offer.profile.max_batch_size]
    own, others = ([each.profile.service_time_s(size) for size in sizes] for each in (offer, other))
    return all(b <= a for a, b in zip(own, others, strict=True)) and sum(others) < sum(own)


def _unknown(option: str, rule: str, got: str, known: Sequence[str]) -> StageError:
    remedy = did_you_mean(got, known, f"There are {', '.join(known)}.")
    return StageError(
        "what is to be rented", [Problem(option, f"must be {rule}", shown(got), "Nothing is known of it.", remedy)]
    )
