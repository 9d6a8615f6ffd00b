"""The process of one replica: `python -m reference_apps.serve --stage FILE`. Started by a launcher, or by hand.

How it starts, announces itself and ends is in reference_apps/serving.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from reference_apps import logs, serving
from reference_apps.obeying import obey
from reference_apps.registry import pinned
from reference_apps.replica import Replica
from stages.spec import load_stage, of_replica
from stages.terminal import Exit, fail, teaching


def main(
    stage: Annotated[str, typer.Option(help="A stage's name or file.")],
    replica: Annotated[int, typer.Option(min=0, help="The number of this replica.")] = 0,
    first_batch: Annotated[int, typer.Option(min=0, help="The number of its first batch.")] = 0,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 0,
    announce: Annotated[Path | None, typer.Option(help="Write address and pid here, as JSON.")] = None,
    guarded: Annotated[bool, typer.Option(help="Drain when stdin ends.")] = False,
    drills: Annotated[Path | None, typer.Option(help="Do what a drill writes into this file.")] = None,
) -> None:
    """Serves one replica until SIGTERM."""
    with teaching():
        resolved = of_replica(pinned(load_stage(stage)), replica)
    logs.configure("replica", replica, resolved.logs.level)
    if guarded:
        serving.drain_when_alone(resolved.lifecycle.drain_timeout_s)
    # A thread that wants to run waits for the running one at most this long: the event loop must not hold up the
    # device's thread for Python's usual 5 ms, which are half a batch.
    sys.setswitchinterval(0.0005)
    listener = serving.listen(host, port)
    app = Replica(resolved, replica, first_batch)
    try:
        app.load()
    except ValueError as error:
        fail(str(error), Exit.MISUSED)
    device = app.device
    assert device is not None
    beside = None if drills is None else lambda door: obey(drills, device, door)
    serving.serve(app, listener, announce, resolved.lifecycle.drain_timeout_s, beside)


if __name__ == "__main__":
    typer.run(main)
