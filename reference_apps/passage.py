"""One request on its way through a gateway: what goes on to the replica, how a try ended, what is told at the end."""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from reference_apps.asgi import Answer, Headers, deadline_of, problem
from reference_apps.rotation import Replica
from reference_apps.upstream import Reply
from stages.outcomes import REASONS
from stages.policies import admission as admits
from stages.spec import Stage

# What a client's reason makes of its request, where it is not "failed".
OUTCOMES = {
    "": "ok",
    "queue_full": "shed",
    "draining": "shed",
    "gateway_full": "shed",
    "no_replica": "shed",
    "deadline": "timed_out",
    "upstream_timeout": "timed_out",
}
NO_KEY = (
    "This service needs a key. Send it as `authorization: Bearer KEY` or `x-api-key: KEY`; whoever runs it has them."
)
# An id that a client may choose: it stands in logs and headers as it is.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_TICKET = re.compile(rb"[0-9]{1,15}-[0-9]{1,15}")
_USER = re.compile(rb"[\x21-\x7e]{1,128}")
_OURS = os.urandom(8).hex().encode()  # of this process; a number follows
_numbers = itertools.count(1)
_PASSED_ON = (b"content-type", b"x-rung-shape")


class Room:
    """A place that holds so many requests at once, used as `with room:`. Who enters looks first whether it is full."""

    def __init__(self, most: int) -> None:
        self.inside, self._most = 0, most

    @property
    def full(self) -> bool:
        return not admits.room(self.inside, self._most)

    def __enter__(self) -> None:
        self.inside += 1

    def __exit__(self, *_: object) -> None:
        self.inside -= 1


class Ended(NamedTuple):
    """How one try ended: with a reply of any status, or with none. `reason` is one of stages.outcomes.REASONS."""

    reason: str
    sent: bool
    reply: Reply | None


@dataclass(slots=True)
class Request:
    """One request on its way. Times are seconds of the monotonic clock."""

    request_id: bytes
    key: str  # of sticky balancing
    headers: list[tuple[bytes, bytes]]  # for the replica
    deadline_s: float | None  # of the client or the stage, from which nobody waits any more
    gives_up_s: float
    ticket: str | None = None  # its place in the schedule of a load test
    body: bytes = b""
    came_s: float = 0.0  # when it had been read
    at: Replica | None = None  # where it is now
    tried: list[int] = field(default_factory=list)
    digest: bytes = b""  # of what its answer depends on, where there is a cache
    cache: str = ""  # what that had for it: "hit", "joined" or "miss"
    user: str = ""  # who sends it, if it says so
    arm: str = ""  # the version of the model that answers it, where there are two
    forced: bool = False  # it said itself which

    @property
    def split_as(self) -> str:
        """What its arm follows from where no user does: its number in a load test, or its id."""
        return self.request_id.decode("latin-1") if self.ticket is None else self.ticket.partition("-")[2]

    def headers_with(self, left_s: float) -> list[tuple[bytes, bytes]]:
        """What goes to a replica that has so many seconds for it."""
        return [*self.headers, (b"x-rung-deadline-s", b"%.6f" % left_s)]


def request_id_of(headers: Headers) -> bytes:
    """The client's name for its request, if it is sane; a new one otherwise."""
    given = headers.get(b"x-request-id", b"")
    return given if _REQUEST_ID.fullmatch(given) else b"%b%016x" % (_OURS, next(_numbers))


def request_of(stage: Stage, headers: Headers, request_id: bytes, began_s: float) -> Request:
    """The request with these headers, which began to come at `began_s`. Raises ValueError for a deadline that is none.

    A deadline of its own bounds the wait for an answer; that of the stage bounds the wait in a replica's queue, as it
    does where there is no gateway.
    """
    assert stage.gateway is not None
    own_s, limit_s = deadline_of(headers), stage.gateway.upstream_timeout_s
    waits_s = own_s if own_s is not None else stage.admission.deadline_s
    return Request(
        request_id,
        headers.get(b"x-rung-key", request_id).decode("latin-1"),
        [(name, headers[name]) for name in _PASSED_ON if name in headers] + [(b"x-request-id", request_id)],
        deadline_s=None if waits_s is None else began_s + waits_s,
        gives_up_s=began_s + (limit_s if own_s is None else min(own_s, limit_s)),
        ticket=_ticket_of(headers),
        user=_user_of(headers),
    )


def _ticket_of(headers: Headers) -> str | None:
    """The ticket that a load test gives a request; None where there is none, or nonsense."""
    given = headers.get(b"x-rung-request", b"")
    return given.decode() if _TICKET.fullmatch(given) else None


def _user_of(headers: Headers) -> str:
    """Who sends the request, if it says so and the name is sane."""
    given = headers.get(b"x-rung-user", b"")
    return given.decode("ascii") if _USER.fullmatch(given) else ""


def reason_of(reply: Reply) -> str:
    """The reason of stages.outcomes.REASONS that a replica's answer gives; a strange one is taken for an error."""
    if reply.status == 200:
        return ""
    if reply.status < 500:
        return "bad_input"
    try:
        title = str(orjson.loads(reply.content)["title"])
    except (ValueError, KeyError, TypeError):
        title = ""
    return title if title and title in REASONS else "model_error"


def refusal(stage: Stage, reason: str) -> Answer:
    """What is told where no replica's own words can be."""
    assert stage.gateway is not None
    status, text = {
        "gateway_full": (503, f"{stage.gateway.max_in_flight} requests are inside the gateway, or every replica has "
                              f"its {stage.gateway.connections_per_replica}. Try again later."),
        "no_replica": (503, "No replica is in rotation. Try again later."),
        "upstream_lost": (502, "The replica went away before it had answered."),
        "upstream_timeout": (504, f"No replica answered within {stage.gateway.upstream_timeout_s:g} s."),
        "deadline": (504, "The deadline passed before a replica had answered."),
    }[reason]  # fmt: skip
    return problem(status, reason, text, stage.admission.retry_after_s if status == 503 else None)
