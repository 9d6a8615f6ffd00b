"""One address in front of the replicas: who gets the next request, what is tried again, who is told to come later.

    POST /predict ─▶ key? ─▶ cache? ─▶ room? ─▶ [ choose ─▶ replica ]─▶ answer
                      │ 401    │ kept    │ 503        ▲         │ lost, refused, full: is it safe, is there budget?
                                                      └─────────┘ another replica

`/predict` is bare ASGI in front of a FastAPI application that serves everything else. A request carries what is left of
its deadline and one id, whichever replica it goes to; a client that leaves frees its place here and its connection.
What a replica has in its queue by then is computed all the same. Every decision is in stages/policies; the way of a
request where the stage has a cache is in reference_apps/cached_path.py.

Twin: simulator/gateway.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

from reference_apps.asgi import (
    Answer,
    ClientGoneError,
    Headers,
    Patience,
    problem,
    read_body,
    send_answer,
    too_long,
)
from reference_apps.cached_path import CachedPath
from reference_apps.edge import Keys
from reference_apps.gateway_metrics import GatewayMetrics, Seen
from reference_apps.gateway_web import web
from reference_apps.launchers.member import FEEDBACK
from reference_apps.logs import RequestLog
from reference_apps.passage import NO_KEY, OUTCOMES, Ended, Request, Room, reason_of, refusal, request_id_of, request_of
from reference_apps.rotation import Replica, Rotation
from reference_apps.shadowing import Shadow
from reference_apps.splitter import Splitter
from reference_apps.upstream import LostError, Upstream
from stages.alerts import latency_bounds_of
from stages.arms import arm_of, arms_of
from stages.policies import admission as admits
from stages.policies.balancing import Balancer
from stages.policies.retrying import RetryBudget, safe_to_retry
from stages.spec import Stage

if TYPE_CHECKING:
    from reference_apps.feedback import FeedbackPath

__all__ = ["Gateway"]

# How long `GET /batches` waits for each replica.
BATCHES_TIMEOUT_S = 10.0


class Gateway:
    """The gateway of a stage: an ASGI application with lifespan. `replicas_file` says which replicas there are, and
    `split_folder` holds the control file of its split.

    Predictions and labels go into `feedback_folder`, or one beside the file. Raises StoreError where the answers of its
    cache cannot be kept, and FeedbackDownError where predictions cannot.
    """

    def __init__(
        self,
        stage: Stage,
        replicas_file: Path,
        keys: Keys | None = None,
        split_folder: Path | None = None,
        feedback_folder: Path | None = None,
    ) -> None:
        if stage.gateway is None:
            raise ValueError(f"{stage.name} has no gateway")
        self.stage = stage
        self.policy = stage.gateway
        # One a version of the model: each has its replicas, and a balancer that knows no others.
        self.balancers = {arm: self._new_balancer() for arm in arms_of(stage)}
        self.budget = RetryBudget(self.policy.retry_budget_share)
        self.metrics = GatewayMetrics(lambda: self.in_flight, self._seen, latency_bounds_of(stage), arms_of(stage))
        self.request_log = RequestLog(logging.getLogger("rung.gateway"), stage.logs)
        self.room = Room(self.policy.max_in_flight)
        self.cached = CachedPath(self) if stage.cache is not None else None
        folder = feedback_folder or replicas_file.parent / FEEDBACK
        self.feedback: FeedbackPath | None = None
        if stage.feedback is not None:
            from reference_apps.feedback import FeedbackPath  # its libraries take long to import

            self.feedback = FeedbackPath(stage, folder, self.metrics.registry)
        self.draining = False
        self.rotation: Rotation | None = None
        self._upstream: Upstream | None = None
        self._file = replicas_file
        self._keys = keys or Keys()
        self.splitter = None if stage.split is None else Splitter(stage, split_folder, self._right, self._forget)
        self.shadow = Shadow(self) if stage.split is not None and stage.split.mode == "shadow" else None
        if self.splitter is not None:
            self.metrics.watch_split(self.splitter, self.shadow)
        self._web: ASGIApp = web(self)

    @property
    def in_flight(self) -> int:
        """Requests that are inside, without those at the door of a cache."""
        return self.room.inside

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: `/predict` on the short path, everything else through FastAPI; without a key, neither."""
        if scope["type"] != "http":
            await self._web(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if self._keys and scope["path"] != "/healthz" and not self._keys.admits(headers):
            self.metrics.unauthorized()
            status, fields, content = problem(401, "unauthorized", NO_KEY)
            await send_answer(send, (status, [*fields, (b"www-authenticate", b"Bearer")], content))
        elif scope["path"] == "/predict" and scope["method"] == "POST":
            if (answer := await self._predict(headers, receive)) is not None:
                await send_answer(send, answer)
        elif self.feedback is not None and scope["path"] == "/feedback" and scope["method"] == "POST":
            await self.feedback.serve(receive, send)
        else:
            await self._web(scope, receive, send)

    def open(self) -> None:
        """Connects, and begins to look after the replicas; called on the event loop that will serve."""
        self._upstream = Upstream(self.policy.connect_timeout_s)
        self.rotation = Rotation(self.policy, self._file, self._upstream, left=self._left, ejected=self.metrics.ejected)
        if self.feedback is not None:
            self.feedback.open()
        if self.splitter is not None:
            self.splitter.open()
        if self.cached is not None:
            self.cached.open()
            self.rotation.renewed = self.cached.renew
        self.rotation.open()

    def drain(self) -> None:
        """Says that it is not ready any more; whoever still comes is served."""
        self.draining = True

    async def close(self) -> None:
        """Looks after nobody any more, and closes every connection."""
        assert self.rotation is not None and self._upstream is not None
        if self.shadow is not None:
            await self.shadow.close()
        if self.splitter is not None:
            await self.splitter.close()
        await self.rotation.close()
        if self.cached is not None:
            await self.cached.close()
        if self.feedback is not None:
            await self.feedback.close()
        await self._upstream.close()

    async def batches(self, since_s: float) -> list[list[float]]:
        """Rows (replica, batch, started_s, finished_s, batch_size) of all replicas that answer."""
        assert self.rotation is not None
        replicas = list(self.rotation.replicas.values())
        parts = await asyncio.gather(*(self._batches_of(replica, since_s) for replica in replicas))
        return [[replica.number, *row] for replica, rows in zip(replicas, parts, strict=True) for row in rows]

    # ---- one request ----

    async def _predict(self, headers: Headers, receive: Receive) -> Answer | None:
        """The answer to one request; None when its client has left."""
        began_s = time.monotonic()
        self.metrics.arrived()
        request_id = request_id_of(headers)
        try:
            request = request_of(self.stage, headers, request_id, began_s)
            if self.splitter is not None:
                self.splitter.assign(request, headers)
        except ValueError as error:
            nothing = Request(request_id, "", [], None, began_s)
            return self.finished(nothing, "bad_input", problem(422, "bad_input", str(error)))
        door = self.room if self.cached is None else self.cached.door
        if door.full:
            return self.finished(request, "gateway_full", refusal(self.stage, "gateway_full"))
        patience = Patience(receive, request.gives_up_s)
        try:
            with door:
                body = await read_body(receive, self.stage.admission.max_body_bytes)
                request.came_s = time.monotonic()
                if body is None:
                    text = too_long(self.stage.admission.max_body_bytes)
                    return self.finished(request, "bad_input", problem(413, "bad_input", text))
                request.body = body
                patience.listen()
                if self.cached is None:
                    return await self.until_answered(request)
                found = await self.cached.look(request)
            return await self.cached.answer(request, found)
        except ClientGoneError:
            self.metrics.client_gone()
            return None
        except asyncio.CancelledError:
            if patience.over:
                return self._timed_out(request)
            if patience.gone:
                self.metrics.client_gone()
                return None
            raise
        finally:
            patience.end()

    async def until_answered(self, request: Request) -> Answer:
        """Sends the request to one replica after the other until there is an answer to give."""
        self.budget.note_request(request.came_s)
        candidates = self.candidates(request)
        if not candidates:
            reason = self._why_nobody(request)
            return self.finished(request, reason, refusal(self.stage, reason))
        if self.shadow is not None:
            self.shadow.copy(request)
        while True:
            ended = await self.try_one(request, candidates)
            candidates = self._others(request, ended)
            if not candidates:
                return self._answer(request, ended)
            self.metrics.retried(ended.reason)

    def candidates(self, request: Request) -> dict[int, int]:
        """The replicas that may be chosen, each with its outstanding requests."""
        assert self.rotation is not None
        most = self.policy.connections_per_replica
        return {
            replica.number: replica.outstanding
            for replica in self.rotation.in_rotation(time.monotonic())
            if admits.room(replica.outstanding, most)
            and replica.number not in request.tried
            and arm_of(self.stage, replica.number) == request.arm
        }

    def _others(self, request: Request, ended: Ended) -> dict[int, int]:
        """The replicas for another try; none when there is to be no other."""
        if not ended.reason or len(request.tried) > self.policy.retries_max:
            return {}
        if not safe_to_retry(ended.reason, ended.sent):
            return {}
        candidates = self.candidates(request)
        if candidates and not self.budget.may_retry(time.monotonic()):
            self.metrics.over_budget()
            return {}
        return candidates

    async def try_one(self, request: Request, candidates: dict[int, int]) -> Ended:
        """One try on one replica, and what is learnt from it."""
        assert self.rotation is not None and self._upstream is not None
        now_s = time.monotonic()
        balancer = self.balancers[request.arm]
        number = balancer.choose(request.key, candidates, now_s, request.ticket)
        request.at = replica = self.rotation.replicas[number]
        request.tried.append(number)
        left_s = self.policy.upstream_timeout_s
        if request.deadline_s is not None:
            left_s = max(0.001, min(left_s, request.deadline_s - now_s))
        replica.count(+1, now_s)
        balancer.sent(number, now_s)
        ok = False
        try:
            headers = request.headers_with(left_s)
            reply = await self._upstream.post(replica.address, b"/predict", headers, request.body)
            ended = Ended(reason_of(reply), True, reply)
            ok = reply.status < 500
        except LostError as error:
            ended = Ended(error.reason, error.sent, None)
        finally:
            ended_s = time.monotonic()
            replica.count(-1, ended_s)
            if self.rotation.replicas.get(number) is replica:
                balancer.done(number, ended_s - now_s, ok, ended_s)
        self.rotation.came_back(replica, ended.reason, ended_s)
        return ended

    # ---- what the client is told ----

    def _answer(self, request: Request, ended: Ended) -> Answer:
        reply = ended.reply
        if reply is None:
            timed_out = ended.reason == "upstream_timeout"
            reason = "upstream_timeout" if timed_out else "upstream_lost"
            return self.finished(request, reason, refusal(self.stage, reason))
        headers = [(b"content-type", reply.content_type)]
        if reply.retry_after:
            headers.append((b"retry-after", reply.retry_after))
        return self.finished(request, ended.reason, (reply.status, headers, reply.content), reply.record)

    def _timed_out(self, request: Request) -> Answer:
        """The time of a request ran out while its body, its answer or that of another was waited for."""
        if not request.came_s:
            text = "The rest of the body did not come in time. Send it at once."
            return self.finished(request, "bad_input", problem(408, "bad_input", text))
        reason = "upstream_timeout" if request.deadline_s != request.gives_up_s else "deadline"
        assert self.rotation is not None
        if reason == "upstream_timeout" and request.at is not None:
            self.rotation.came_back(request.at, reason, time.monotonic())
        return self.finished(request, reason, refusal(self.stage, reason))

    def finished(self, request: Request, reason: str, answer: Answer, record: bytes = b"") -> Answer:
        """The answer with its id and its record, counted."""
        now_s = time.monotonic()
        came_s = request.came_s or now_s
        self.metrics.answered(OUTCOMES.get(reason, "failed"), reason, now_s - came_s, request.arm)
        if self.splitter is not None and request.arm and not request.forced:
            self.splitter.ended(request.arm, reason, now_s - came_s)
        if self.feedback is not None and not reason:
            told = (request.request_id, request.user, request.arm, answer[2], record, now_s - came_s)
            self.feedback.note(*told, forced=request.forced)
        own = b"gateway_in_s=%.6f,gateway_out_s=%.6f,tries=%d" % (came_s, now_s, len(request.tried))
        if request.cache:
            had = request.cache.encode()
            own += b",cache=" + had
            answer[1].append((b"x-rung-cache", had))
        if request.arm:
            arm = request.arm.encode()
            own += b",arm=" + arm
            answer[1].append((b"x-rung-arm", arm))
        answer[1].append((b"x-request-id", request.request_id))
        answer[1].append((b"x-rung-record", b"%b,%b" % (record, own) if record else own))
        self.request_log.note({}, answer, now_s - came_s)
        return answer

    def _why_nobody(self, request: Request) -> str:
        assert self.rotation is not None
        there = (replica.number for replica in self.rotation.in_rotation(time.monotonic()))
        own = any(arm_of(self.stage, number) == request.arm for number in there)
        return "gateway_full" if own else "no_replica"

    def _right(self) -> Mapping[str, tuple[int, int]]:
        """Arm → its answers that were right, and those that have a label."""
        return {} if self.feedback is None else self.feedback.right

    def _forget(self, since_at: float) -> None:
        """Another challenger, or another try: labels of what was answered before say nothing of it."""
        if self.feedback is not None:
            self.feedback.begin_again(since_at)

    def _new_balancer(self) -> Balancer:
        return Balancer(self.policy.policy, self.stage.traffic.seed, self.policy.sticky_load_bound)

    def _left(self, number: int) -> None:
        """A replica is gone: another that comes under its number begins anew."""
        self.balancers[arm_of(self.stage, number)].forget(number)

    def _seen(self) -> Iterator[Seen]:
        now_s = time.monotonic()
        for r in self.rotation.replicas.values() if self.rotation is not None else ():
            held_s = r.held_until_s(now_s)
            yield r.number, r.outstanding, held_s, r.health.ready, r.health.ejected(now_s), r.draining

    async def _batches_of(self, replica: Replica, since_s: float) -> list[list[float]]:
        assert self._upstream is not None
        try:
            async with asyncio.timeout(BATCHES_TIMEOUT_S):
                reply = await self._upstream.get(replica.address, b"/batches?since_s=%r" % since_s)
        except (LostError, TimeoutError):
            return []
        rows: list[list[float]] = orjson.loads(reply.content) if reply.status == 200 else []
        return rows
