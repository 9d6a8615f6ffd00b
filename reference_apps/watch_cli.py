"""The verbs for whoever looks after a stage that runs: logs, export prometheus, export grafana."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

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
    from reference_apps.up import Up
    from stages.spec import Stage

app = typer.Typer()
export = typer.Typer(help="Write a stage's alerts and charts for Prometheus and Grafana.", no_args_is_help=True)
app.add_typer(export, name="export")

PortOption = Annotated[
    int | None,
    typer.Option(min=1, max=65535, help="Where the stage listens on this machine, if it was not started by `rung up`."),
]


@app.command()
def logs(
    stage: Annotated[
        str | None, typer.Argument(metavar="[STAGE]", help="A stage that is up; the only one without it.")
    ] = None,
    run: Annotated[Path | None, typer.Option(metavar="FOLDER", help="The logs of this run folder instead.")] = None,
    request: Annotated[str | None, typer.Option(metavar="ID", help="Only lines about this request.")] = None,
    level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(help="Only lines of this level and above.")
    ] = "debug",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the stage is down.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the lines as they are, one JSON object each.")] = False,
) -> None:
    """Show what the processes of a stage wrote down, joined in the order of time."""
    from reference_apps import reading_logs

    folder, ended = (run, lambda: True) if run is not None else _folder_of(_found_up(stage))
    if not reading_logs.logs_in(folder):
        fail(
            f"{folder}: must be a run folder with logs, got none there. There is nothing to show. "
            "`rung status` names the folders of what is up.",
            Exit.MISUSED,
        )
    wanted = reading_logs.Wanted(request, level)
    lines = reading_logs.follow(folder, wanted, ended) if follow else reading_logs.joined(folder, wanted)
    shown = reading_logs.as_json if json_ else reading_logs.readable
    try:
        for line in lines:
            sys.stdout.write(f"{shown(line)}\n")
            if follow:
                sys.stdout.flush()
    except KeyboardInterrupt:  # how one stops following
        raise typer.Exit(int(Exit.DONE)) from None


@export.command()
def prometheus(
    stage: StageArgument,
    folder: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the files go.")],
    port: PortOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Write the scrape configuration and the stage's alert rules for Prometheus."""
    from reference_apps import export as exports
    from reference_apps.scrape import TARGETS_FILE, Target, counts_requests

    resolved, running = _exported(stage, set_, port)
    notes = []
    targets: tuple[Target, ...] = ()
    if port is not None:
        role = counts_requests(resolved)
        tls = role == "gateway" and resolved.gateway is not None and resolved.gateway.edge.tls_certificate is not None
        url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        targets = (Target(role, 0 if role == "replica" else None, url),)
        if resolved.gateway is not None:
            notes.append("The replicas are not known: add them to targets.json for the alerts on queues and devices.")
    try:
        known = None if running is None else Path(running.folder) / TARGETS_FILE
        written = exports.write(resolved, folder, known, targets)
    except OSError as error:
        fail(
            f"--out {folder}: must be a folder that can be written to, got '{error.strerror}'. "
            "Nothing was exported. Name another.",
            Exit.MISUSED,
        )
    if exports.wants_key(resolved):
        notes.append(f"Put one of the gateway's keys into {folder / exports.KEY_FILE}: Prometheus brings it along.")
    if json_:
        print_json({"stage": resolved.name, "files": [str(path) for path in written], "notes": notes})
        return
    for path in written:
        out.print(f"{path}", highlight=False, markup=False)
    for note in notes:
        out.print(f"! {note}", highlight=False, markup=False)
    out.print(f"Start it with: prometheus --config.file={written[0]}", highlight=False, markup=False)


@export.command()
def grafana(
    stage: StageArgument,
    path: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write it there, not to stdout.")] = None,
    set_: SetOption = None,
) -> None:
    """Write a dashboard of the stage for Grafana, as JSON."""
    import json

    from reference_apps.grafana import dashboard

    resolved, _ = _exported(stage, set_, 0)
    text = json.dumps(dashboard(resolved), indent=2) + "\n"
    if path is None:
        sys.stdout.write(text)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        fail(
            f"--out {path}: must be a file that can be written, got '{error.strerror}'. "
            "Nothing was exported. Name another.",
            Exit.MISUSED,
        )
    out.print(f"{path}: import it in Grafana under Dashboards, New, Import.", highlight=False, markup=False)


def _exported(name: str, set_: list[str] | None, port: int | None) -> tuple[Stage, Up | None]:
    """The stage that is meant, and what is known of it where it is up: then it is exported as it runs.

    `port` is None where it must be up, because nothing else says where it listens.
    """
    from reference_apps.up import list_up
    from stages.spec import load_stage

    with teaching():
        resolved = load_stage(name, overrides(set_))
        running = next((up for up in list_up() if up.stage == resolved.name), None)
        if running is not None and not port and not set_:
            return load_stage(Path(running.folder) / "stage.toml"), running
    if port is None:
        what, remedy = "is not up", "Start it with `rung up`"
        if running is not None:
            what, remedy = "is up with the keys that it was started with", "Leave --set out"
        fail(
            f"{resolved.name}: {what}. Prometheus would not know whom to scrape. {remedy}, or give its --port.",
            Exit.MISUSED,
        )
    return resolved, None


def _found_up(name: str | None) -> Up:
    """The stage that is up and meant; the only one when none is named."""
    from reference_apps.up import list_up

    there = list_up()
    found = [up for up in there if name in (None, up.stage)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(up.stage for up in there) or "nothing"
    told = f"{name or 'STAGE'}: is not up. What is up: {names}. Its logs stay in its run folder: give that with --run."
    if found:
        told = f"STAGE: is required while several are up: {names}. Their logs are not mixed. Name one."
    return fail(told, Exit.MISUSED)


def _folder_of(up: Up) -> tuple[Path, Callable[[], bool]]:
    """Where a stage that is up writes its logs, and whether it is down by now."""
    return Path(up.folder), lambda: not up.alive
