"""What the verbs of loadtests print for people, and as JSON."""

from __future__ import annotations

import math
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from loadtests import policies, report
from loadtests.costs import QUANTILES
from loadtests.report import Comparison
from stages.calibration import Calibration
from stages.terminal import err, out, print_json


def print_comparisons(found: dict[str, Comparison], folder: Path, json_: bool) -> None:
    """One comparison, under the name "", or one a policy: as JSON, or tables and where the reports are."""
    comparison = found.get("")
    if json_:
        page = folder / "report.html"
        print_json(report.document(comparison, page) if comparison else policies.document(found, folder))
    elif comparison is not None:
        report.print_table(comparison, out)
        out.print(f"Report: {folder / 'report.html'}")
    else:
        policies.print_table(found, out)
        out.print(f"A report for each policy, and policies.json: {folder}")


def print_metrics(metrics: dict[str, float], title: str) -> None:
    """A table of every metric."""
    table = Table("metric", title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name, "-" if math.isnan(value) else f"{value:.4g}")
    out.print(table)


def print_calibration(calibration: Calibration) -> None:
    """Device times, a table a device, and the medians of what the host takes."""
    devices = {calibration.device: calibration.service_times, **calibration.other_devices}
    outermost = 50 / QUANTILES  # the least and the most are not kept
    for device, swept in devices.items():
        title = f"{calibration.stage} on {device}"
        table = Table("batch size", "service time, ms", f"p{outermost:.1f}", f"p{100 - outermost:.1f}", title=title)
        for times in swept:
            low, high = times.quantiles_s[0], times.quantiles_s[-1]
            table.add_row(*(str(times.batch_size), *(f"{1e3 * t:.3f}" for t in (times.mean_s, low, high))))
        out.print(table)
    host = calibration.host
    middle = len(host.send_quantiles_s) // 2
    out.print(
        f"Host, median ms: send {1e3 * host.send_quantiles_s[middle]:.3f}, wake {1e3 * host.wake_s:.3f}, "
        f"between batches {1e3 * host.between_batches_s:.3f}, reply {1e3 * host.reply_quantiles_s[middle]:.3f}, "
        f"each further answer {1e3 * host.reply_per_item_s:.3f}"
    )
    if (gateway := calibration.gateway) is not None:
        hops = ("send", "forward", "back", "reply")
        medians = [sorted(getattr(gateway, f"{hop}_quantiles_s")) for hop in hops]
        told = ", ".join(f"{hop} {1e3 * q[len(q) // 2]:.3f}" for hop, q in zip(hops, medians, strict=True))
        door = f"{gateway.of[0].upper()}{gateway.of[1:]}"
        out.print(f"{door}, median ms: {told}, processor time of a request {1e3 * gateway.busy_s:.3f}")
        if gateway.hit_busy_s is not None:
            middle_s = sorted(gateway.hit_reply_quantiles_s)[len(gateway.hit_reply_quantiles_s) // 2]
            out.print(
                f"Kept answer, median ms: reply {1e3 * middle_s:.3f}, processor time {1e3 * gateway.hit_busy_s:.3f}"
            )
    err.print(f"Measured on {calibration.machine}.", highlight=False)
