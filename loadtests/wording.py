"""How figures are worded for people: names, units and digits of metrics, errors, spreads and constants.

No twin: text only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.calibration import Calibration, GatewayCosts


@dataclass(frozen=True)
class Shown:
    """How a metric is shown: its name, its unit there, and how many of that unit make one of ours."""

    label: str
    unit: str
    factor: float = 1.0
    is_share: bool = False  # then its error is a difference in points, not relative


METRICS = {
    "throughput_rps": Shown("throughput", "/s"),
    "goodput_rps": Shown("goodput", "/s"),
    "shed_share": Shown("shed share", " %", 100.0, is_share=True),
    "latency_s_p50": Shown("latency p50", " ms", 1e3),
    "latency_s_p90": Shown("latency p90", " ms", 1e3),
    "latency_s_p95": Shown("latency p95", " ms", 1e3),
    "latency_s_p99": Shown("latency p99", " ms", 1e3),
    "batch_size_mean": Shown("mean batch size", ""),
    "device_throughput_ips": Shown("device throughput", "/s"),
    "utilisation": Shown("utilisation", " %", 100.0, is_share=True),
    "queue_wait_s_mean": Shown("mean queue wait", " ms", 1e3),
    "queue_wait_s_p95": Shown("queue wait p95", " ms", 1e3),
    "hit_ratio": Shown("hit ratio", " %", 100.0, is_share=True),
    "joined_ratio": Shown("joined ratio", " %", 100.0, is_share=True),
    "cost_usd": Shown("cost of the run", " US cents", 100.0),
    "cost_usd_per_1000": Shown("cost of 1,000 good answers", " US cents", 100.0),
}
OF_A_CACHE = ("hit_ratio", "joined_ratio")  # shown where somebody looked into one
OF_A_BILL = ("cost_usd", "cost_usd_per_1000")  # shown where the stage says what its machines cost
NOTHING = "–"  # in place of NaN


def number(metric: str, value: float) -> str:
    """A value as people read it, three digits, without its unit: `12.3`."""
    return digits(value * METRICS[metric].factor) if math.isfinite(value) else NOTHING


def shown(metric: str, value: float) -> str:
    """A value in the unit that people read: `12.3 ms`."""
    return f"{number(metric, value)}{METRICS[metric].unit}" if math.isfinite(value) else NOTHING


def shown_error(metric: str, error: float) -> str:
    """An error with its sign: `+1.2 %`, or `-0.4 pt` (percentage points) for a share; `0.0 %` has none."""
    if not math.isfinite(error):
        return NOTHING
    percent = round(100 * error, 1)
    return f"{f'{percent:+.1f}' if percent else '0.0'} {'pt' if METRICS[metric].is_share else '%'}"


def shown_spread(metric: str, low: float, high: float) -> str:
    """The least and the most: `11.9 to 12.8 ms`, and one value where they read the same."""
    least, most = number(metric, low), shown(metric, high)
    return most if shown(metric, low) == most else f"{least} to {most}"


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def constants(calibration: Calibration) -> list[tuple[str, str]]:
    """The calibration for people: what each constant is, and its value."""
    host = calibration.host
    devices = {"": calibration.service_times}
    devices |= {f", {device}": times for device, times in calibration.other_devices.items()}
    swept = [
        (f"device time of a batch of {times.batch_size}{device}", _quantiles(times.quantiles_s))
        for device, of_one in devices.items()
        for times in of_one
    ]
    return [
        *(swept or [("device time of a batch", "as the device catalogue's row for this profile says")]),
        ("scheduled send → in the replica's queue", _quantiles(host.send_quantiles_s)),
        ("an idle device is told of work → its batch starts", f"{1e3 * host.wake_s:.3f} ms"),
        ("a batch ends → the next one starts, when work waits", f"{1e3 * host.between_batches_s:.3f} ms"),
        ("a batch ends → the first of its answers is back", _quantiles(host.reply_quantiles_s)),
        ("each further answer of the same batch", f"{1e3 * host.reply_per_item_s:.3f} ms"),
        *_of_gateway(calibration.gateway),
    ]


def _of_gateway(gateway: GatewayCosts | None) -> list[tuple[str, str]]:
    if gateway is None:
        return []
    queue = "the replica's queue" if gateway.of == "gateway" else "line for the broker"
    return [
        (f"scheduled send → read by the {gateway.of}", _quantiles(gateway.send_quantiles_s)),
        (f"read by the {gateway.of} → in {queue}", _quantiles(gateway.forward_quantiles_s)),
        (f"a batch ends → the first of its answers is at the {gateway.of}", _quantiles(gateway.back_quantiles_s)),
        (f"an answer is at the {gateway.of} → it is back", _quantiles(gateway.reply_quantiles_s)),
        (f"the {gateway.of}'s processor time for a request", f"{1e3 * gateway.busy_s:.3f} ms"),
        *_of_hits(gateway),
    ]


def _of_hits(gateway: GatewayCosts) -> list[tuple[str, str]]:
    if gateway.hit_busy_s is None:
        return []
    return [
        ("read by the gateway → a kept answer is back", _quantiles(gateway.hit_reply_quantiles_s)),
        ("the gateway's processor time for a kept answer", f"{1e3 * gateway.hit_busy_s:.3f} ms"),
    ]


def digits(value: float) -> str:
    """A number with three significant digits, and never more than two after the point."""
    rounded = abs(float(f"{value:.3g}"))  # first, so that 9.999 reads 10.0
    whole = math.floor(math.log10(rounded)) if rounded else 0
    return f"{value:.{min(max(2 - whole, 0), 2)}f}"


def _quantiles(values_s: Sequence[float]) -> str:
    ms = [1e3 * value for value in values_s]
    if len(ms) == 1:
        return f"{digits(ms[0])} ms"
    return f"median {digits(float(np.median(ms)))} ms ({digits(ms[0])} to {digits(ms[-1])})"
