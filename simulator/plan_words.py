"""A plan in words: the answer, what lies beside it, what breaks first, and what it rests on.

    Plan ─▶ answer, neighbours, breaking, assumptions ─▶ `rung plan`, plan.json, the comment over its stage.toml

No twin. It simulates nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from simulator.candidates import Candidate
from simulator.estimate import Interval
from simulator.plan import FULL, Breaks, Neighbour, Plan, plan_without_choice
from simulator.planned_stage import stage_of
from simulator.search import Tried
from simulator.workload import COLD_START_S, INTERVAL_S
from stages.spec import stage_toml

ENOUGH = 3  # of those that are alike or in doubt are named


def answer(plan: Plan) -> Iterator[str]:
    """What was found, in sentences: the choice, or what came nearest."""
    choice = plan.choice
    if choice is None:
        nearest = plan_without_choice(plan)
        yield "Nothing that was tried meets the SLO." if plan.tried else "Arithmetic leaves nothing to try."
        if nearest is not None:
            yield f"The nearest: {nearest.candidate}. {_share(nearest)}; p95 {milliseconds(nearest.p95_s)}."
        yield from (f"Refused by arithmetic: {reason} ({count} times)." for reason, count in plan.grid.refused.items())
        yield "Allow more latency with --p95, other machines with --devices or --prices, or --spot."
        return
    yield f"{choice.candidate}."
    per_1000 = choice.estimate["cost_usd_per_1000"]
    yield f"{dollars(choice.usd_per_hour)} an hour, {dollars(per_1000)} per 1,000 good answers."
    yield f"p95 {milliseconds(choice.p95_s)}; {_share(choice)}."
    others = plan.alike
    if others:
        names = "; ".join(str(each.candidate) for each in others[:ENOUGH])
        more = f", and {len(others) - ENOUGH} more" if len(others) > ENOUGH else ""
        yield f"Cost and p95 cannot be told from those of {names}{more}: their difference lies within its interval."
    for each in plan.in_doubt[:ENOUGH]:
        yield (
            f"In doubt: {each.candidate} for {dollars(each.usd_per_hour)} an hour may meet the SLO too: {_share(each)}."
        )


def neighbour(choice: Tried, near: Neighbour) -> str:
    """What a change does to cost, p95 and the promise."""
    other = near.tried
    if other is None:
        return near.words
    usd = other.usd_per_hour.mean / choice.usd_per_hour.mean - 1
    cost = "the same cost" if abs(usd) < 0.005 else f"{abs(usd):.0%} {'dearer' if usd > 0 else 'cheaper'}"
    apart = other.estimate.difference(choice.estimate, "latency_s_p95")
    same = not math.isnan(apart.low) and apart.low <= 0 <= apart.high
    told = "the same p95 within the interval" if same else f"p95 {milliseconds(other.p95_s)}"
    verdict = {
        "meets": "meets the SLO",
        "unsure": f"may meet the SLO ({_share(other)})",
        "misses": f"misses the SLO ({_share(other)})",
    }
    lost = f", {other.lost:.0%} without an answer" if other.lost > 0.005 else ""
    return f"{cost}, {told}, {verdict[other.verdict]}{lost}"


def breaking(breaks: Breaks, plan: Plan) -> str:
    """What gives way first when traffic grows, and what says so."""
    mean_rps = plan.workload.rate_rps
    if breaks.factor is None or breaks.tried is None:
        return f"It keeps its promise up to {breaks.holds:g} times the rate, and no more was tried."
    when = (
        f"It keeps its promise up to {breaks.holds:.2f} times the rate, and misses it at {breaks.factor:.2f} times "
        f"({breaks.factor * mean_rps:,.0f} requests per second): "
    )
    return when + _culprit(breaks, breaks.tried, plan)


def component(breaks: Breaks, plan: Plan) -> str:
    """The name of what gives way first: devices, gateway, autoscaler or latency; "" where nothing does."""
    if breaks.factor is None:
        return ""
    name, load = max(breaks.loads.items(), key=lambda item: item[1])
    follows = plan.choice is not None and plan.choice.candidate.least is not None
    if load >= (1.0 if follows else FULL):
        return name
    return "autoscaler" if follows else "latency"


def _culprit(breaks: Breaks, tried: Tried, plan: Plan) -> str:
    gateway = (
        ""
        if "gateway" in breaks.loads or not tried.candidate.has_gateway
        else (" Nothing says when the gateway would: it takes no time without --calibration.")
    )
    loads = ", ".join(f"{name} at {load:.0%} of what they carry" for name, load in breaks.loads.items())
    match component(breaks, plan):
        case "devices":
            fleet = "its replicas are" if tried.candidate.replicas > 1 else "its device is"
            return f"{fleet} full ({loads} at the highest rate). More replicas or larger batches come next.{gateway}"
        case "gateway":
            return f"its gateway's event loop is full ({loads} at the highest rate). A second gateway comes next."
        case "autoscaler":
            return (
                f"its autoscaler is too slow ({loads}, had all of them been there). A higher least number of replicas, "
                f"or emptier ones, come next.{gateway}"
            )
        case _:
            return (
                f"nothing is full yet ({loads}), but waiting for the batch before and for one's own takes all of the "
                f"time that p95 allows. Quicker devices or smaller batches come next.{gateway}"
            )


def assumptions(plan: Plan) -> Iterator[str]:
    """What the plan rests on, in sentences; the captions of its pictures."""
    work, choice = plan.workload, plan.choice
    yield f"Traffic: {work.in_words}; {'Poisson arrivals' if work.shape != 'trace' else 'arrivals of the trace'}."
    if work.compression > 1 and choice is not None and choice.candidate.least is not None:
        times = work.autoscaler_times()
        cold_s = sum(times["cold_start"].values()) * work.compression
        yield (
            f"Time is squeezed {work.compression:.3g} times: the autoscaler's looks stand for one every "
            f"{times['interval_s'] * work.compression:.3g} s ({INTERVAL_S:g} s in Kubernetes), a cold start for "
            f"{cold_s:.3g} s ({sum(COLD_START_S.values()):g} s is taken for a GPU machine)."
        )
    if choice is not None:
        price = choice.candidate.price
        yield f"Prices: {price.usd_per_hour:g} US dollars an hour for {_machine(choice.candidate)}; {price.source}."
        hosted = choice.candidate.host
        if choice.candidate.has_gateway:
            yield (
                "The gateway's machine is not in the cost: give it with --host-usd-per-hour."
                if hosted is None
                else f"The gateway's machine costs {hosted.usd_per_hour:g} US dollars an hour ({hosted.source})."
            )
        if price.pricing == "spot":
            yield "Spot machines may be taken away: until another one is there it is 'one replica fewer'."
    yield "Device times: NVIDIA's own figures for each batch size, without what a server takes around them."
    if not plan.calibrated:
        yield "No calibration: sockets, decoding and the gateway take no time. Give one with --calibration."
    shown = choice or plan_without_choice(plan)
    if shown is not None and shown.replications > 1:
        yield f"Intervals: 95 %, Student's t over {shown.replications} replications with common random numbers."


def document(plan: Plan) -> dict[str, Any]:
    """The plan as plan.json has it and `--json` prints it."""
    choice = plan.choice
    return {
        "workload": asdict(plan.workload) | {"trace": str(plan.workload.trace) if plan.workload.trace else None},
        "choice": None if choice is None else told(choice),
        "answer": list(answer(plan)),
        "neighbours": [
            {"what": near.what, "words": neighbour(choice, near), "tried": told(near.tried) if near.tried else None}
            for near in plan.neighbours
            if choice is not None
        ],
        "breaks": None
        if plan.breaks is None
        else {
            "factor": plan.breaks.factor,
            "holds": plan.breaks.holds,
            "component": component(plan.breaks, plan),
            "loads": plan.breaks.loads,
            "words": breaking(plan.breaks, plan),
        },
        "front": [told(each) for each in plan.front],
        "alike": [str(each.candidate) for each in plan.alike],
        "in_doubt": [told(each) for each in plan.in_doubt],
        "tried": [told(each) for each in plan.tried],
        "refused": plan.grid.refused,
        "left_to_simulate": len(plan.grid.candidates),
        "simulated_requests": plan.requests,
        "wall_s": plan.wall_s,
        "assumptions": list(assumptions(plan)),
    }


def told(tried: Tried) -> dict[str, Any]:
    """One point in plain values; every figure with its 95 % interval."""
    own = tried.candidate
    metrics = ("latency_s_p50", "latency_s_p95", "latency_s_p99", "throughput_rps", "goodput_rps", "utilisation")
    money = ("cost_usd_per_hour", "cost_usd_per_1000")
    return {
        "name": str(own),
        "architecture": own.architecture,
        "profile": own.profile,
        "machine": own.price.machine,
        "pricing": own.price.pricing,
        "replicas": own.replicas,
        "least_replicas": own.least,
        "max_batch_size": own.max_batch_size,
        "batch_wait_timeout_s": own.wait_s,
        "verdict": tried.verdict,
        "replications": tried.replications,
        "lost_share": tried.lost,
        **{name: _plain(tried.estimate[name]) for name in ("slo_share", *metrics, *money)},
    }


def toml_of(plan: Plan) -> str:
    """The stage of the answer as a file that `rung up` runs, with a comment that says what it is. Needs a choice."""
    assert plan.choice is not None
    lines = ["The cheapest stage that `rung plan` found.", *answer(plan), *assumptions(plan)]
    comment = "".join(f"# {line}\n" for line in lines)
    return f"{comment}\n{stage_toml(stage_of(plan.workload, plan.choice.candidate))}"


def dollars(value: Interval) -> str:
    """US dollars with their interval where it can be seen."""
    return _with_interval(value, lambda usd: f"{usd:.3g}", "US dollars")


def milliseconds(value: Interval) -> str:
    """Seconds as milliseconds, with their interval where it can be seen."""
    return _with_interval(value, lambda seconds: f"{1e3 * seconds:.3g}", "ms")


def _with_interval(value: Interval, shown: Any, unit: str) -> str:
    middle, low, high = shown(value.mean), shown(value.low), shown(value.high)
    spread = "" if math.isnan(value.low) or low == high else f" ({low} to {high})"
    return f"{middle} {unit}{spread}"


def _share(tried: Tried) -> str:
    share = tried.share
    low, high = f"{100 * share.low:.1f}", f"{100 * min(1.0, share.high):.1f}"
    spread = "" if math.isnan(share.low) or low == high else f" ({low} to {high})"
    return f"{100 * share.mean:.1f} %{spread} of all requests in time"


def _machine(candidate: Candidate) -> str:
    price = candidate.price
    gpus = f" with {price.gpu_count} GPUs" if price.gpu_count > 1 else ""
    dated = price.as_of if "dated" in price.as_of else f"as of {price.as_of}"
    return f"{price.machine}{gpus}, {price.pricing}, {price.region}, {dated}"


def _plain(value: Interval) -> dict[str, float]:
    return {"mean": value.mean, "low": value.low, "high": value.high}
