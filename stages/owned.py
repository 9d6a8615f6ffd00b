"""A bought GPU against a rented one: what an hour of each costs, and how busy the bought one must be to be cheaper.

    price of the GPU, its share of a server, lifetime, power ─▶ owned_usd_per_hour ─┐
    stages/prices.py: the cheapest GPU of that family to rent ──────────────────────┴─▶ Against: ratio, break-even
    catalogue/watts.csv: the most that a GPU takes, with a source in every row

The claim that is tested: that buying is almost ten times cheaper than the large clouds (Determined AI, "Choosing your
deep learning infrastructure: the cloud vs. on-prem debate", 2018 and 2020, determined.ai/blog/cloud-v-onprem). Not
modelled: people, space, interest, resale, failures, and the months until a machine is delivered.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from stages.prices import Price, prices
from stages.problems import Problem, StageError, did_you_mean, shown

HOURS_A_YEAR = 8760.0
CLAIM = 10.0
WATTS_FILE = Path(__file__).parent / "catalogue" / "watts.csv"
WATTS_UNKNOWN = 400.0  # of a GPU that the file does not have: a guess, and told as one
LARGE_CLOUDS = ("aws", "gcp", "azure")


@dataclass(frozen=True)
class Bought:
    """What a GPU costs to buy, and who says so; a figure of the user's own says that."""

    gpu: str  # the family: "A100"
    usd: float
    source: str
    watts: float  # at most
    watts_source: str = "a guess"


@dataclass(frozen=True)
class Assumptions:
    """What owning takes beside the GPU. None of it is a fact of the catalogue: all of it can be set, and is told."""

    years: float = 4.0  # until it is worth nothing
    server_share: float = 0.5  # of the GPU's price, for its share of chassis, processor, memory and network
    server_watts: float = 100.0  # its share of a server, beside its own; it takes both while it waits, too
    overhead: float = 1.5  # the building's power over the machines'
    usd_per_kwh: float = 0.15
    used: float = 1.0  # of the hours that it is owned

    @property
    def in_words(self) -> str:
        """All of them, in a line."""
        return (
            f"assumed: worth nothing after {self.years:g} years, a server's share of {self.server_share:.0%} of the "
            f"GPU's price and {self.server_watts:g} W beside the GPU's own, {self.usd_per_kwh:g} US dollars a kWh, "
            f"{self.overhead:g} times the power for the building, in use for {self.used:.0%} of the hours"
        )


@dataclass(frozen=True)
class Against:
    """Owning one GPU against renting it from the cheapest and the dearest provider, in US dollars an hour of use."""

    bought: Bought
    owned_usd_per_hour: float  # an hour that is used; the idle ones are in it
    cheapest: Price
    dearest: Price
    dearest_large: Price | None  # of LARGE_CLOUDS

    @property
    def ratio(self) -> float:
        """How many times dearer the cheapest rent is."""
        return self.cheapest.usd_per_gpu_hour / self.owned_usd_per_hour

    @property
    def ratio_large(self) -> float | None:
        """How many times dearer the dearest of the large clouds is: the most that the claim can mean."""
        return None if self.dearest_large is None else self.dearest_large.usd_per_gpu_hour / self.owned_usd_per_hour

    def break_even(self, assumed: Assumptions) -> float:
        """The share of its hours for which it must be used to cost no more than the cheapest rent; may be above 1."""
        return assumed.used / self.ratio


@cache
def power_of(gpu: str) -> tuple[float, str]:
    """The most that a GPU of that family takes, in watts, and who says so; of several forms the one that takes most.

    Cloud and server makers seldom say which form a price is of; what takes most speaks least for buying.
    """
    with WATTS_FILE.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["gpu"].lower() == gpu.lower()]
    if not rows:
        return WATTS_UNKNOWN, "a guess"
    most = max(rows, key=lambda row: float(row["watts"]))
    return float(most["watts"]), f"{most['gpu']} {most['form']}: {most['source']}"


# Of GPUs in the catalogue, those with a price that somebody tells. The others are for the user to give.
PRICES = (
    Bought(
        "A100",
        12_500.0,
        "middle of 10,000 to 15,000 US dollars for an A100 80GB, mid-2024: "
        "xither.com/compare/gpu-compute-costs-on-prem-vs-cloud-vs-spot-instances",
        *power_of("A100"),
    ),
)


def owned_usd_per_hour(usd: float, watts: float, assumed: Assumptions) -> float:
    """US dollars for each hour that a bought GPU is used: its price and a server's share, spread over the hours of its
    life, and its power, which runs all the time."""
    capital = usd * (1 + assumed.server_share) / (assumed.years * HOURS_A_YEAR)
    power = (watts + assumed.server_watts) / 1000 * assumed.overhead * assumed.usd_per_kwh
    return (capital + power) / assumed.used


def against(bought: Bought, assumed: Assumptions, pricing: str = "on-demand") -> Against | None:
    """The bought GPU against what it rents for; None where nobody rents out one of its family."""
    rows = [row for row in prices() if row.gpu_family.lower() == bought.gpu.lower() and row.pricing == pricing]
    if not rows:
        return None
    by_price = sorted(rows, key=lambda row: row.usd_per_gpu_hour)
    large = [row for row in by_price if row.provider.lower() in LARGE_CLOUDS]
    hour = owned_usd_per_hour(bought.usd, bought.watts, assumed)
    return Against(bought, hour, by_price[0], by_price[-1], large[-1] if large else None)


def bought_of(pairs: Sequence[str]) -> list[Bought]:
    """`["T4=700"]` as prices of the user's own, before those that are known. Raises StageError with all mistakes."""
    families = sorted({row.gpu_family for row in prices() if row.gpu})
    known = {family.lower(): family for family in families}
    own: list[Bought] = []
    problems = []
    for pair in pairs:
        name, _, usd = pair.partition("=")
        try:
            value = float(usd)
        except ValueError:
            value = 0.0
        if name.strip().lower() not in known:
            remedy = did_you_mean(name, families, f"There are {', '.join(families)}.")
            rule = "must be a GPU of the price list"
            problems.append(Problem("--buy", rule, shown(name), "Nobody rents it out to compare with.", remedy))
        elif not 0.0 < value <= 1e6:
            rule = "must be GPU=DOLLARS, above 0 and at most 1000000"
            problems.append(Problem("--buy", rule, shown(pair), "Nothing says what it costs.", "Write --buy T4=700."))
        else:
            gpu = known[name.strip().lower()]
            own.append(Bought(gpu, value, "a figure of yours", *power_of(gpu)))
    if problems:
        raise StageError("rung ladder", problems)
    told = {each.gpu for each in own}
    return [*own, *(each for each in PRICES if each.gpu not in told)]
