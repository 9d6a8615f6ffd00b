"""A stage's replicas and gateway as containers: one network a stage, one image, the size of a machine for each replica.

    clients ──▶ 127.0.0.1:port ──▶ │ gateway ──▶ replica-0, replica-1, … │ the stage's network: the gateway's port is
                                   └──────────────────────────────────────┘ the only one that is published

A container has the machine's own monotonic clock (Docker gives it no time namespace), so that the times of an answer's
record can be compared with the client's. What it does not do: limit the gateway, which stands for no machine of the
stage's, or reach an engine elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reference_apps import nginx, split_file
from reference_apps.edge import EdgeError, checked_keys, checked_tls, client_url
from reference_apps.launchers import docker_engine, docker_files, docker_image, docker_queue, valkey
from reference_apps.launchers.docker_container import ContainerProcess
from reference_apps.launchers.docker_engine import in_words
from reference_apps.launchers.docker_files import INSIDE, StageFiles
from reference_apps.launchers.docker_nginx import NginxGateway
from reference_apps.launchers.launcher import Launcher
from reference_apps.launchers.member import CACHE, GATEWAY, LaunchError, Member, drill_file
from reference_apps.launchers.process import BATCHES_A_LIFE
from reference_apps.up import runs_folder
from stages.fleet import Gateway
from stages.policies.splitting import share_at
from stages.spec import Stage

PORT = 8000  # inside every container
FEEDBACK_INSIDE = "/feedback"  # of the gateway: where predictions and labels are kept
CACHE_HOST = "cache"  # the name of the cache's server in the network
SPLIT = "/split"  # in the gateway's container: the control file of its split
_PIDS_MAX = 1024
_LOG_KEPT = {"max-size": "16m", "max-file": "2"}  # by the engine; the run's folder has the whole of it
_SECOND_NS = 1_000_000_000


class DockerLauncher(Launcher):
    """Starts a stage as containers, and removes them. A context manager: leaving it leaves nothing behind."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        super().__init__(stage, folder)
        self._engine = docker_engine.connect()
        self._name = f"rung-{stage.name}-{secrets.token_hex(3)}"  # of the network, and the containers' first words
        self._owner = docker_engine.owner()
        gateway = stage.gateway
        self._nginx = NginxGateway() if gateway is not None and gateway.engine == "nginx" else None
        self._files = StageFiles(self.stage, folder)

    def start(self) -> None:
        """Starts everything and returns when clients would be served. Raises LaunchError, with nothing left running."""
        try:
            docker_image.prepare(self._engine, self.stage, lambda _: None)
            self._api_keys()
            self._check_tls()
            self._files.prepare()
            if self.stage.queue is not None:
                for folder in (self.queue_folder, self._card):
                    docker_queue.prepare(folder)
            if self.stage.feedback is not None:
                docker_queue.prepare(self.feedback_folder)
            with in_words("docker: the stage's network was not made"):
                self._engine.networks.create(self._name, driver="bridge", labels=self._labels("network"))
        except BaseException:
            self.stop()
            raise
        super().start()

    def stop(self) -> None:
        """Lets the gateway and the replicas drain, and removes them and the network."""
        try:
            super().stop()
        finally:
            with contextlib.suppress(LaunchError), in_words("docker"):
                docker_engine.remove(self._engine, self._run)
            self._engine.close()

    def _begin_split(self) -> None:
        super()._begin_split()
        if self.stage.split is not None:
            docker_queue.prepare(self.split_folder)

    def _looked(self) -> None:
        """A share that somebody wants, or the ramp: nginx reads no file of ours but its own."""
        if self._nginx is not None and self.gateway is not None and self._share() != self._nginx.share:
            self._publish()

    def _share(self) -> float:
        """The challenger's share now; 0 where there is none."""
        split = self.stage.split
        if split is None:
            return 0.0
        ramp = split.ramp
        try:
            told = split_file.read(self.split_folder) or split_file.first(split, time.monotonic())
        except (OSError, ValueError):  # somebody has written nonsense: it stays as it was
            return 0.0 if self._nginx is None else self._nginx.share
        shares, step_s = ((), 1.0) if ramp is None else (ramp.shares, ramp.step_duration_s)
        return round(share_at(told.wanted, shares, step_s, time.monotonic()), nginx.SHARE_DIGITS)

    def add_cold(self, cold_start_s: float) -> Member:
        """Adds one as an autoscaler does: its machine takes the stage's time, image and model take what they take."""
        scaling = self.stage.scaling
        machine_s = cold_start_s if scaling is None else scaling.cold_start.machine_s
        return self.add(launch_at_s=time.monotonic() + machine_s)

    def tell(self, number: int, text: str) -> None:
        """Writes what a drill wants of a replica into the file that it looks at, which is in its own folder here."""
        super().tell(number, text)
        self._files.deliver(docker_files.REPLICA, drill_file(number), text)

    def cut_off(self, number: int) -> None:
        """Takes a replica off the network, as a broken switch would. Raises KeyError for a number that nobody has."""
        container = _container(self.replica(number))
        with in_words(f"replica {number}: could not be cut off"):
            self._engine.networks.get(self._name).disconnect(container.container, force=True)
        container.refresh()

    def rejoin(self, number: int) -> None:
        """Puts a replica that was cut off on the network again, at whatever address it gets. Raises KeyError."""
        member = self.replica(number)
        container = _container(member)
        with in_words(f"replica {number}: could not be put on the network"):
            self._engine.networks.get(self._name).connect(container.container)
        container.refresh()
        if (found := self._addresses(member)) is not None:
            member.port, member.url, member.inner_url = found
            self._publish()

    def told(self, dead: Member) -> str:
        """What to tell about one that has ended; where it was its machine's memory that ended it, that too."""
        text = super().told(dead)
        if isinstance(dead.process, ContainerProcess) and dead.process.out_of_memory:
            text += f"\nIts machine had too little memory: machine.memory_mib = {self.stage.machine.memory_mib}."
        return text

    # ---- what Launcher asks for ----

    def _start_replica(self, member: Member) -> ContainerProcess:
        words = ["--replica", str(member.number), "--first-batch", str(member.restarts * BATCHES_A_LIFE)]
        words += ["--drills", f"{INSIDE}/{drill_file(member.number)}"]
        machine = self.stage.machine
        threads = str(self.stage.device.cpu_threads)
        limits: dict[str, Any] = {}
        if machine.cpus is not None:
            limits["nano_cpus"] = round(machine.cpus * 1e9)
        if machine.memory_mib is not None:
            limits |= {"mem_limit": f"{machine.memory_mib}m", "memswap_limit": f"{machine.memory_mib}m"}  # no swap
        module, environment = "reference_apps.serve", {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if self.stage.queue is not None:
            module, environment = "reference_apps.serve_worker", environment | self._of_queue()
            words += docker_queue.worker_words(member.not_before_s)
        elif self.stage.gateway is None:
            limits["ports"] = {f"{PORT}/tcp": ("127.0.0.1", member.port or None)}
        return self._start_container(
            member,
            docker_image.IMAGE,
            [module, "--stage", f"{INSIDE}/stage.toml", *words, *_LISTEN],
            environment=environment,
            **limits,
        )

    def _start_gateway(self, member: Member) -> ContainerProcess:
        if self.stage.queue is not None:
            words = ["reference_apps.serve_jobs", "--stage", f"{INSIDE}/stage.toml", "--folder", docker_queue.QUEUE]
            ports = {f"{PORT}/tcp": ("127.0.0.1", member.port or None)}
            environment = self._of_queue()
            return self._start_container(
                member, docker_image.IMAGE, [*words, *_LISTEN], environment=environment, ports=ports
            )
        gateway = _gateway(self.stage)
        edge = gateway.edge
        host = {"localhost": "127.0.0.1"}.get(edge.host, edge.host)
        published = {f"{PORT}/tcp": (host, member.port or edge.port or None)}
        if self._nginx is not None:
            return self._start_container(
                member,
                docker_image.NGINX_IMAGE,
                self._nginx.command(f"{INSIDE}/nginx.conf"),
                entrypoint=["nginx"],
                ports=published,
                healthcheck=self._nginx.health(PORT, edge.tls_certificate is not None),
            )
        keys = {edge.api_keys_env: os.environ.get(edge.api_keys_env, "")} if edge.api_keys_env else {}
        if (cache := self.stage.cache) is not None and cache.store == "redis":
            own = valkey.url(CACHE_HOST, valkey.PORT, self._cache_password)
            keys[cache.url_env] = own if self.cache is not None else os.environ[cache.url_env]
        words = ["reference_apps.serve_gateway", "--stage", f"{INSIDE}/stage.toml"]
        words += ["--replicas", f"{INSIDE}/replicas.json", "--port", str(PORT), "--contained"]
        shared: dict[str, Path] = {}
        if (feedback := self.stage.feedback) is not None:
            words += ["--feedback", FEEDBACK_INSIDE]
            shared[FEEDBACK_INSIDE] = self.feedback_folder
            if feedback.url_env is not None and feedback.url_env in os.environ:
                keys[feedback.url_env] = os.environ[feedback.url_env]
        if self.stage.split is not None:
            words += ["--split", SPLIT]
            shared[SPLIT] = self.split_folder
        check = {"healthcheck": _TLS_HEALTH} if edge.tls_certificate else {}
        return self._start_container(
            member, docker_image.IMAGE, words, shared=shared, environment=keys, ports=published, **check
        )

    def _start_cache(self, member: Member) -> ContainerProcess:
        if self.stage.queue is not None:
            settings = valkey.of_queue(self.stage.queue, docker_queue.QUEUE)
        else:
            assert self.stage.cache is not None
            settings = valkey.of_cache(self.stage.cache, "/tmp")
        text = valkey.configuration("0.0.0.0", valkey.PORT, self._cache_password, settings)
        self._files.deliver(docker_files.GATEWAY, "cache.conf", text, secret=True)
        named = self._engine.api.create_endpoint_config(aliases=[CACHE_HOST])  # whatever address its next life has
        return self._start_container(
            member,
            docker_image.IMAGE,
            ["reference_apps.launchers.valkey", f"{INSIDE}/cache.conf"],
            networking_config={self._name: named},
            healthcheck={"test": ["NONE"]},  # that of the image asks over HTTP
        )

    def _addresses(self, member: Member) -> tuple[int, str, str] | None:
        container = _container(member)
        if not container.address:
            return None
        if member.number == CACHE:
            url = f"redis://{container.address}:{valkey.PORT}"
            return valkey.PORT, url, url
        inner = f"http://{container.address}:{PORT}"
        port = container.published(PORT)
        if member.number == GATEWAY and self.stage.gateway is not None:
            return port, client_url(_gateway(self.stage).edge, port), inner
        return (port, f"http://127.0.0.1:{port}", inner) if port else (PORT, inner, inner)

    def _published(self) -> None:
        if self._nginx is None:
            self._files.deliver(docker_files.GATEWAY, "replicas.json", self.replicas_file.read_text(encoding="utf-8"))
            return
        addresses = {r.number: r.inner_url.removeprefix("http://") for r in self.replicas if r.state == "ready"}
        text = self._nginx.configuration(self.stage, addresses, self.generation, PORT, self._api_keys(), self._share())
        self._files.deliver(docker_files.GATEWAY, "nginx.conf", text, secret=True)
        if self.gateway is not None and self.gateway.state == "ready":  # one that only starts might die of the signal
            self._nginx.reload(_container(self.gateway), self.generation)

    def _repinned(self) -> None:
        self._files.restage(self.stage)

    def _let_go(self, member: Member) -> None:
        if isinstance(member.process, ContainerProcess):
            member.process.remove()

    def _seen_by_gateway(self) -> tuple[int, dict[int, dict[str, object]]]:
        if self._nginx is None:
            return super()._seen_by_gateway()
        if self.gateway is None or self.gateway.state != "ready":
            return -1, {}
        generation = self._nginx.works_by(_container(self.gateway), self.gateway.url, self._edge())
        return generation, {r.number: {"ready": True, "outstanding": 0} for r in self.replicas if r.state == "ready"}

    def _answers(self, member: Member) -> bool:
        """As every launcher; nginx has also to work by the fleet as it is, which it may not have read when it began."""
        if not super()._answers(member):
            return False
        if member.number != GATEWAY or self._nginx is None:
            return True
        container = _container(member)
        return self._nginx.works_by(container, member.url, self._edge()) >= self.generation

    # ---- a queue ----

    @property
    def _card(self) -> Path:
        return runs_folder() / "gpu" / "0"

    def _shared(self) -> list[Any]:
        return [] if self.stage.queue is None else docker_queue.mounts(self.queue_folder, self._card)

    def _of_queue(self) -> dict[str, str]:
        own = None if self.cache is None else valkey.url(CACHE_HOST, valkey.PORT, self._cache_password)
        return {} if self.stage.queue is None else docker_queue.environment(self.stage.queue, own)

    # ---- containers ----

    def _start_container(
        self, member: Member, image: str, words: list[str], *, shared: Mapping[str, Path] | None = None, **options: Any
    ) -> ContainerProcess:
        """Starts one of the stage's containers, with the folders of `shared` to be written to, at the paths there."""
        from docker.errors import DockerException
        from docker.types import LogConfig
        from requests.exceptions import RequestException

        part = docker_files.GATEWAY if member.number < 0 else docker_files.REPLICA
        ends_by = signal.SIGQUIT if image == docker_image.NGINX_IMAGE else signal.SIGTERM  # each drains at its own
        uid, gid = docker_files.user()
        container = None
        try:
            container = self._engine.containers.create(
                image,
                words,
                name=f"{self._name}-{member.name}-{member.restarts}",
                labels=self._labels("cache" if member.number == CACHE else part, member.number),
                network=self._name,
                mounts=self._files.mounts(part) + self._shared() + docker_files.writable(shared or {}),
                user=f"{uid}:{gid}",
                init=True,  # hands signals on, also to a process that has not yet said what it does with them
                read_only=True,
                tmpfs={"/tmp": "size=256m"},
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                pids_limit=_PIDS_MAX,
                log_config=LogConfig(type="json-file", config=_LOG_KEPT),
                **options,
            )
            container.start()
            return ContainerProcess(container, self._name, member.log, self.stage.logs.requests_max_bytes, ends_by)
        except (DockerException, RequestException) as error:  # refused, or not answered in time
            if container is not None:
                with contextlib.suppress(DockerException, RequestException):
                    container.remove(force=True)
            said = str(getattr(error, "explanation", None) or error)
            raise LaunchError(_refusal(self.stage, member, said)) from error

    def _labels(self, role: str, number: int | None = None) -> dict[str, str]:
        labels = {
            docker_engine.STAGE: self.stage.name,
            docker_engine.RUNS: str(runs_folder()),
            docker_engine.RUN: self._run,
            docker_engine.OWNER: self._owner,
            docker_engine.ROLE: role,
        }
        return labels | ({docker_engine.REPLICA: str(number)} if role == "replica" else {})

    @property
    def _run(self) -> str:
        return str(self.folder.absolute())

    def _api_keys(self) -> tuple[str, ...]:
        try:
            return checked_keys(_gateway(self.stage).edge, os.environ) if self.stage.gateway is not None else ()
        except EdgeError as error:
            raise LaunchError(str(error)) from None

    def _check_tls(self) -> None:
        try:
            if self.stage.gateway is not None:
                checked_tls(self.stage.gateway.edge)
        except EdgeError as error:
            raise LaunchError(str(error)) from None


_LISTEN = ("--host", "0.0.0.0", "--port", str(PORT))
# The image's own check knows no TLS; whom the certificate names does not matter to a container asking itself.
_TLS_HEALTH = {
    "test": [
        "CMD",
        "python",
        "-c",
        "import http.client as h, ssl; c = h.HTTPSConnection('127.0.0.1', 8000, timeout=2, "
        "context=ssl._create_unverified_context()); c.request('GET', '/healthz'); "
        "raise SystemExit(c.getresponse().status != 200)",
    ],
    "interval": 10 * _SECOND_NS,
    "timeout": 3 * _SECOND_NS,
    "retries": 3,
}


def _container(member: Member) -> ContainerProcess:
    assert isinstance(member.process, ContainerProcess)
    return member.process


def _gateway(stage: Stage) -> Gateway:
    assert stage.gateway is not None
    return stage.gateway


def _refusal(stage: Stage, member: Member, said: str) -> str:
    """Why the engine would not start a container, as its key, its rule and what to do."""
    if "already allocated" in said or "already in use" in said:
        edge = stage.gateway.edge if stage.gateway is not None else None
        port = member.port or (edge.port if edge is not None else 0)
        return (
            f"gateway.edge.port: must be a free port, got {port}. Another program listens there. "
            "Stop it, or set gateway.edge.port=0 for a free one."
        )
    if found := re.search(r"[Rr]ange of CPUs is from \S+ to (\d+(?:\.\d+)?)", said):
        return (
            f"machine.cpus: must be at most {float(found[1]):g}, the processors of this machine, "
            f"got {stage.machine.cpus:g}. A container cannot have more. Lower it, or leave it out for no limit."
        )
    return f"{member.title}: its container was not started: {said}"
