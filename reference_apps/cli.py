"""The verbs of the running stack: up, down, status."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stages.terminal import (
    Exit,
    JsonOption,
    SetOption,
    StageArgument,
    err,
    fail,
    out,
    overrides,
    print_json,
    teaching,
)

if TYPE_CHECKING:
    from reference_apps.up import Up

app = typer.Typer()


@app.command()
def up(stage: StageArgument, set_: SetOption = None, json_: JsonOption = False) -> None:
    """Start a stage's processes on free ports and keep them up until `rung down`."""
    from reference_apps import up as upkeep
    from reference_apps.launchers.process import LaunchError
    from stages.spec import load_stage

    with teaching():
        resolved = load_stage(stage, overrides(set_))
    if any(found.stage == resolved.name for found in upkeep.list_up()):
        fail(
            f"{resolved.name}: is up already. See `rung status`, or stop it with `rung down {resolved.name}`.",
            Exit.MISUSED,
        )
    try:
        with err.status(f"Starting {resolved.name} …"):
            started = upkeep.start(resolved)
    except LaunchError as error:
        fail(f"{resolved.name} did not start.\n{error}")
    except OSError as error:
        fail(
            f"{upkeep.runs_folder()}: must be a folder that can be written to, got '{error.strerror}'. "
            "Logs and state would have no place. Set RUNG_RUNS to another.",
            Exit.MISUSED,
        )
    if json_:
        print_json(_described(started))
        return
    out.print(
        f"{resolved.name} serves at [bold]{started.url}[/bold] (docs at {started.url}/docs), logs in {started.folder}"
    )
    out.print(f"Load it with `rung load {resolved.name}`; stop it with `rung down {resolved.name}`.")


@app.command()
def down(
    stage: Annotated[
        str | None, typer.Argument(metavar="[STAGE]", help="A stage's name; every stage without it.")
    ] = None,
    timeout_s: Annotated[
        float, typer.Option(help="Seconds that the stack may take to answer what it accepted.")
    ] = 40.0,
    json_: JsonOption = False,
) -> None:
    """Stop what `rung up` started, after the accepted requests are answered."""
    from reference_apps import up as upkeep

    found = [each for each in upkeep.list_up() if stage in (None, each.stage)]
    if stage is not None and not found:
        names = ", ".join(each.stage for each in upkeep.list_up()) or "nothing"
        fail(f"{stage}: is not up. What is up: {names}.", Exit.MISUSED)
    stopped: list[dict[str, Any]] = []
    for each in found:
        with err.status(f"Stopping {each.stage} …"):
            stopped.append({"stage": each.stage, "drained": upkeep.stop(each, timeout_s)})
    if json_:
        print_json({"stopped": stopped})
        return
    for row in stopped:
        out.print(f"{row['stage']}: {'stopped' if row['drained'] else f'killed after {timeout_s:g} s'}")
    if not stopped:
        out.print("Nothing is up.")


@app.command()
def status(json_: JsonOption = False) -> None:
    """List the stages that are up, their processes and addresses."""
    from rich.table import Table

    from reference_apps.up import list_up

    stages = [_described(each) for each in list_up()]
    if json_:
        print_json({"stages": stages})
        return
    if not stages:
        out.print("Nothing is up. Start a stage with `rung up micro-batched`.")
        return
    table = Table("stage", "replica", "pid", "address", "ready", "up for", "logs")
    for each in stages:
        for replica in each["replicas"]:
            ready = "yes" if replica["ready"] else "no"
            up_for = f"{each['up_for_s']:.0f} s"
            row = (
                each["stage"],
                replica["replica"],
                replica["pid"],
                replica["url"],
                ready,
                up_for,
                each["folder"],
            )
            table.add_row(*map(str, row))
    out.print(table)


def _described(up: Up) -> dict[str, Any]:
    from reference_apps.launchers.process import probe

    replicas = []
    for replica in up.replicas:
        url = f"http://127.0.0.1:{replica['port']}"
        replicas.append({**replica, "url": url, "ready": probe(f"{url}/readyz")})
    return {
        "stage": up.stage,
        "url": up.url,
        "folder": up.folder,
        "supervisor_pid": up.supervisor_pid,
        "up_for_s": time.time() - up.since,
        "replicas": replicas,
    }
