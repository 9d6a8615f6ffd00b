"""The accuracy page: every kept result is on it, and says of itself what its file says."""

from __future__ import annotations

from typing import Any

import pytest

from loadtests import accuracy
from loadtests.accuracy_sections import section
from stages.spec import stage_files


def a_row(load: float = 0.5, metric: str = "latency_s_p95", error: float | None = 0.1, **more: Any) -> dict[str, Any]:
    found = {"load": load, "metric": metric, "measured": 0.02, "predicted": 0.022, "error": error, "void": False}
    return found | {"spread_low": 0.019, "spread_high": 0.021} | more


def lines(document: dict[str, Any], drawn: bool = False) -> str:
    return "\n".join(section("emulated-poisson", "../x.json", document, drawn))


def test_a_result_says_where_it_comes_from() -> None:
    document = {"device": "emulated t4", "machine": "a laptop", "made_at": "2026-11-20T13:54:48", "command": "rung x"}
    text = lines(document | {"rows": [a_row()], "result": "It went well.", "caveats": ["Mind the gap."]})
    assert "### emulated poisson" in text
    assert "Device: emulated t4. Measured on: a laptop, 2026-11-20. By `rung x`. [All figures](../x.json)." in text
    assert "It went well." in text
    assert "- Mind the gap." in text
    assert "[Picture](../x.png)" not in text
    assert "[Picture](../x.png)" in lines(document, drawn=True)


def test_what_a_drill_says_of_itself_is_on_the_page() -> None:
    assert "- It took its time." in lines({"rows": [], "notes": ["It took its time."]})


def test_a_load_is_a_line_with_measurement_spread_and_error() -> None:
    text = lines({"rows": [a_row(0.9), a_row(0.5, error=None), a_row(1.2, void=True)]})
    assert "| load | latency p95 |" in text
    assert "| 0.9 | 20.0 ms (19.0 to 21.0), +10.0 % |" in text
    assert "| 0.5 | 20.0 ms (19.0 to 21.0), – |" in text
    assert "| 1.2 | 20.0 ms (19.0 to 21.0), void |" in text
    assert text.index("| 0.5 |") < text.index("| 0.9 |")


def test_policies_have_a_line_each() -> None:
    text = lines({"rows": [a_row(policy="random"), a_row(policy="learned")]})
    assert "| 0.5 | random |" in text
    assert "| 0.5 | learned |" in text


def test_two_versions_have_a_line_each_beside_that_of_both() -> None:
    text = lines({"rows": [a_row(measured=0.03), a_row(arm="champion"), a_row(arm="challenger", measured=0.09)]})
    assert "| load | arm | latency p95 |" in text
    assert (
        "| 0.5 | both | 30.0 ms" in text
        and "| 0.5 | champion | 20.0 ms" in text
        and "| 0.5 | challenger | 90.0 ms" in text
    )


def test_a_run_over_time_has_a_line_a_figure() -> None:
    row = {"metric": "replica_seconds", "measured": 640.0, "predicted": 644.0, "spread_low": 640.0, "spread_high": None}
    assert "| replica_seconds | 640 | 644 | 640 to – |" in lines({"rows": [row]})


def test_void_runs_are_told_and_count_for_nothing() -> None:
    text = lines({"rows": [], "void_runs": [{"load": 0.5, "repeat": 0, "why": "The generator was late."}]})
    assert "Void runs, which count for nothing: 1. The first: The generator was late." in text
    rows = [a_row(error=0.2), a_row(error=-0.3), a_row(error=0.9, void=True), a_row(1.2, error=0.8), a_row(error=None)]
    found = accuracy.worst(rows, "latency_s_p95")
    assert found is not None
    assert found["error"] == -0.3


def test_each_version_of_an_experiment_counts_below_capacity_and_above(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [a_row(error=0.02), a_row(error=-0.05, arm="challenger")]
    above = [a_row(1.2, metric, error, arm=arm) for metric, error, arm in [
        ("throughput_rps", 0.01, None), ("throughput_rps", -0.03, "champion"), ("shed_share", 0.002, None),
    ]]  # fmt: skip
    document = {"device": "emulated t4", "rows": rows + above}
    path = accuracy.ROOT / "stages/07_ab_test/measured/x-poisson.json"
    monkeypatch.setattr(accuracy, "_kept", lambda: iter([("ab-test", path, document)]))
    (line,) = list(accuracy.table())[2:]
    assert line.endswith("|  |  | -5.0 % |  | -3.0 %, +0.2 pt |")
    assert "over 2 loads (each version of an A/B test by itself is one more)" in accuracy.page()


@pytest.mark.parametrize("stage", stage_files())
def test_every_kept_result_is_on_the_page(stage: str) -> None:
    page = accuracy.page()
    for path in (stage_files()[stage].parent / "measured").glob("*.json"):
        assert f"(../{path.relative_to(accuracy.ROOT).as_posix()})" in page


def test_the_page_says_when_not_to_trust_it() -> None:
    page = accuracy.page()
    for head in ("## At a glance", "## What the model leaves out", "## When not to trust a prediction"):
        assert head in page
