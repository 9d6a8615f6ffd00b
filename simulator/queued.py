"""A queued stage, event by event: requests that are put as jobs and waited for, and the workers that do them.

    submit ─▶ event loop ─▶ put ─▶ Broker ◀── claim ── Workers          POST /predict, which rides on the queue
                             │ queue_full               │ result
    settled ◀── event loop ◀─┴──────────────────────────┘  deadline: a worker's    waited long enough: upstream_timeout

Every request is one whose client waits for its result, as the load generator sends them; the job of one who was waited
for long enough stays, and is dropped by a worker. The stage's own deadline ends no wait: it has workers drop what they
have not begun. `QueueFleet` is those workers for an autoscaler. No twin of the same name: the running stack has
reference_apps/jobs_api.py and queue_fleet.py. Not modelled: POST /jobs and its callbacks, for whoever comes back later;
how often the API looks for results, which is part of what the host takes; the API's own bound of 10,000 requests
inside; and that it hears of a client's leaving, which changes nothing for the job.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from typing import Protocol

from simpy import Environment

from simulator.broker import Broker, Job, NewJob, QueueFullError
from simulator.cold_starts import ColdStarts
from simulator.device import Device
from simulator.event_loop import EventLoop, at
from simulator.host import Hop, Host, less
from simulator.outcomes import GatewayLog, Life
from simulator.passages import Passage, Waits, log_of
from simulator.replica import Settled
from simulator.sharing import Card, Gpu
from simulator.worker import Worker
from stages.calibration import GatewayCosts, HostCosts
from stages.policies.histogram import LatencyCounts
from stages.policies.scraping import QueueSample, Sample
from stages.spec import Stage

# What somebody waits for goes before what somebody comes back for.
_PRIORITY = 0


class Jobs:
    """The jobs API of a stage, its broker, and no worker as yet: `join` them, then `submit` requests.

    `settled` is told of each request once its end is known. `seed` gives all draws; the workers' streams are their
    numbers'. Without `costs` the API takes no time: its hops then are those of the host. On a `gpu`, workers whose
    model takes memory share it in turns; without one, those of a stage that says what its model takes share one.
    """

    def __init__(
        self,
        stage: Stage,
        env: Environment,
        host: HostCosts,
        costs: GatewayCosts | None,
        seed: int,
        settled: Settled | None = None,
        gpu: Gpu | None = None,
    ) -> None:
        assert stage.queue is not None
        self.broker = Broker(stage.queue, env)
        self.workers: dict[int, Worker] = {}  # those that are there, the draining too
        self.arrived = 0  # requests that have been read
        self.in_flight = 0  # those of them that wait for their result
        self.latencies = LatencyCounts()
        self._stage, self._env, self._seed, self._settled = stage, env, seed, settled
        own_s, self._wait_s = stage.admission.deadline_s, stage.queue.request_reply_timeout_s
        self._deadline_s = self._wait_s if own_s is None else min(own_s, self._wait_s)
        costs = costs or GatewayCosts(
            forward_quantiles_s=host.send_quantiles_s, back_quantiles_s=host.reply_quantiles_s
        )
        self._loop, self._visit_s = EventLoop(env), costs.busy_s / 2
        self.from_clients = Hop(less(costs.send_quantiles_s, self._visit_s), seed, "gateway send")
        self._to_clients = Hop(costs.reply_quantiles_s, seed, "gateway reply")
        self._forward = Hop(costs.forward_quantiles_s, seed, "queue forward")
        self._host_costs = host.model_copy(update={"reply_quantiles_s": less(costs.back_quantiles_s, self._visit_s)})
        self._hosts: dict[int, Host] = {}
        self._gpu = gpu or (Gpu(env, stage.device.memory_gib) if stage.device.memory_gib is not None else None)
        self._stored: set[int] = set()
        self._new = partial(
            Worker, stage, env, broker=self.broker, stored=self._stored, ended=self._ended, host=self._host_costs
        )
        self._joined: list[Worker] = []
        self._passages: list[Passage] = []
        self._waits = Waits(env, self._give_up)

    def join(self, number: int, device: Device, started_s: float | None = None) -> Worker:
        """A worker on that device works from now on; it was started at `started_s`. Gives back the worker."""
        self._hosts[number] = Host(self._host_costs, self._seed, number)
        card, memory_gib = None, self._stage.model.memory_gib
        if self._gpu is not None and memory_gib is not None:
            card = Card(self._gpu, memory_gib, f"{self._stage.name}-{number}-{len(self._joined)}")
        self.workers[number] = worker = self._new(number=number, device=device, card=card, started_s=started_s)
        self._joined.append(worker)
        return worker

    def submit(self, request: int, key: int | str = 0, leaves_s: float = inf) -> None:
        """Request number `request` is at the API now; numbers come in order, from 0. `key` is what it is for.

        An answer after `leaves_s` finds its client gone; nobody tells the API, which goes on waiting.
        """
        passage = Passage(request, key, leaves_s)
        self._passages.append(passage)
        self._loop.do(self._visit_s, partial(self._read, passage))

    def log(self) -> GatewayLog:
        """What became of the requests so far."""
        return log_of(self._passages)

    def lives(self) -> list[Life]:
        """What each worker that was ever there has done."""
        return [worker.life() for worker in self._joined]

    def _read(self, passage: Passage) -> None:
        now_s = passage.in_s = self._env.now
        self.arrived += 1
        self.in_flight += 1
        self._waits.add(now_s + self._wait_s, passage)
        at(self._env, self._forward.arrival_s(passage.request, now_s), partial(self._put, passage))

    def _put(self, passage: Passage) -> None:
        if passage.over:
            return
        try:
            self.broker.put([NewJob(passage.request, _PRIORITY, deadline_s=self._deadline_s)])
        except QueueFullError:
            self._answer(passage, "queue_full")
        else:
            passage.arrived_s = self._env.now

    def _ended(self, worker: Worker, job: Job, batch: int, place: int, now_s: float, reason: str) -> None:
        """A job has its result; the API sees it once the host's time is over."""
        passage = self._passages[job.request]
        if not reason:
            passage.replica = worker.number
            passage.tried = (worker.number,) * job.attempt
        host = self._hosts[worker.number]
        back_s = now_s if reason else host.answer_s(now_s, batch, place)
        at(self._env, back_s, lambda: self._loop.do(self._visit_s, partial(self._answer, passage, reason)))

    def _answer(self, passage: Passage, reason: str) -> None:
        """The answer or refusal goes to the client now, unless it had one before."""
        if passage.over:
            return
        now_s = passage.out_s = self._env.now
        self.in_flight -= 1
        passage.reason, passage.over = reason, True
        if not reason:
            self.latencies.add(now_s - passage.in_s)
        passage.replied_s = now_s + self._to_clients.one_s(passage.request)
        if self._settled is not None:
            self._settled(passage.request, passage.replied_s, reason)

    def _give_up(self, passage: Passage) -> None:
        """It has waited as long as it may. No worker takes its job up any more; one that has it goes on."""
        self._answer(passage, "upstream_timeout")


class Crew(Protocol):
    """Workers of one queue, and how one more joins them."""

    broker: Broker
    workers: dict[int, Worker]

    def join(self, number: int, device: Device, started_s: float | None = None) -> Worker:
        """A worker on that device works from now on; it was started at `started_s`."""
        ...


class QueueFleet:
    """The workers of a queue for an autoscaler; new ones are numbered from `first` on, with devices of their own."""

    def __init__(
        self,
        env: Environment,
        jobs: Crew,
        open_device: Callable[[int], Device],
        first: int,
        over: Callable[[], bool] = lambda: False,  # says that the traffic is over: nobody joins any more
    ) -> None:
        self._env, self._jobs = env, jobs
        self._cold_starts = ColdStarts(env, open_device, jobs.join, first, over)

    def sample(self) -> Sample:
        """What a scrape finds now."""
        depth = self._jobs.broker.depth()
        return Sample(self._env.now, queue=QueueSample(depth.waiting, depth.leased, depth.oldest_s))

    def members(self) -> list[int]:
        """Those that work."""
        return [n for n, worker in self._jobs.workers.items() if not worker.draining and worker.left_s is None]

    def ready(self) -> list[int]:
        """The same: nobody takes a worker out of a rotation."""
        return self.members()

    def starting(self) -> list[int]:
        """Those in their cold start."""
        return self._cold_starts.numbers()

    def start(self, cold_start_s: float) -> None:
        """One more, which works in `cold_start_s` seconds."""
        self._cold_starts.start(cold_start_s)

    def drain(self, number: int) -> None:
        """Lets it go when it has done what it has; at once where it has not worked yet."""
        if not self._cold_starts.cancel(number):
            self._jobs.workers[number].drain()

    def never_served(self) -> list[Life]:
        """Those that were stopped in their cold start, and those that are in it still."""
        return self._cold_starts.never_served()
