"""The process of one replica: `python -m reference_apps.serve --stage FILE`. Started by a launcher, or by hand.

    launcher ══ stdin (a pipe that says nothing) ══▶ this process      its end means: the launcher is gone, drain

SIGTERM: no new request is let in, the accepted ones are answered, then the process ends.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from reference_apps.replica import Replica
from stages.spec import load_stage
from stages.terminal import Exit, fail, teaching


def main(
    stage: Annotated[str, typer.Option(help="A stage's name or file.")],
    replica: Annotated[int, typer.Option(help="The number of this replica.")] = 0,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 0,
    announce: Annotated[Path | None, typer.Option(help="Write address and pid here, as JSON.")] = None,
    guarded: Annotated[bool, typer.Option(help="Drain when stdin ends.")] = False,
) -> None:
    """Serves one replica until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    with teaching():
        resolved = load_stage(stage)
    if guarded:
        threading.Thread(target=_drain_when_alone, args=(resolved.lifecycle.drain_timeout_s,), daemon=True).start()
    # A thread that wants to run waits for the running one at most this long: the event loop must not hold up the
    # device's thread for Python's usual 5 ms, which are half a batch.
    sys.setswitchinterval(0.0005)
    try:
        listener = socket.create_server((host, port), backlog=2048)
    except OSError as error:
        fail(
            f"port {port} of {host}: cannot be listened on ({error.strerror}). Use --port 0 for a free one.",
            Exit.MISUSED,
        )
    app = Replica(resolved, replica)
    try:
        app.load()
    except ValueError as error:
        fail(str(error), Exit.MISUSED)
    # uvicorn drains and then raises the signal again, which would end an orderly stop like a crash.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(Exit.DONE)))
    server = _Server(
        app,
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="on",
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(resolved.lifecycle.drain_timeout_s) + 1,
        ),
        announce,
    )
    server.run(sockets=[listener])
    if not server.started:
        raise typer.Exit(int(Exit.FAILED))


class _Server(uvicorn.Server):
    """uvicorn that says where it listens once the model is loaded, and drains the replica before it stops."""

    def __init__(self, app: Replica, config: uvicorn.Config, announce: Path | None) -> None:
        super().__init__(config)
        self._app = app
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.started:
            return
        # The collector would walk all that torch imported, in the middle of a batch, again and again.
        gc.collect()
        gc.freeze()
        assert sockets
        host, port = sockets[0].getsockname()[:2]
        if self._announce is not None:
            fresh = self._announce.with_suffix(".new")
            fresh.write_text(json.dumps({"host": host, "port": port, "pid": os.getpid()}))
            fresh.replace(self._announce)
        logging.getLogger("rung.serve").info("ready on http://%s:%d", host, port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.drain()
        await super().shutdown(sockets)


def _drain_when_alone(drain_timeout_s: float) -> None:
    """Waits for the end of stdin, which comes when the launcher ends, kill -9 included; then drains and leaves."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(drain_timeout_s + 5.0)
    os._exit(int(Exit.FAILED))


if __name__ == "__main__":
    typer.run(main)
