"""What a client may ask of the jobs API, checked; and what it is told, as HTTP puts it."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from urllib.parse import parse_qsl

import orjson

from reference_apps.asgi import JSON, Answer, Headers, deadline_of, problem
from reference_apps.broker import JOB_ID_CHARS, KEY_MAX_CHARS
from reference_apps.job_webhook import CallbackError, checked_callback
from reference_apps.result_watch import Seen
from reference_apps.results import described
from stages.queue import Queue

STATUS = {
    "bad_input": 422,
    "not_found": 404,
    "model_error": 500,
    "deadline": 504,
    "upstream_timeout": 504,
    "queue_full": 503,
    "gateway_full": 503,
    "draining": 503,
    "broker_down": 503,
}
_STATES = {"waiting": "waiting", "leased": "running", "delayed": "delayed"}
_JOB = re.compile(rf"[0-9A-Z]{{{JOB_ID_CHARS}}}")
_KEY = re.compile(rf"[\x21-\x7e]{{1,{KEY_MAX_CHARS}}}")


class RefusedError(Exception):
    """A request that gets a problem for an answer: the reason is one of STATUS, the text is for the client."""

    def __init__(self, reason: str, detail: str, status: int | None = None) -> None:
        super().__init__(detail)
        self.reason, self.status = reason, status or STATUS[reason]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a POST says beside its body. `wait_s`: how long it waits for the result; 0 does not wait."""

    content_type: str
    shape: str
    priority: int
    key: str | None
    callback: str | None
    deadline_s: float | None  # from which nobody wants the answer any more
    own_deadline: bool  # it was the client that said so
    wait_s: float


def asked_of(query: bytes, headers: Headers, queue: Queue, waits: bool, default_s: float | None) -> Asked:
    """What a request asks for. `waits`: it is a POST /predict; `default_s` is the deadline of one that brings none.

    Raises RefusedError that says what to send instead.
    """
    words = dict(parse_qsl(query.decode("latin-1")))
    try:
        own_s = deadline_of(headers)
    except ValueError as error:
        raise RefusedError("bad_input", str(error)) from None
    deadline_s = own_s
    wait_s = 0.0
    if waits:
        wait_s = queue.request_reply_timeout_s if own_s is None else min(own_s, queue.request_reply_timeout_s)
        deadline_s = wait_s if own_s is not None or default_s is None else min(default_s, wait_s)
    return Asked(
        headers.get(b"content-type", b"").decode("latin-1"),
        headers.get(b"x-rung-shape", b"").decode("latin-1"),
        _priority(words.get("priority"), queue.priorities, waits),
        _key(headers.get(b"idempotency-key")),
        _callback(words.get("callback"), queue),
        deadline_s,
        own_s is not None,
        wait_s,
    )


def job_of(path: str) -> str:
    """The id in /jobs/{id}. Raises RefusedError for one that no job has."""
    job = path.removeprefix("/jobs/")
    if not _JOB.fullmatch(job):
        raise RefusedError("not_found", f"job: must be an id of {JOB_ID_CHARS} characters, as POST /jobs gives it.")
    return job


def wait_of(query: bytes, most_s: float) -> float:
    """The seconds of ?wait_s=, 0 without it. Raises RefusedError."""
    given = dict(parse_qsl(query.decode("latin-1"))).get("wait_s", "0")
    try:
        wait_s = float(given)
    except ValueError:
        wait_s = math.nan
    if not 0.0 <= wait_s <= most_s:
        raise RefusedError(
            "bad_input",
            f"wait_s: must be 0 to {most_s:g} seconds (queue.poll_wait_max_s), got {given[:40]}. Ask again instead.",
        )
    return wait_s


def accepted(job: str, duplicate: bool) -> Answer:
    """202, and where to look."""
    place = f"/jobs/{job}"
    content = {"job": job, "status": "accepted", "duplicate": duplicate, "location": place}
    return 202, [(b"content-type", JSON), (b"location", place.encode())], orjson.dumps(content)


def told(job: str, seen: Seen) -> Answer:
    """What is known of a job, for GET /jobs/{id}. Raises RefusedError where there is no such job."""
    headers = [(b"content-type", JSON)]
    if seen.over and seen.result is not None:
        if seen.result.record:
            headers.append((b"x-rung-record", seen.result.record.encode()))
        return 200, headers, described(seen.result)
    if (found := seen.found) is None:
        raise RefusedError("not_found", f"{job}: is no job, or its result is gone (queue.result_ttl_s).")
    content: dict[str, object] = {"job": job, "attempts": found.attempts}
    if found.state == "dead":
        error = {"title": "model_error", "detail": found.error}
        return 200, headers, orjson.dumps(content | {"status": "dead", "outcome": "failed", "error": error})
    if found.error:
        content["last_error"] = found.error
    headers.append((b"retry-after", b"1"))
    return 200, headers, orjson.dumps(content | {"status": _STATES[found.state]})


def replied(job: str, seen: Seen, asked: Asked, came_s: float) -> Answer:
    """The answer to a POST /predict, as a replica's. Raises RefusedError where there is none."""
    result = seen.result if seen.over else None
    if result is not None and result.outcome == "ok":
        now_s = time.monotonic()
        own = f"gateway_in_s={came_s:.6f},gateway_out_s={now_s:.6f}"
        record = f"{result.record},{own}" if result.record else own
        content = {"model": result.model, "version": result.version, **orjson.loads(result.answer)}
        headers = [(b"content-type", JSON), (b"x-rung-record", record.encode()), (b"x-rung-job", job.encode())]
        return 200, headers, orjson.dumps(content)
    if result is not None:
        error = orjson.loads(result.answer)
        title = str(error["title"])
        raise RefusedError(title if title in STATUS else "model_error", str(error["detail"]))
    if seen.found is None:
        raise RefusedError("not_found", f"{job}: its result is gone (queue.result_ttl_s). Use another Idempotency-Key.")
    if seen.found.state == "dead":
        raise RefusedError("model_error", seen.found.error)
    if asked.own_deadline:
        raise RefusedError("deadline", f"The deadline passed before the job was done. What becomes of it: /jobs/{job}")
    raise RefusedError(
        "upstream_timeout",
        f"No worker answered within {asked.wait_s:g} s (queue.request_reply_timeout_s). Look at /jobs/{job}",
    )


def refused(error: RefusedError, retry_after_s: float, job: str = "") -> Answer:
    """A problem as RFC 9457 puts it, with the job where there is one."""
    answer = problem(error.status, error.reason, str(error), retry_after_s if error.status == 503 else None)
    if job:
        answer[1].append((b"x-rung-job", job.encode()))
    return answer


def _priority(given: str | None, priorities: int, waits: bool) -> int:
    if given is None:
        return 0 if waits else min(1, priorities - 1)  # whoever waits goes first
    if not given.isdecimal() or len(given) > 3 or int(given) >= priorities:
        raise RefusedError(
            "bad_input",
            f"priority: must be a whole number from 0, which goes first, to {priorities - 1} (queue.priorities), "
            f"got {given[:40]}. Leave it out for 1.",
        )
    return int(given)


def _key(given: bytes | None) -> str | None:
    if given is None:
        return None
    key = given.decode("latin-1")
    if not _KEY.fullmatch(key):
        raise RefusedError(
            "bad_input",
            f"Idempotency-Key: must be 1 to {KEY_MAX_CHARS} visible characters without spaces, got {len(key)} "
            "characters. Two requests with the same one are one job. Use a UUID.",
        )
    return key


def _callback(given: str | None, queue: Queue) -> str | None:
    if given is None:
        return None
    if queue.webhook_secret_env is None:
        raise RefusedError(
            "bad_input",
            "callback: needs queue.webhook_secret_env, which this stage has not. Receivers could not tell its "
            "callbacks from anybody's. Look at the job's Location instead.",
        )
    try:
        return checked_callback(given, queue.webhook_private)
    except CallbackError as error:
        raise RefusedError("bad_input", str(error)) from None
