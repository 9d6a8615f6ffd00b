"""Makes the results under stages/*/measured anew: every stage, emulated and on a real device, three traffics.

    python -m loadtests.measured [--only emulated-poisson] [--trace FILE] [--repeat 3]

Each kind of device is calibrated once for a stage; the bursty and the traced traffic are predicted with that same
calibration, and so is every balancing policy of a fleet. Spikes, drills and nights follow. What is kept is small: the
rows with machine and command, as JSON, and a picture. A void run never replaces what is kept.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from loadtests.policies import POLICIES
from stages.spec import stage_files
from stages.terminal import Exit, fail

LOADS = "0.2,0.5,0.7,0.85,0.95,1.2"
SECONDS = 15.0
ATTEMPTS = 3
VOID_RETRIES = 6  # the neighbours of a virtual machine are loud for minutes at a time
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
)
# What stands behind a gateway keeps half of its pace: its processes share two cores with the load generator, which may
# be late by a tenth of the time of the smallest batch, and a virtual machine gets its cores some milliseconds late.
HALF_PACE = {"device.slowdown": "8.0", "batching.batch_wait_timeout_s": "0.04", "slo.latency_s": "0.5"}
UNEQUAL = '["t4-resnet50-fp16-pytorch", "a100-resnet50-tf32-tensorflow"]'
FLEETS: dict[str, dict[str, str]] = {
    "two-replicas": HALF_PACE,
    "four-replicas": HALF_PACE | {"fleet.replicas": "4"},
    "unequal-replicas": HALF_PACE | {"fleet.profiles": UNEQUAL},
}
# Two versions out of the registry on machines alike, and on a T4 beside an A100.
ARMS: dict[str, dict[str, str]] = {
    "equal-arms": HALF_PACE,
    "unequal-arms": HALF_PACE
    | {
        "split.challenger_profile": "a100-resnet50-tf32-tensorflow",
        "cost.challenger_machine": "gcp/a2-highgpu-1g",
    },
}
FLEET_LOADS, FLEET_SECONDS = "0.2,0.7,0.95", 15.0
# The exponent of Zipf's law, and how much of the items' answers the cache holds: about so much is found there.
HIT_RATIOS = {
    "hits-0.2": HALF_PACE | {"traffic.items.exponent": "0.6"},
    "hits-0.5": HALF_PACE | {"traffic.items.exponent": "0.9"},
    "hits-0.9": HALF_PACE | {"traffic.items.exponent": "1.4"},
}
CACHED_LOADS = "0.2,0.5,0.8,0.95"
# At its peak a spike is eight times as many: six replicas, the gateway and the load generator on two cores.
SPIKE = {
    "device.slowdown": "16.0",
    "batching.batch_wait_timeout_s": "0.08",
    "slo.latency_s": "1.0",
    "traffic.rate.rate_rps": "13.0",
}
# One of four replicas becomes four times slower: who sees it, and how soon?
SLOWED = HALF_PACE | {"fleet.replicas": "4"}
SLOW = ("slow", "--factor", "4", "--for", "30", "--load", "0.6")
LEARNERS = ("learned", "least-outstanding", "round-robin")
# How soon is a challenger out that is not good enough? With a third of the stage's time for each step of its ramp.
QUICK_RAMP = {"split.ramp.step_duration_s": "20.0"}
# Every other verb that holds one world against the other: stage, name, words, settings.
OTHERS: tuple[tuple[str, str, tuple[str, ...], dict[str, str]], ...] = (
    ("autoscaled", "spike", ("spike", "autoscaled", "--repeat", "2"), SPIKE),
    *(
        ("load-balanced", f"slowed-{policy}", ("drill", "load-balanced", *SLOW), SLOWED | {"gateway.policy": policy})
        for policy in LEARNERS
    ),
    *(
        ("load-balanced", f"drill-{failure}", ("drill", "load-balanced", failure), {})
        for failure in ("kill", "hang", "slow", "refuse", "restart")
    ),
    *(
        ("ab-test", f"rehearse-{flaw}", ("ab", "rehearse", "ab-test", "--challenger", flaw), QUICK_RAMP)
        for flaw in ("worse", "slower", "crashing")
    ),
    ("queued", "night", ("night", "queued", "--backlog", "20000", "--workers", "2", "--repeat", "3"), {}),
    ("queued", "night-autoscaled", ("night", "queued", "--backlog", "20000", "--autoscaled", "--repeat", "3"), {}),
)
# What the verbs leave, and how it is kept: the first that is there of each kind.
KEPT = (
    (("policies.json", "spike.json", "night.json", "report.json"), ".json"),
    (("latency_against_load.png", "spike.png", "night.png", "over_time.png"), ".png"),
)


@dataclass(frozen=True)
class Campaign:
    """One run of a verb whose result is kept under `name`."""

    stage: str
    name: str
    words: tuple[str, ...]  # of the command line, without its settings
    settings: dict[str, str]

    @property
    def folder(self) -> Path:
        """Where its result is kept."""
        return stage_files()[self.stage].parent / "measured"


def campaigns(trace: Path | None, repeat: int) -> list[Campaign]:
    """Everything that is kept, in the order in which they run; those of a trace only where it is given.

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
            words = _compare(stage, device, loads, seconds, repeat)
            result.append(Campaign(stage, f"{kind}-{traffic}", words, changed))
    for hits, settings in HIT_RATIOS.items():
        words = _compare("cached", "emulated", CACHED_LOADS, REAL_SECONDS, repeat)
        result.append(Campaign("cached", hits, words, settings))
    for arms, settings in ARMS.items():
        words = _compare("ab-test", "emulated", LOADS, SECONDS, repeat)
        result.append(Campaign("ab-test", arms, words, settings))
    result.append(Campaign("queued", "emulated-poisson", _compare("queued", "emulated", LOADS, SECONDS, repeat), {}))
    for fleet, settings in FLEETS.items():
        words = (*_compare("load-balanced", "emulated", FLEET_LOADS, FLEET_SECONDS, repeat), "--policies")
        result.append(Campaign("load-balanced", fleet, (*words, ",".join(POLICIES)), settings))
    return [*result, *(Campaign(*other) for other in OTHERS)]


def _compare(stage: str, device: str, loads: str, seconds: float, repeat: int) -> tuple[str, ...]:
    words = ("compare", stage, "--device", device, "--loads", loads)
    return (*words, "--repeat", str(repeat), "--duration", f"{seconds:g}", "--void-retries", str(VOID_RETRIES))


def _changes(traffic: str, trace: Path | None, capacity_rps: float) -> dict[str, str]:
    """The keys of a stage that make its traffic bursty, or a trace's."""
    if traffic == "gamma-cv-3":
        return {"traffic.arrivals": "gamma", "traffic.coefficient_of_variation": "3.0"}
    if traffic == "azure-trace":
        # The hour is squeezed until its 5.5 requests a second are about what the stage carries.
        return {"traffic.rate": f'{{shape = "trace", path = "{trace}", time_scale = {5.5 / capacity_rps:.5f}}}'}
    return {}


def run(campaign: Campaign) -> int:
    """Runs one campaign by the command that anybody can type, and keeps its small results. Gives its exit status.

    Comparisons repeat their void runs themselves; another verb is run again as a whole.
    """
    folder = Path("runs") / "measured" / f"{campaign.stage}-{campaign.name}"
    command = [rung(), *campaign.words, "--out", str(folder)]
    for key, value in campaign.settings.items():
        command += ["--set", f"{key}={value}"]
    for _ in range(1 if "--void-retries" in campaign.words else ATTEMPTS):
        shutil.rmtree(folder, ignore_errors=True)
        status = subprocess.run(command, check=False).returncode
        if status != Exit.VOID:
            break
    if status != Exit.VOID or not (campaign.folder / f"{campaign.name}.json").exists():
        keep(campaign, folder)
    return status


def rung() -> str:
    """The command that belongs to this Python."""
    return str(Path(sys.executable).with_name("rung"))


def keep(campaign: Campaign, folder: Path) -> None:
    """Copies what is kept of a run in `folder` to where the stage's results are; what is not there is not."""
    campaign.folder.mkdir(exist_ok=True)
    for sources, ending in KEPT:
        for source in (folder / name for name in sources):
            if source.exists():
                (campaign.folder / f"{campaign.name}{ending}").write_bytes(source.read_bytes())
                break


def main(
    only: Annotated[str, typer.Option(help="Run the campaigns whose stage/name contain this.")] = "",
    trace: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A trace to replay as well.")] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Real runs of each load.")] = 3,
) -> None:
    """Runs the campaigns one after the other on a machine that should do nothing else."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the comparison at work ends as well
    every = campaigns(trace, repeat)
    chosen = [campaign for campaign in every if only in f"{campaign.stage}/{campaign.name}"]
    if not chosen:
        fail(
            f"--only: must be a part of a campaign's stage/name, got {only}. There is nothing to measure. Use one of "
            f"{', '.join(f'{campaign.stage}/{campaign.name}' for campaign in every)}.",
            Exit.MISUSED,
        )
    if any(campaign.stage == "ab-test" for campaign in chosen):
        subprocess.run([rung(), "models", "train", "--variants"], check=True)  # the versions that it holds together
    statuses = [run(campaign) for campaign in chosen]
    raise typer.Exit(max(statuses, default=0))


if __name__ == "__main__":
    typer.run(main)
