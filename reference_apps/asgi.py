"""What the bare-ASGI paths share: a body read whole, an answer sent, an error as RFC 9457 puts it."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import orjson
from starlette.types import Receive, Send

Headers = dict[bytes, bytes]
Answer = tuple[int, list[tuple[bytes, bytes]], bytes]  # status, headers, content

JSON = b"application/json"
PROBLEM = b"application/problem+json"


class ClientGoneError(ConnectionError):
    """The client went away within its request."""


async def read_body(receive: Receive, limit_bytes: int) -> bytes | None:
    """The whole body, or None when it is longer than `limit_bytes`; what is over is read and thrown away.

    Raises ClientGoneError when the client leaves before its end.
    """
    message = await receive()
    body: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body", False):
        return body if len(body) <= limit_bytes else None
    parts, size = [body], len(body)
    while message.get("more_body", False):
        message = await receive()
        part = message.get("body", b"")
        size += len(part)
        if size <= limit_bytes:
            parts.append(part)
    if message["type"] != "http.request":
        raise ClientGoneError
    return b"".join(parts) if size <= limit_bytes else None


class Patience:
    """Cancels the task that serves a client when that client goes away, or at `gives_up_s` of the monotonic clock.

    Which of the two it was stands in `gone` and `over`. Cheaper than asyncio.timeout and a wait for two things.
    """

    __slots__ = ("_alarm", "_listening", "_receive", "_task", "gone", "over")

    def __init__(self, receive: Receive, gives_up_s: float) -> None:
        self.gone = self.over = False
        self._receive = receive
        self._task = asyncio.current_task()
        self._listening: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        self._alarm = loop.call_later(max(0.0, gives_up_s - time.monotonic()), self._time_is_over)

    def listen(self) -> None:
        """The body has been read: what comes next is the client's leaving."""
        self._listening = asyncio.create_task(self._await_leaving())

    def end(self) -> None:
        """There is something to tell: nothing cancels the task any more."""
        self._alarm.cancel()
        self._task = None
        if self._listening is not None:
            self._listening.cancel()

    async def _await_leaving(self) -> None:
        await self._receive()
        if self._task is not None and not self.over:
            self.gone = True
            self._task.cancel()

    def _time_is_over(self) -> None:
        if self._task is not None and not self.gone:
            self.over = True
            self._task.cancel()


async def send_answer(send: Send, answer: Answer) -> None:
    """Sends a whole answer with its length."""
    status, headers, content = answer
    headers.append((b"content-length", b"%d" % len(content)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def problem(status: int, title: str, detail: str, retry_after_s: float | None = None) -> Answer:
    """An error as RFC 9457 puts it, application/problem+json; `title` is one of stages.outcomes.REASONS."""
    headers = [(b"content-type", PROBLEM)]
    if retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(retry_after_s))))
    return status, headers, orjson.dumps({"title": title, "status": status, "detail": detail})


def too_long(limit_bytes: int) -> str:
    """What to tell about a body over the limit."""
    return f"body: must be at most {limit_bytes} bytes (admission.max_body_bytes). Send a smaller input."


def deadline_of(headers: Headers) -> float | None:
    """The seconds after which the client will not wait any more, if it says so. Raises ValueError with what to send."""
    if (given := headers.get(b"x-rung-deadline-s")) is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0.0 < seconds < math.inf:
        shown = given.decode("latin-1")[:40]
        raise ValueError(f"x-rung-deadline-s: must be seconds greater than 0, got {shown}. Leave it out to wait.")
    return seconds


# How the documentation's pages describe POST /predict.
PREDICT_BODY: dict[str, Any] = {
    "parameters": [
        {
            "name": "x-rung-shape",
            "in": "header",
            "schema": {"type": "string"},
            "description": "with raw float32: 8x8",
        },
        {"name": "x-rung-deadline-s", "in": "header", "schema": {"type": "number", "exclusiveMinimum": 0}},
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["input"],
                    "properties": {
                        "input": {"type": "array", "items": {}, "description": "nested to the model's shape"}
                    },
                }
            },
            "image/png": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    },
}
