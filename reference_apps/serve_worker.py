"""The process of one worker: `python -m reference_apps.serve_worker --stage FILE --folder FOLDER`.

How it starts, announces itself and ends is in reference_apps/serving.py. SIGTERM: it claims nothing any more, computes
and stores what it has, and goes.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from reference_apps import logs, serving
from reference_apps.broker import BrokerDownError
from reference_apps.gpu_memory import Card
from reference_apps.job_store import open_store
from reference_apps.obeying import obey
from reference_apps.registry import pinned
from reference_apps.results import ResultsDownError
from reference_apps.worker import Worker
from stages.spec import Stage, load_stage, of_replica
from stages.terminal import Exit, fail, teaching


def main(
    stage: Annotated[str, typer.Option(help="A stage's name or file.")],
    folder: Annotated[Path, typer.Option(help="Where queue and results are kept, unless they have an address.")],
    replica: Annotated[int, typer.Option(min=0, help="The number of this worker.")] = 0,
    first_batch: Annotated[int, typer.Option(min=0, help="The number of its first batch.")] = 0,
    card: Annotated[Path | None, typer.Option(help="The folder of those who share the GPU.")] = None,
    begin_at_s: Annotated[float, typer.Option(help="Claims nothing before this monotonic moment.")] = 0.0,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 0,
    announce: Annotated[Path | None, typer.Option(help="Write address and pid here, as JSON.")] = None,
    guarded: Annotated[bool, typer.Option(help="Drain when stdin ends.")] = False,
    drills: Annotated[Path | None, typer.Option(help="Do what a drill writes into this file.")] = None,
) -> None:
    """Works for a stage until SIGTERM."""
    with teaching():
        resolved = of_replica(pinned(load_stage(stage)), replica)
    logs.configure("worker", replica, resolved.logs.level)
    if resolved.queue is None:
        fail(f"{resolved.name}: has no [queue]. There is nothing to fetch. Start a replica instead.", Exit.MISUSED)
    drain_s = resolved.lifecycle.drain_timeout_s
    if guarded:
        serving.drain_when_alone(drain_s)
    # As in a replica: the event loop must not hold the device's thread up for Python's usual 5 ms.
    sys.setswitchinterval(0.0005)
    listener = serving.listen(host, port)
    with contextlib.ExitStack() as stack:
        try:
            store = stack.enter_context(open_store(resolved.queue, folder))
            app = Worker(resolved, replica, store, _shared(resolved, replica, card), first_batch, begin_at_s)
            app.load()
        except (BrokerDownError, ResultsDownError, ValueError) as error:
            fail(str(error), Exit.MISUSED)
        beside = None if drills is None else lambda door: obey(drills, app.model, door)
        serving.serve(app, listener, announce, drain_s, beside)


def _shared(stage: Stage, number: int, folder: Path | None) -> Card | None:
    """The worker's place on a GPU that it shares; None where the stage says nothing of memory."""
    if folder is None or stage.model.memory_gib is None or stage.device.memory_gib is None:
        return None
    return Card(folder, stage.device.memory_gib, stage.model.memory_gib, f"{stage.name}-{number}")


if __name__ == "__main__":
    typer.run(main)
