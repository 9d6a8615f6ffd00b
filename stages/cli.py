"""The verbs of the ground floor: stages, show, devices, prices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stages.prices_cli import prices
from stages.terminal import (
    Exit,
    JsonOption,
    SetOption,
    StageArgument,
    fail,
    out,
    overrides,
    print_json,
    teaching,
)

if TYPE_CHECKING:
    from rich.table import Table

    from stages.capacity import FleetCapacity
    from stages.catalogue import Profile
    from stages.spec import Stage

app = typer.Typer()


@app.command()
def stages(json_: JsonOption = False) -> None:
    """List the stages: the question that each answers, and what it carries."""
    from stages.spec import load_stage, stage_files

    with teaching():
        rows = [_overview(load_stage(name)) for name in stage_files()]
    if json_:
        print_json(rows)
        return
    table = _table("stage", "the question it answers", "device", "requests/s", "grown from")
    table.columns[0].no_wrap = True
    table.columns[3].justify = "right"
    for row in rows:
        capacity = "measure it" if row["capacity_rps"] is None else f"{row['capacity_rps']:.1f}"
        table.add_row(row["name"], row["question"], row["device"], capacity, row["grown_from"])
    out.print(table, soft_wrap=False)


@app.command()
def show(stage: StageArgument, set_: SetOption = None, json_: JsonOption = False) -> None:
    """Print a stage with every key that counts, as a file that can be loaded again, and what it amounts to."""
    import tomllib

    from stages.spec import load_stage, stage_toml

    with teaching():
        resolved = load_stage(stage, overrides(set_))
        text, overview = stage_toml(resolved), _overview(resolved)
    if json_:
        print_json({**overview, "stage": tomllib.loads(text)})
        return
    text += "".join(f"\n# {line}" for line in _summary(resolved, overview))
    if out.is_terminal:
        from rich.syntax import Syntax

        out.print(Syntax(text, "toml", theme="ansi_dark", background_color="default"))
    else:
        out.print(text, markup=False, highlight=False)


@app.command()
def devices(
    profile: Annotated[
        str | None, typer.Argument(metavar="[PROFILE]", help="A profile's name; all of them without it.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """List the devices that can be emulated, or the service times of one."""
    from stages.catalogue import profiles
    from stages.problems import did_you_mean

    known = profiles()
    if profile is not None and profile not in known:
        remedy = did_you_mean(profile, known, "List them with `rung devices`.")
        fail(f"{profile}: is no profile of the device catalogue. {remedy}", Exit.MISUSED)
    if json_:
        shown = known.values() if profile is None else (known[profile],)
        print_json([_described(each) for each in shown])
    elif profile is None:
        _print_profiles(list(known.values()))
    else:
        _print_profile(known[profile])


app.command()(prices)


def _table(*headers: str) -> Table:
    """A table that folds what is too wide for the terminal, and cuts nothing off."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold")
    return table


def _overview(stage: Stage) -> dict[str, Any]:
    """What a stage is and carries, in plain values."""
    from stages.spec import fleet_label, mean_rate_rps

    capacity, rate_rps = _capacity(stage), mean_rate_rps(stage.traffic)
    return {
        "name": stage.name,
        "title": stage.title,
        "question": stage.question,
        "device": fleet_label(stage),
        "capacity_rps": None if capacity is None else capacity.rps,
        "rate_rps": rate_rps,
        "load": None if capacity is None or rate_rps is None else rate_rps / capacity.rps,
        "grown_from": stage.grown_from,
    }


def _capacity(stage: Stage) -> FleetCapacity | None:
    """What all replicas carry, once there are as many as there may be."""
    from stages.arms import model_of
    from stages.capacity import fleet_capacity, largest

    factor = model_of(stage, "champion").known.service_time_factor
    return fleet_capacity(stage.device, stage.batching, largest(stage.fleet, stage.scaling), factor)


def _summary(stage: Stage, overview: dict[str, Any]) -> list[str]:
    traffic, load = stage.traffic, overview["load"]
    lines = [f"Capacity: {_capacity(stage) or 'not known until `rung calibrate` has measured this device'}"]
    if (gateway := stage.gateway) is not None:
        noun = "replica" if stage.fleet.replicas == 1 else "replicas"
        engine = ", by nginx" if gateway.engine == "nginx" else ""
        lines.append(f"Gateway: {gateway.policy} over {stage.fleet.replicas} {noun}{engine}")
    if (split := stage.split) is not None:
        noun = "replica" if split.challenger_replicas == 1 else "replicas"
        gets = "copies" if split.mode == "shadow" else "the requests"
        share = f"{100 * split.challenger_share:g} %"
        if split.ramp is not None:
            share = ", then ".join(f"{100 * each:g} %" for each in split.ramp.shares)
        lines.append(f"Split: {split.challenger} on {split.challenger_replicas} {noun} gets {share} of {gets}")
    if (cache := stage.cache) is not None:
        lines.append(f"Cache: {cache.policy}, {cache.max_bytes:,} bytes, store {cache.store}")
    if (queue := stage.queue) is not None:
        lines.append(f"Queue: {queue.broker}, leases of {queue.lease_s:g} s, attempts at most {queue.attempts_max}")
    if (scaling := stage.scaling) is not None:
        lines.append(f"Scaling: {scaling.policy}, {scaling.min_replicas} to {scaling.max_replicas} replicas")
    if stage.cost is not None:
        from stages.cost import described, hosts_described

        lines.append(f"Cost of a replica: {described(stage.cost)}")
        if stage.gateway is not None or stage.queue is not None:
            beside = "gateway" if stage.gateway is not None else "jobs API"
            lines.append(f"Cost of the machine of its {beside}: {hosts_described(stage.cost)}")
    if overview["rate_rps"] is None:
        users, think_s = traffic.closed_users, traffic.think_time_s
        lines.append(f"Traffic: {users} users, who think for {think_s:g} s between requests")
        return lines
    requests = overview["rate_rps"] * traffic.duration_s
    lines.append(
        f"Traffic: {overview['rate_rps']:.1f} requests per second on average, "
        f"about {requests:.0f} in {traffic.duration_s:g} s"
    )
    if load is not None:
        spared = ", less what the cache answers" if stage.cache is not None else " (overload)" if load >= 1 else ""
        lines.append(f"Load: {load:.2f} of the capacity{spared}")
    return lines


def _described(profile: Profile) -> dict[str, Any]:
    batch_size, throughput_ips = _best(profile)
    return {
        "profile": profile.name,
        "device": profile.device,
        "model": profile.model,
        "precision": profile.precision,
        "framework": profile.framework,
        "batch_sizes": list(profile.batch_sizes),
        "service_times_s": list(profile.service_times_s),
        "throughput_ips_best": throughput_ips,
        "batch_size_best": batch_size,
        "source": profile.source,
    }


def _best(profile: Profile) -> tuple[int, float]:
    """The measured batch size of the highest throughput, and that in items per second."""
    throughputs = (n / t for n, t in zip(profile.batch_sizes, profile.service_times_s, strict=True))
    throughput_ips, batch_size = max(zip(throughputs, profile.batch_sizes, strict=True))
    return batch_size, throughput_ips


def _print_profiles(profiles: list[Profile]) -> None:
    table = _table("profile", "device, model, precision, framework", "batches", "best items/s")
    table.columns[0].no_wrap = True
    table.columns[3].justify = "right"
    for each in profiles:
        batch_size, throughput_ips = _best(each)
        sizes = f"{each.batch_sizes[0]} to {each.batch_sizes[-1]}"
        best = f"{throughput_ips:.0f} at {batch_size}"
        what = ", ".join((each.device, each.model, each.precision, each.framework))
        table.add_row(each.name, what, sizes, best)
    out.print(table, soft_wrap=False)
    out.print("Service times and source of one: `rung devices PROFILE`.", highlight=False)


def _print_profile(profile: Profile) -> None:
    table = _table("batch size", "service time (ms)", "items/s")
    for column in table.columns:
        column.justify = "right"
    for n, service_time_s in zip(profile.batch_sizes, profile.service_times_s, strict=True):
        table.add_row(str(n), f"{service_time_s * 1000:.3f}", f"{n / service_time_s:.1f}")
    out.print(f"{profile.name}: {profile.model}, {profile.precision}, {profile.framework}, on {profile.device}")
    out.print(table, soft_wrap=False)
    out.print("Between these sizes service times are interpolated linearly; beyond the last they are refused.")
    out.print(f"Source: {profile.source}", highlight=False)
