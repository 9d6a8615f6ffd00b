"""The verbs of the running stack: up, down, status, restart."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from enum import StrEnum
from pathlib import Path
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
    from stages.spec import Stage

app = typer.Typer()


class On(StrEnum):
    """What the replicas of a stage are."""

    PROCESS = "process"
    DOCKER = "docker"


@app.command()
def up(
    stage: StageArgument,
    set_: SetOption = None,
    on: Annotated[On, typer.Option(help="Start processes of this machine, or Docker containers.")] = On.PROCESS,
    json_: JsonOption = False,
) -> None:
    """Start a stage's processes (or containers) on free ports and keep them up until `rung down`."""
    from reference_apps import up as upkeep
    from reference_apps.launchers.member import LaunchError
    from reference_apps.registry import pinned
    from stages.spec import load_stage

    with teaching():
        resolved = load_stage(stage, overrides(set_))
        pinned(resolved)  # so that a version that is not there is told now; the launcher does it again
    if any(found.stage == resolved.name for found in upkeep.list_up()):
        fail(
            f"{resolved.name}: is up already. See `rung status`, or stop it with `rung down {resolved.name}`.",
            Exit.MISUSED,
        )
    try:
        if on is On.DOCKER:
            _prepare_docker(resolved)
        with err.status(f"Starting {resolved.name} …"):
            started = upkeep.start(resolved, on)
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
    ours = resolved.gateway is None or resolved.gateway.engine == "rung"
    docs = f" (docs at {started.url}/docs)" if ours else ""
    out.print(f"{resolved.name} serves at [bold]{started.url}[/bold]{docs}, logs in {started.folder}")
    if started.gateway is not None:
        devices = ", ".join(f"{each['name'].replace('-', ' ')} ({_runs(each)})" for each in started.replicas)
        of = "Behind its gateway" if resolved.queue is None else "Working for it"
        out.print(f"{of}: {devices or 'nobody yet'}.")
    if (split := _split(started, resolved)) is not None and split["in_words"]:
        out.print(split["in_words"], markup=False)
    out.print(f"Load it with `rung load {resolved.name}`; stop it with `rung down {resolved.name}`.")


def _split(up: Up, stage: Stage) -> dict[str, Any] | None:
    """What the control file of a split says, and in words that its challenger is out, where it is; None without one."""
    from reference_apps import split_file
    from reference_apps.up import split_folder

    told = None if stage.split is None else split_file.seen(split_folder(up.stage))
    if stage.split is None or told is None:
        return None
    return {**told._asdict(), "in_words": split_file.in_words(told, stage.name, stage.split)}


def _runs(member: Mapping[str, Any]) -> str:
    """What a replica runs on, and for which of two versions of the model; nothing for a member that is none."""
    return ", ".join(part for part in (member.get("arm", ""), member.get("device", "")) if part)


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
    from reference_apps.launchers import docker_engine

    found = [each for each in upkeep.list_up() if stage in (None, each.stage)]
    stopped: list[dict[str, Any]] = []
    for each in found:
        with err.status(f"Stopping {each.stage} …"):
            stopped.append({"stage": each.stage, "drained": upkeep.stop(each, timeout_s)})
    # Containers that a crash, or the kill above, left behind.
    removed = docker_engine.sweep_if_there(upkeep.runs_folder(), stage)
    if stage is not None and not found and not removed:
        _found(stage)
    if json_:
        print_json({"stopped": stopped} | ({"removed": removed} if removed else {}))
        return
    for name in removed:
        out.print(f"{name}: was left by a crash, removed")
    for row in stopped:
        out.print(f"{row['stage']}: {'stopped' if row['drained'] else f'killed after {timeout_s:g} s'}")
    if not stopped and not removed:
        out.print("Nothing is up.")


@app.command()
def status(json_: JsonOption = False) -> None:
    """List the stages that are up, their processes and addresses."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from reference_apps.up import list_up

    stages = [_described(each) for each in list_up()]
    if json_:
        print_json({"stages": stages})
        return
    if not stages:
        out.print("Nothing is up. Start a stage with `rung up micro-batched`.")
        return
    for each in stages:
        out.print(f"[bold]{each['stage']}[/bold]: up for {each['up_for_s']:.0f} s, logs in {each['folder']}")
        table = Table("process", "pid", "address", "state", "ready", "device", box=SIMPLE_HEAD, pad_edge=False)
        table.columns[-1].overflow = "fold"
        for column in table.columns[:-1]:
            column.no_wrap = True
        alone = [each[name] for name in ("gateway", "cache") if each[name]]
        for member in [*alone, *each["replicas"]]:
            name = member["name"].replace("-", " ")
            ready = "yes" if member["ready"] else "no"
            row = (name, member["pid"], member["url"], member["state"], ready, _runs(member))
            table.add_row(*map(str, row))
        out.print(table)
        if each["unreadable"]:
            out.print(
                f"Its stage cannot be read any more, nor its gateway be asked:\n{each['unreadable']}", markup=False
            )
        if each["split"] is not None and each["split"]["in_words"]:
            out.print(each["split"]["in_words"], markup=False)


@app.command()
def restart(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="The name of a stage that is up.")],
    rolling: Annotated[
        bool, typer.Option("--rolling", help="One replica after the other, new before old: no request fails.")
    ] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", min=1.0, help="Seconds to wait until it is done.")] = 600.0,
    json_: JsonOption = False,
) -> None:
    """Restart a stage that is up, as it was started; with --rolling while it goes on serving."""
    from reference_apps import up as upkeep
    from reference_apps.commands import CommandError, ask
    from reference_apps.launchers.launcher import ASKED_FILE
    from reference_apps.launchers.member import LaunchError
    from reference_apps.registry import pinned
    from stages.spec import load_stage

    found = _found(stage)
    if not rolling:
        with err.status(f"Restarting {stage} …"), teaching():
            asked = Path(found.folder) / ASKED_FILE  # there where the stage names versions by their aliases
            resolved = load_stage(asked if asked.is_file() else Path(found.folder) / "stage.toml")
            pinned(resolved)
            upkeep.stop(found, timeout_s)
            try:
                started = upkeep.start(resolved, found.on)
            except LaunchError as error:
                fail(f"{stage} did not start again.\n{error}")
        if json_:
            print_json(_described(started))
        else:
            out.print(f"{stage} serves at [bold]{started.url}[/bold], logs in {started.folder}")
        return
    try:
        with err.status(f"Restarting {stage}, one replica after the other …"):
            told = ask(Path(found.folder), "restart", {}, timeout_s, lambda: found.alive)
    except CommandError as error:
        fail(str(error))
    if json_:
        print_json({"stage": stage, **told})
        return
    for row in told["replaced"]:
        out.print(f"{stage}: replica {row['old']} was replaced by replica {row['new']}")


def _prepare_docker(stage: Stage) -> None:
    """Clears away what a crash left, and makes sure of the images, which may take minutes. Raises LaunchError."""
    from reference_apps.launchers import docker_engine, docker_image
    from reference_apps.up import runs_folder

    with err.status("Looking for Docker …") as shown, closing(docker_engine.connect()) as engine:
        docker_engine.sweep(engine, runs_folder())
        say = shown.update if err.is_terminal else err.print
        docker_image.prepare(engine, stage, lambda text: say(f"{text} …"))


def _found(stage: str) -> Up:
    """The stage of that name that is up; ends the command in words when it is not."""
    from reference_apps.up import list_up

    everything = {each.stage: each for each in list_up()}
    if stage not in everything:
        fail(f"{stage}: is not up. What is up: {', '.join(everything) or 'nothing'}.", Exit.MISUSED)
    return everything[stage]


def _described(up: Up) -> dict[str, Any]:
    from reference_apps.asking import probe
    from stages.problems import StageError
    from stages.spec import load_stage

    stage, unreadable = None, ""
    try:
        stage = load_stage(Path(up.folder) / "stage.toml") if up.gateway is not None else None
    except StageError as error:  # its certificate is not where it was, say: it serves on, and is told of all the same
        unreadable = str(error)
    edge = stage.gateway.edge if stage is not None and stage.gateway is not None else None
    return {
        "stage": up.stage,
        "on": up.on,
        "url": up.url,
        "folder": up.folder,
        "supervisor_pid": up.supervisor_pid,
        "up_for_s": time.time() - up.since,
        "gateway": None if up.gateway is None else {**up.gateway, "ready": probe(f"{up.url}/readyz", edge=edge)},
        "cache": None if up.cache is None else {**up.cache, "ready": up.cache["state"] == "ready"},
        "replicas": [{**each, "ready": each["url"] != "" and probe(f"{each['url']}/readyz")} for each in up.replicas],
        "split": None if stage is None else _split(up, stage),
        "unreadable": unreadable,
    }
