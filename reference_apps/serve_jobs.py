"""The process of a jobs API: `python -m reference_apps.serve_jobs --stage FILE --folder FOLDER`.

How it starts, announces itself and ends is in reference_apps/serving.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reference_apps import logs, serving
from reference_apps.broker import BrokerDownError
from reference_apps.job_store import open_store
from reference_apps.job_webhook import CallbackError, secret_of
from reference_apps.jobs_api import JobsApi
from reference_apps.results import ResultsDownError
from stages.spec import load_stage
from stages.terminal import Exit, fail, teaching


def main(
    stage: Annotated[str, typer.Option(help="A stage's name or file.")],
    folder: Annotated[Path, typer.Option(help="Where queue and results are kept, unless they have an address.")],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 0,
    announce: Annotated[Path | None, typer.Option(help="Write address and pid here, as JSON.")] = None,
    guarded: Annotated[bool, typer.Option(help="Drain when stdin ends.")] = False,
) -> None:
    """Serves a stage's jobs API until SIGTERM."""
    with teaching():
        resolved = load_stage(stage)
    logs.configure("jobs", None, resolved.logs.level)
    if resolved.queue is None:
        fail(f"{resolved.name}: has no [queue]. There is nothing to serve. Start a replica instead.", Exit.MISUSED)
    drain_s = resolved.lifecycle.drain_timeout_s
    if guarded:
        serving.drain_when_alone(drain_s)
    try:
        secret = secret_of(resolved.queue.webhook_secret_env)
        store = open_store(resolved.queue, folder)
    except (CallbackError, BrokerDownError, ResultsDownError) as error:
        fail(str(error), Exit.MISUSED)
    with store:
        serving.serve(JobsApi(resolved, store, secret), serving.listen(host, port), announce, drain_s)


if __name__ == "__main__":
    typer.run(main)
