"""A stage's replicas and gateway as processes of this machine, each on a free port, with a log, outliving nobody.

    ProcessLauncher ── Popen ──▶ python -m reference_apps.serve, python -m reference_apps.serve_gateway
                              python -m reference_apps.serve_worker, python -m reference_apps.serve_jobs
                    ══ stdin pipe ══▶  ends with the launcher, whatever ended it: the process drains and goes
                    ── launchers/tethered.py ──▶ valkey-server, where the cache needs a server of its own

Who is in rotation and who drains is in launchers/members.py and launcher.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from reference_apps.edge import client_url
from reference_apps.launchers import valkey
from reference_apps.launchers.launcher import Launcher
from reference_apps.launchers.member import CACHE, GATEWAY, LaunchError, Member, drill_file
from reference_apps.up import runs_folder
from stages.spec import Stage

# Numbers of batches that a replica may use before it could meet those of the process started again after it.
BATCHES_A_LIFE = 1_000_000_000


class ProcessLauncher(Launcher):
    """Starts a stage as processes, and stops them. A context manager: leaving it leaves nothing behind."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        super().__init__(stage, folder)
        if stage.gateway is not None and stage.gateway.engine != "rung":
            raise LaunchError(
                f'gateway.engine: must be "rung" for processes, got "{stage.gateway.engine}". It runs in a container '
                "only. Start the stage with --on docker, or set gateway.engine=rung."
            )

    def _start_replica(self, member: Member) -> subprocess.Popen[bytes]:
        words = ["--replica", str(member.number), "--first-batch", str(member.restarts * BATCHES_A_LIFE)]
        words += ["--drills", str(self.folder / drill_file(member.number))]
        if self.stage.queue is not None:
            words += ["--begin-at-s", repr(member.not_before_s), "--card", str(runs_folder() / "gpu" / "0")]
            return self._start("reference_apps.serve_worker", member, words + self._queue_words(), self._broker())
        return self._start("reference_apps.serve", member, words)

    def _start_gateway(self, member: Member) -> subprocess.Popen[bytes]:
        if self.stage.queue is not None:
            return self._start("reference_apps.serve_jobs", member, self._queue_words(), self._broker())
        cache, environment = self.stage.cache, dict[str, str]()
        if self.cache is not None and cache is not None:
            environment[cache.url_env] = valkey.url("127.0.0.1", self.cache.port, self._cache_password)
        words = ["--replicas", str(self.replicas_file)]
        if self.stage.feedback is not None:
            words += ["--feedback", str(self.feedback_folder.absolute())]
        if self.stage.split is not None:
            words += ["--split", str(self.split_folder.absolute())]
        return self._start("reference_apps.serve_gateway", member, words, environment)

    def _start_cache(self, member: Member) -> subprocess.Popen[bytes]:
        member.port = member.port or valkey.free_port()
        if (queue := self.stage.queue) is not None:
            self.queue_folder.mkdir(parents=True, exist_ok=True)
            settings = valkey.of_queue(queue, str(self.queue_folder.absolute()))
        else:
            assert self.stage.cache is not None
            settings = valkey.of_cache(self.stage.cache, str(self.folder.absolute()))
        file = self.folder / f"{member.name}.conf"
        valkey.write_secret(file, valkey.configuration("127.0.0.1", member.port, self._cache_password, settings))
        tethered = [sys.executable, "-m", "reference_apps.launchers.tethered"]
        binary = valkey.server_binary("cache" if self.stage.queue is None else "queue")
        return self._run([*tethered, binary, str(file.absolute())], member, {})

    def _queue_words(self) -> list[str]:
        return ["--folder", str(self.queue_folder.absolute())]

    def _broker(self) -> dict[str, str]:
        """The address of the queue's server in the environment, where the launcher has started it."""
        queue = self.stage.queue
        if queue is None or self.cache is None:
            return {}
        return {queue.url_env: valkey.url("127.0.0.1", self.cache.port, self._cache_password)}

    def _addresses(self, member: Member) -> tuple[int, str, str] | None:
        if member.number == CACHE:
            url = f"redis://127.0.0.1:{member.port}"
            return member.port, url, url
        try:
            port = int(json.loads(self._announcement(member).read_text(encoding="utf-8"))["port"])
        except FileNotFoundError:
            return None
        if member.number == GATEWAY and (gateway := self.stage.gateway) is not None:
            url = client_url(gateway.edge, port)
        else:
            url = f"http://127.0.0.1:{port}"
        return port, url, url

    def _let_go(self, member: Member) -> None:
        process = member.process
        if isinstance(process, subprocess.Popen) and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()

    def _start(
        self, module: str, member: Member, words: list[str], more: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        announcement = self._announcement(member)
        announcement.unlink(missing_ok=True)
        command = [sys.executable, "-m", module, "--stage", str(self.stage_file), *words]
        command += ["--port", str(member.port), "--announce", str(announcement), "--guarded"]
        threads = str(self.stage.device.cpu_threads)
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
        return self._run(command, member, environment | dict(more or {}))

    def _run(self, command: list[str], member: Member, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with member.log.open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                start_new_session=True,  # Ctrl-C in the terminal is the launcher's to hear, which then drains
            )

    def _announcement(self, member: Member) -> Path:
        return self.folder / f"{member.name}.json"
