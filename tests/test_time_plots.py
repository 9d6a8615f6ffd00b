"""The picture over time shows the records that it was given, panel by panel, in lines that differ in grey."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import StepPatch

from simulator import time_plots
from simulator.plot_frame import png, world_line
from stages.records import REPLICAS, Records, looks_frame
from tests.hand_made_runs import DEVICE, run

WINDOW_S = 20.0


def a_run(*, cold_s: float, shed: int = 40, slow_s: float = 0.1) -> Records:
    """A second replica is wanted at 8 s and ready `cold_s` later; from 10 s on a batch takes `slow_s`."""
    batches = [(0.5 * n, 0.5 * n + (slow_s if n >= 20 else 0.01), 2) for n in range(1, 39)]
    made = run(batches, window_s=WINDOW_S, shed=shed)
    lives = [(0, DEVICE, -2.0, 0.0, WINDOW_S), (1, DEVICE, 8.0, 8.0 + cold_s, WINDOW_S)]
    replicas = pl.DataFrame(lives, schema=REPLICAS, orient="row")
    looks = looks_frame([(2.0, 1, 1, 0, 3.0, ""), (8.0, 2, 1, 1, 30.0, "")])
    return Records(made.requests, made.batches, replicas, WINDOW_S, looks)


def picture(measured: list[Records], predicted: Records, *, priced: bool = True) -> Figure:
    price = (lambda replica: 3.6 if replica == 0 else 36.0) if priced else None
    return time_plots.over_time(measured, predicted, 0.05, price, "A spike", "a stage")


def panels(figure: Figure) -> dict[str, Axes]:
    names = ("arrivals", "replicas", "queue", "latency", "refused", "paid")
    return dict(zip(names, figure.axes, strict=True))


def lines(axes: Axes) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in axes.lines}


def stairs(axes: Axes) -> dict[str, StepPatch]:
    return {str(patch.get_label()): patch for patch in axes.patches if isinstance(patch, StepPatch)}


MEASURED, PREDICTED = a_run(cold_s=4.0), a_run(cold_s=3.0)


def test_panels_share_the_time_axis_and_name_their_units() -> None:
    figure = picture([MEASURED], PREDICTED)
    for axes in figure.axes:
        assert axes.get_xlim() == figure.axes[0].get_xlim()
        assert axes.get_ylabel().endswith(")"), "a label ends with its unit"
    assert figure.axes[-1].get_xlabel() == "time since the schedule began (s)"
    tops = [axes.get_subplotspec().rowspan.start for axes in figure.axes]  # type: ignore[union-attr]
    assert tops == sorted(tops)


def test_replicas_wanted_and_ready_of_both_worlds() -> None:
    drawn = lines(panels(picture([MEASURED], PREDICTED))["replicas"])
    data = {name: np.asarray(line.get_xydata()).tolist() for name, line in drawn.items()}
    assert data["measured wanted"] == data["predicted wanted"] == [[0, 1], [8, 2], [20, 2]]
    assert data["measured ready"] == [[0, 1], [12, 2], [20, 2]]
    assert data["predicted ready"] == [[0, 1], [11, 2], [20, 2]]
    assert all(line.get_drawstyle() == "steps-post" for line in drawn.values())


def test_a_fleet_that_stays_has_no_wanted_line() -> None:
    fixed = run([(1.0, 1.1, 2)], window_s=WINDOW_S)
    figure = picture([fixed], fixed)
    assert set(lines(panels(figure)["replicas"])) == {"measured ready", "predicted ready"}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["measured", "predicted"]
    assert len(picture([MEASURED], PREDICTED).legends[0].get_texts()) == 4


def test_arrivals_refusals_and_queue_are_counted_in_bins() -> None:
    drawn = panels(picture([MEASURED], a_run(cold_s=3.0, shed=0)))
    width_s = WINDOW_S / time_plots.BINS
    values, edges_s, _ = stairs(drawn["refused"])["measured"].get_data()
    assert np.asarray(values) @ np.diff(edges_s) == pytest.approx(40.0)
    assert values[int(0.5 / width_s)] == pytest.approx(40.0 / width_s)
    assert not np.any(stairs(drawn["refused"])["predicted"].get_data().values)
    values, edges_s, _ = stairs(drawn["arrivals"])["measured"].get_data()
    assert np.asarray(values) @ np.diff(edges_s) == pytest.approx(40.0 + 38 * 2)
    values, edges_s, _ = stairs(drawn["queue"])["measured"].get_data()
    assert np.asarray(values) @ np.diff(edges_s) == pytest.approx(38 * 2 * 0.01), "each waits for 10 ms"


def test_latency_is_in_ms_with_its_promise_and_dollars_go_by_the_replica() -> None:
    drawn = panels(picture([MEASURED], PREDICTED))
    latency = lines(drawn["latency"])
    measured_ms = np.asarray(latency["measured"].get_ydata(), dtype=np.float64)
    assert np.nanmin(measured_ms) == pytest.approx(22.0)
    assert np.nanmax(measured_ms) == pytest.approx(112.0)
    assert set(np.asarray(latency["_slo"].get_ydata()).tolist()) == {50.0}
    assert drawn["latency"].get_yscale() == "linear"
    paid = np.asarray(lines(drawn["paid"])["measured"].get_ydata())
    assert paid[-1] == pytest.approx((3.6 * 20 + 36.0 * 12) / 3600)
    assert (np.diff(paid) > 0).all()


def test_without_a_price_the_last_panel_has_replica_seconds() -> None:
    axes = panels(picture([MEASURED], PREDICTED, priced=False))["paid"]
    assert "replica-seconds" in axes.get_ylabel()
    assert np.asarray(lines(axes)["measured"].get_ydata())[-1] == pytest.approx(20 + 12)


def test_latency_is_logarithmic_where_that_helps() -> None:
    slow = a_run(cold_s=4.0, slow_s=0.45)
    assert panels(picture([slow], PREDICTED))["latency"].get_yscale() == "log"


def test_worlds_differ_without_colour() -> None:
    drawn = lines(panels(picture([MEASURED], PREDICTED))["replicas"])
    looks = {(line.get_linewidth(), str(line._dash_pattern)) for line in drawn.values()}  # type: ignore[attr-defined]
    assert len(looks) == 4
    assert world_line("measured") != world_line("predicted")


def test_every_real_run_is_drawn_and_predicted_lies_upon_them() -> None:
    drawn = panels(picture([MEASURED, MEASURED], PREDICTED))
    assert [str(line.get_label()) for line in drawn["paid"].lines] == ["measured", "measured", "predicted"]


def test_a_run_in_which_nobody_was_answered_can_be_drawn() -> None:
    empty = run([], window_s=WINDOW_S, shed=5)
    data = png(picture([empty], empty))
    assert data.startswith(b"\x89PNG")


def test_the_same_records_give_the_same_picture() -> None:
    assert png(picture([MEASURED], PREDICTED)) == png(picture([MEASURED], PREDICTED))
