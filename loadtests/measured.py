"""Makes the results under stages/*/measured anew: every stage, emulated and on a real device, three traffics.

    python -m loadtests.measured [--only emulated-poisson] [--trace FILE] [--repeat 3]

Each kind of device is calibrated once for a stage; the bursty and the traced traffic are predicted with that same
calibration, and so is every balancing policy of a fleet. What is kept is small: report.json or policies.json (rows,
machine, command) and, of a single policy, the picture of latency against load.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from loadtests.policies import POLICIES
from stages.spec import stage_files

LOADS = "0.2,0.5,0.7,0.85,0.95,1.2"
SECONDS = 15.0
# A real device carries some tens of requests a second, whose 99th percentile is that of a handful within 15 seconds.
REAL_SECONDS = 30.0
FEWER_LOADS = "0.5,0.85"

# ResNet-50 takes 20 to 50 ms on one core of a laptop for images of so many pixels. A tenth of the time of the smallest
# batch is how late the load generator may be; on a virtual machine whose cores are shared that takes a long batch.
REAL = {"model.name": "resnet50", "admission.max_queue_length": "32", "slo.latency_s": "0.5"}
REAL_SINGLE = REAL | {"model.image_size_px": "64"}
REAL_BATCHES = REAL | {
    "model.image_size_px": "48",
    "batching.max_batch_size": "2",
    "batching.batch_wait_timeout_s": "0.01",
}
# A burst comes faster than one Locust process can send it, and such runs are void by our own rule: the device is
# slowed down, and everything with it.
STRETCHED = {"device.slowdown": "4.0", "slo.latency_s": "0.4", "traffic.rate.rate_rps": "10.0"}
STRETCHED_BATCHES = STRETCHED | {"batching.batch_wait_timeout_s": "0.02"}
ALL = ("poisson", "gamma-cv-3", "azure-trace")
# Stage, name of the kind of device, device, about its capacity in requests per second, settings, traffics.
KINDS: tuple[tuple[str, str, str, float, dict[str, str], tuple[str, ...]], ...] = (
    ("micro-batched", "emulated", "emulated", 650.0, {}, ALL[:1]),
    ("micro-batched", "emulated-stretched", "emulated", 163.0, STRETCHED_BATCHES, ALL[1:]),
    ("single-vm", "emulated", "emulated", 80.0, {}, ALL[:1]),
    ("single-vm", "emulated-stretched", "emulated", 20.0, STRETCHED, ALL[1:]),
    ("micro-batched", "cpu", "cpu", 37.0, REAL_BATCHES, ALL),
    ("single-vm", "cpu", "cpu", 29.0, REAL_SINGLE, ALL),
    ("load-balanced", "emulated", "emulated", 320.0, {}, ALL[:1]),
)
# Fleets of load-balanced under every policy: 640 requests a second of four replicas are more than two cores carry
# beside the load generator, so that these fleets keep half of the stage's pace.
HALF_PACE = {"device.slowdown": "8.0", "batching.batch_wait_timeout_s": "0.04", "slo.latency_s": "0.5"}
UNEQUAL = '["t4-resnet50-fp16-pytorch", "a100-resnet50-tf32-tensorflow"]'
FLEETS: dict[str, dict[str, str]] = {
    "two-replicas": {},
    "four-replicas": HALF_PACE | {"fleet.replicas": "4"},
    "unequal-replicas": HALF_PACE | {"fleet.profiles": UNEQUAL},
}
FLEET_LOADS, FLEET_SECONDS = "0.2,0.7,0.95", 15.0


@dataclass(frozen=True)
class Campaign:
    """One comparison whose result is kept under `name`."""

    stage: str
    name: str
    device: str
    loads: str
    settings: dict[str, str]
    seconds: float = SECONDS
    every_policy: bool = False  # of balancing, one after the other

    @property
    def folder(self) -> Path:
        """Where its result is kept."""
        return stage_files()[self.stage].parent / "measured"


def campaigns(trace: Path | None) -> list[Campaign]:
    """Every comparison that is kept, in the order in which they run; those of a trace only where it is given.

    A kind of device, with the settings that go with it, is calibrated once; its other traffics use that calibration.
    """
    result = []
    for stage, kind, device, capacity_rps, settings, traffics in KINDS:
        for traffic in traffics:
            if traffic == "azure-trace" and trace is None:
                continue
            changed = settings | _changes(traffic, trace, capacity_rps)
            if "traffic.rate" in changed:
                changed.pop("traffic.rate.rate_rps", None)
            loads = LOADS if traffic == "poisson" else FEWER_LOADS
            seconds = REAL_SECONDS if device == "cpu" else SECONDS
            result.append(Campaign(stage, f"{kind}-{traffic}", device, loads, changed, seconds))
    for fleet, settings in FLEETS.items():
        result.append(Campaign("load-balanced", fleet, "emulated", FLEET_LOADS, settings, FLEET_SECONDS, True))
    return result


def _changes(traffic: str, trace: Path | None, capacity_rps: float) -> dict[str, str]:
    """The keys of a stage that make its traffic bursty, or a trace's."""
    if traffic == "gamma-cv-3":
        return {"traffic.arrivals": "gamma", "traffic.coefficient_of_variation": "3.0"}
    if traffic == "azure-trace":
        # The hour is squeezed until its 5.5 requests a second are about what the stage carries.
        return {"traffic.rate": f'{{shape = "trace", path = "{trace}", time_scale = {5.5 / capacity_rps:.5f}}}'}
    return {}


def run(campaign: Campaign, repeat: int) -> int:
    """Runs one comparison by the command that anybody can type, and keeps its small results. Gives its exit status."""
    folder = Path("runs") / "measured" / f"{campaign.stage}-{campaign.name}"
    command = ["rung", "compare", campaign.stage, "--device", campaign.device, "--loads", campaign.loads]
    command += ["--repeat", str(repeat), "--duration", f"{campaign.seconds:g}", "--out", str(folder)]
    if campaign.every_policy:
        command += ["--policies", ",".join(POLICIES)]
    for key, value in campaign.settings.items():
        command += ["--set", f"{key}={value}"]
    status = subprocess.run([str(Path(sys.executable).with_name("rung")), *command[1:]], check=False).returncode
    keep(campaign, folder)
    return status


def keep(campaign: Campaign, folder: Path) -> None:
    """Copies what is kept of a comparison in `folder` to where the stage's results are; what is not there is not."""
    campaign.folder.mkdir(exist_ok=True)
    for source, kept in (("policies.json", ".json"), ("report.json", ".json"), ("latency_against_load.png", ".png")):
        if (folder / source).exists():
            (campaign.folder / f"{campaign.name}{kept}").write_bytes((folder / source).read_bytes())


def main(
    only: Annotated[str, typer.Option(help="Run the campaigns whose stage/name contain this.")] = "",
    trace: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A trace to replay as well.")] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Real runs of each load.")] = 3,
) -> None:
    """Runs the campaigns one after the other on a machine that should do nothing else."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the comparison at work ends as well
    chosen = [c for c in campaigns(trace) if only in f"{c.stage}/{c.name}"]
    statuses = [run(campaign, repeat) for campaign in chosen]
    raise typer.Exit(max(statuses, default=0))


if __name__ == "__main__":
    typer.run(main)
