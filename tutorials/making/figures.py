"""The figures of the chapters, each drawn from predictions that follow from a stage and a seed.

    stage, seed ─▶ simulate ─▶ records ─▶ one function a figure ─▶ SVG in tutorials/figures/

No twin: pictures. Nothing is measured here; pictures of measurements lie beside them, under stages/*/measured.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from simulator.cache import kept_bytes
from simulator.drills import Slowdown
from simulator.plot_frame import (
    BLACK,
    BLUE,
    GREY,
    SKY,
    STYLE,
    VERMILLION,
    framed,
    key,
    plain_log_ticks,
    styled,
)
from simulator.run import capacity_rps, serve_by_event, simulate
from simulator.theory import md1_wait_s, warming_hit_ratio
from simulator.time_plots import over_time
from stages import catalogue, timeseries
from stages.cost import usd_per_hour
from stages.metrics import summarise
from stages.records import Records
from stages.spec import Stage, load_stage
from stages.traffic import at_rate, popularity
from tutorials.making.chapter import TUTORIALS
from tutorials.making.peeking import peeking

FIGURES = TUTORIALS / "figures"
# Fonts are the reader's, so that text stays text; the same figure gives the same bytes.
_SVG: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "rung"}
_IDENTIFIER = re.compile(r"\b[a-z][0-9a-f]{10}\b")  # made of what it names
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
NEAR = 0.5  # points of the page: so far a line may lie elsewhere, computed on another machine

Style = dict[str, Any]
LINES: tuple[Style, ...] = (
    {"color": BLUE, "linestyle": "solid"},
    {"color": VERMILLION, "linestyle": (0, (5, 2))},
    {"color": BLACK, "linestyle": (0, (6, 2, 1, 2))},
    {"color": SKY, "linestyle": "solid", "linewidth": 3.0},
    {"color": GREY, "linestyle": (0, (1, 1.5))},
)


@styled
def hockey_stick() -> Figure:
    """Latency against load of one machine: three percentiles, and the mean by theory."""
    stage = load_stage("single-vm", {"overload": True})
    capacity = capacity_rps(stage)
    loads = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95])
    found = [_told(stage, load * capacity, 20_000) for load in loads]
    figure = framed(4.6, "The hockey stick", "One machine, 79 requests a second at most, Poisson arrivals; predicted")
    axes = figure.add_subplot()
    for percent, style in zip((50, 95, 99), LINES, strict=False):
        axes.plot(100 * loads, [1e3 * each[f"latency_s_p{percent}"] for each in found], label=f"p{percent}", **style)
    means = [1e3 * (md1_wait_s(load * capacity, 1 / capacity) + 1 / capacity) for load in loads]
    axes.plot(100 * loads, means, label="mean, by theory (M/D/1)", **LINES[4])
    _finish(figure, axes, "load (% of capacity)", "latency (ms)")
    return figure


@styled
def stall() -> Figure:
    """What two load generators see of a server that stands still for two seconds."""
    figure = framed(4.6, "One stall, two load generators", "The server stands still for two seconds; predicted")
    upper, lower = figure.subplots(2, 1, sharex=True, sharey=True)
    panels: tuple[tuple[Axes, str, dict[str, Any]], ...] = (
        (upper, "open loop: sends on schedule", {}),
        (lower, "closed loop: waits for each reply", CLOSED),
    )
    for axes, title, keys in panels:
        requests = stalled(load_stage("single-vm", STALLED | keys)).requests
        took_ms = 1e3 * (requests["replied_s"] - requests["scheduled_s"]).to_numpy()
        due_s = requests["scheduled_s"].to_numpy()
        near = (due_s > 6.0) & (due_s < 14.0)
        axes.plot(due_s[near], took_ms[near], ".", color=BLUE, markersize=3.5)
        axes.set_title(f"{title}, {requests.height} requests", loc="left")
        axes.set_ylabel("latency (ms)")
    lower.set_xlabel("when it was sent (s)")
    return figure


STALLED: dict[str, Any] = {"traffic.rate.rate_rps": 30.0, "traffic.duration_s": 20.0} | {
    "admission.max_queue_length": 256
}
CLOSED: dict[str, Any] = {
    "traffic.rate": None,
    "traffic.loop": "closed",
    "traffic.users": 1,
    "traffic.think_time_s": 0.02,
}
STALL_S = 2.0


def stalled(stage: Stage) -> Records:
    """A run of one machine whose first batch from second 8 on takes two seconds."""
    factor = STALL_S * capacity_rps(stage)
    return simulate(stage, slowdowns=(Slowdown(0, factor, 8.0), Slowdown(0, 1.0, 8.1)), serve=serve_by_event)


@styled
def batching() -> Figure:
    """How many times the items a second of batches of one a device gives in larger ones."""
    shown = {
        "t4-resnet50-fp16-pytorch": "T4, fp16",
        "t4-resnet50-fp32-tensorflow": "T4, fp32",
        "v100-resnet50-fp16-pytorch": "V100, fp16",
        "a100-bert-base-fp16-tensorflow": "A100 with BERT, fp16",
    }
    figure = framed(
        4.6,
        "What batching buys",
        "Items a second in batches of n over those alone; ResNet-50 where nothing else is said; catalogue",
    )
    axes = figure.add_subplot()
    for (name, label), style in zip(shown.items(), LINES, strict=False):
        profile = catalogue.profiles()[name]
        sizes, times_s = np.array(profile.batch_sizes), np.array(profile.service_times_s)
        axes.plot(sizes, sizes / times_s * times_s[0], marker="o", markersize=4, label=label, **style)
    sizes = np.array([1.0, 2, 4, 8, 16, 32, 64, 128, 256])
    axes.plot(sizes, sizes, label="n times", **LINES[4])
    for which in ("x", "y"):
        getattr(axes, f"set_{which}scale")("log")
        plain_log_ticks(axes, which, sizes)
    axes.set_ylim(0.9, 60)
    _finish(figure, axes, "batch size", "gain over batches of one")
    return figure


@styled
def policies() -> Figure:
    """p95 of two machines against load, by the policy of their gateway."""
    stage = load_stage("load-balanced", {"overload": True})
    capacity, loads = capacity_rps(stage), (0.3, 0.6, 0.8, 0.9)
    figure = framed(4.6, "Who gets the next request?", "Two machines, Poisson arrivals, batches of up to 8; predicted")
    axes = figure.add_subplot()
    names = ("random", "round-robin", "power-of-two", "least-outstanding")
    for name, style in zip(names, LINES, strict=False):
        under = load_stage("load-balanced", {"overload": True, "gateway.policy": name})
        found = [1e3 * _told(under, load * capacity, 3_000)["latency_s_p95"] for load in loads]
        axes.plot(100 * np.array(loads), found, marker="o", markersize=4, label=name, **style)
    _finish(figure, axes, "load (% of capacity)", "latency p95 (ms)")
    return figure


def spike() -> Figure:
    """The fourth stage through its spike."""
    stage = load_stage("autoscaled")
    cost = stage.cost
    assert cost is not None
    about = "Eight times the traffic for a minute; a tenth of the real times; predicted; dotted: replicas wanted"
    price: Callable[[int], float] = lambda replica: usd_per_hour(cost, replica)  # noqa: E731
    figure = over_time([], simulate(stage), stage.slo.latency_s, price, "The spike is here", about)
    for legend in figure.legends:  # it tells predicted from measured, and nothing here is measured
        legend.remove()
    return figure


@styled
def hit_ratio() -> Figure:
    """Hits of the fifth stage against the size of its cache: simulated, and by Che's approximation."""
    stage = load_stage("cached", {"overload": True, "traffic.duration_s": 20.0})
    entry_bytes, rate_rps = kept_bytes(stage.model), 400.0
    rates = popularity(stage.traffic.items) * rate_rps
    figure = framed(4.6, "How much room does a cache need?", "10,000 items by Zipf's law, the first 20 s; predicted")
    axes = figure.add_subplot()
    entries = np.geomspace(50, 10_000, 25)
    theory = [100 * warming_hit_ratio(rates, each, 20.0) for each in entries]
    axes.plot(entries, theory, label="least recently used, by theory", **LINES[0])
    for policy, marker in (("lru", "o"), ("s3-fifo", "^")):
        sizes = np.array([100, 600, 3_600])
        found = []
        for size in sizes:
            keys = {"cache.policy": policy, "cache.max_bytes": int(size * entry_bytes)}
            told = summarise(simulate(load_stage("cached", {"traffic.duration_s": 20.0, "overload": True} | keys)), 1.0)
            found.append(100 * (told["hit_ratio"] + told["joined_ratio"]))
        axes.plot(sizes, found, marker, color=BLACK, markerfacecolor="none", label=f"{policy}, simulated")
    axes.set_xscale("log")
    plain_log_ticks(axes, "x", entries)
    axes.set_ylim(0, 100)
    _finish(figure, axes, "answers that the cache holds", "hits and joined (%)")
    return figure


@styled
def backlog() -> Figure:
    """The sixth stage in a burst that its workers cannot follow: what waits, and who works."""
    run = simulate(load_stage("queued", BURST))
    times_s = np.linspace(0.0, run.window_s, 600)
    figure = framed(4.6, "Nobody is refused", "40 jobs a second, for half a minute four times as many; predicted")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, steps, label, style in (
        (upper, timeseries.queue_length(run), "jobs that wait", LINES[0]),
        (lower, timeseries.ready(run), "workers", LINES[1]),
    ):
        axes.plot(times_s, steps.at(times_s), **style)
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
    lower.set_xlabel("time (s)")
    return figure


BURST: Mapping[str, Any] = {
    "overload": True,
    "traffic.duration_s": 150.0,
    "traffic.timeout_s": 600.0,
    "traffic.rate": {
        "shape": "spike",
        "rate_rps": 40.0,
        "spike_factor": 4.0,
        "spike_start_s": 30.0,
        "spike_duration_s": 30.0,
    },
}

DRAWN: dict[str, Callable[[], Figure]] = {
    draw.__name__: draw for draw in (hockey_stick, stall, batching, policies, spike, hit_ratio, backlog, peeking)
}


def svg(figure: Figure) -> str:
    """The figure as SVG; the same figure gives the same text."""
    buffer = io.StringIO()
    with rc_context(STYLE | _SVG):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "".join(f"{line.rstrip()}\n" for line in buffer.getvalue().splitlines())


def write() -> None:
    """Draws every figure; one that is as it was keeps its file as it was."""
    FIGURES.mkdir(exist_ok=True)
    for name, draw in DRAWN.items():
        path, drawn = FIGURES / f"{name}.svg", svg(draw())
        if not path.is_file() or not alike(path.read_text(encoding="utf-8"), drawn):
            path.write_text(drawn, encoding="utf-8")


def alike(one: str, other: str) -> bool:
    """Whether two drawings show the same: the same shapes and words, no point of them further apart than NEAR."""
    one, other = (_IDENTIFIER.sub("id", text) for text in (one, other))
    if _NUMBER.sub("#", one) != _NUMBER.sub("#", other):
        return False
    places = (np.array(_NUMBER.findall(text), dtype=np.float64) for text in (one, other))
    return bool(np.all(np.abs(np.subtract(*places)) <= NEAR))


def _told(stage: Stage, rate_rps: float, requests: int) -> dict[str, float]:
    """The metrics of so many requests at that rate."""
    traffic = at_rate(stage.traffic, rate_rps).model_copy(update={"duration_s": requests / rate_rps})
    return summarise(simulate(stage.model_copy(update={"traffic": traffic})), stage.slo.latency_s)


def _finish(figure: Figure, axes: Axes, x: str, y: str) -> None:
    """Labels, a foot at zero, and the key above the axes."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if axes.get_yscale() == "linear" and axes.get_ylim()[0] < axes.get_ylim()[1]:
        axes.set_ylim(bottom=0)
    handles = [line for line in axes.get_lines() if isinstance(line, Line2D)]
    key(figure, handles, [str(line.get_label()) for line in handles])
