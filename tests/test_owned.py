"""Bought against rented: the arithmetic of an hour, and whose figure is whose."""

from __future__ import annotations

import csv

import pytest

from stages.owned import (
    HOURS_A_YEAR,
    PRICES,
    WATTS_FILE,
    WATTS_UNKNOWN,
    Assumptions,
    Bought,
    against,
    bought_of,
    owned_usd_per_hour,
    power_of,
)
from stages.prices import prices
from stages.problems import StageError

PLAIN = Assumptions(years=1.0, server_share=0.0, server_watts=0.0, used=1.0)


def test_an_hour_is_the_price_spread_over_its_life_and_its_power() -> None:
    assert owned_usd_per_hour(HOURS_A_YEAR, 0.0, PLAIN) == pytest.approx(1.0)
    powered = Assumptions(years=1.0, server_share=1.0, server_watts=400.0, overhead=2.0, usd_per_kwh=0.25, used=0.5)
    assert owned_usd_per_hour(HOURS_A_YEAR, 600.0, powered) == pytest.approx((2.0 + 0.5) / 0.5)


def test_it_is_held_against_the_cheapest_rent_and_the_large_clouds() -> None:
    found = against(Bought("T4", HOURS_A_YEAR / 10, "a test", 0.0), PLAIN)
    assert found is not None
    rents = [row.usd_per_gpu_hour for row in prices() if row.gpu_family == "T4" and row.pricing == "on-demand"]
    assert found.cheapest.usd_per_gpu_hour == min(rents)
    assert found.ratio == pytest.approx(min(rents) / 0.1)
    assert found.ratio_large == pytest.approx(max(rents) / 0.1)
    assert found.break_even(PLAIN) == pytest.approx(0.1 / min(rents))


def test_at_its_break_even_use_it_costs_what_the_cheapest_rent_costs() -> None:
    bought = PRICES[0]
    found = against(bought, Assumptions())
    assert found is not None
    even = Assumptions(used=found.break_even(Assumptions()))
    assert owned_usd_per_hour(bought.usd, bought.watts, even) == pytest.approx(found.cheapest.usd_per_gpu_hour)


def test_a_gpu_that_nobody_rents_out_is_not_compared() -> None:
    assert against(Bought("B200", 1.0, "a test", 1.0), PLAIN) is None


def test_the_users_own_prices_go_first() -> None:
    assert bought_of([]) == list(PRICES)
    own = bought_of(["a100=1000", "T4=700"])
    assert [(each.gpu, each.usd) for each in own] == [("A100", 1000.0), ("T4", 700.0)]


def test_mistakes_are_told_all_at_once() -> None:
    with pytest.raises(StageError) as error:
        bought_of(["T4", "T5=3", "A100=-1"])
    assert len(error.value.problems) == 3
    assert "Did you mean" in str(error.value)


def test_every_gpu_with_watts_says_whose_they_are_and_the_form_that_takes_most_counts() -> None:
    assert power_of("T4")[0] == 70.0
    assert power_of("v100")[0] == 300.0
    watts, source = power_of("A100")
    assert watts == 400.0
    assert source.startswith("A100 SXM4: ")
    assert power_of("B200") == (WATTS_UNKNOWN, "a guess")
    with WATTS_FILE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({(row["gpu"], row["form"]) for row in rows}) == len(rows)
    for row in rows:
        assert 0.0 < float(row["watts"]) <= 1500.0
        assert row["source"]
    assert {"T4", "V100", "A100"} <= {row["gpu"] for row in rows}
    own = bought_of(["T4=700"])[0]
    assert (own.watts, own.watts_source) == power_of("T4")
