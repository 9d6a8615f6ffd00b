"""The process of a gateway: `python -m reference_apps.serve_gateway --stage FILE --replicas FILE`.

How it starts, announces itself and ends is in reference_apps/serving.py; where it listens is in the stage.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from reference_apps import logs, serving
from reference_apps.cache_stores import StoreError
from reference_apps.edge import EdgeError, Keys, checked_keys, checked_tls
from reference_apps.feedback_errors import FeedbackDownError
from reference_apps.gateway import Gateway
from stages.spec import load_stage
from stages.terminal import Exit, fail, teaching


def main(
    stage: Annotated[str, typer.Option(help="A stage's name or file.")],
    replicas: Annotated[Path, typer.Option(help="The file that says which replicas there are, as JSON.")],
    split: Annotated[Path | None, typer.Option(help="The folder of the control file of its split.")] = None,
    feedback: Annotated[
        Path | None, typer.Option(help="Where predictions and labels are kept; beside --replicas without it.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes the stage's, or a free one.")] = 0,
    announce: Annotated[Path | None, typer.Option(help="Write address and pid here, as JSON.")] = None,
    guarded: Annotated[bool, typer.Option(help="Drain when stdin ends.")] = False,
    contained: Annotated[
        bool, typer.Option(help="In a container, whose port is published where the stage says: listen everywhere.")
    ] = False,
) -> None:
    """Serves a stage's gateway until SIGTERM."""
    with teaching():
        resolved = load_stage(stage)
    logs.configure("gateway", None, resolved.logs.level)
    if resolved.gateway is None:
        fail(f"{resolved.name}: has no [gateway]. There is nothing to serve. Start a replica instead.", Exit.MISUSED)
    if guarded:
        serving.drain_when_alone(resolved.lifecycle.drain_timeout_s)
    if resolved.feedback is not None:
        # What was answered is written down by a thread: with Python's 5 ms it could hold up the event loop for so long.
        sys.setswitchinterval(0.0005)
    edge = resolved.gateway.edge
    try:
        checked_tls(edge)
        app = Gateway(resolved, replicas, Keys(checked_keys(edge, os.environ)), split, feedback_folder=feedback)
    except (EdgeError, FeedbackDownError, StoreError) as error:
        fail(str(error), Exit.MISUSED)
    listener = serving.listen("0.0.0.0" if contained else edge.host, port or edge.port)
    serving.serve(
        app,
        listener,
        announce,
        resolved.lifecycle.drain_timeout_s,
        ssl_certfile=edge.tls_certificate,
        ssl_keyfile=edge.tls_key,
        server_header=False,
    )


if __name__ == "__main__":
    typer.run(main)
