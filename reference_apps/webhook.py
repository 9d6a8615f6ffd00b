"""Alerts to whoever wants to hear of them: posted as JSON, from a thread of their own, so that nothing waits for it.

    offer ──▶ [ bounded queue ] ──▶ POST, again after 0.5, 1, 2 … s ──▶ receiver
                 │ full: left out, and said in the log                │ given up, and said in the log

A receiver that sends us elsewhere has not taken the message: the address has to be corrected.
The address stands in the environment and is never written to a log: it may hold a secret. No twin: the simulator
tells nobody.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import orjson

from reference_apps.logs import fields
from stages import alerts

FIRST_PAUSE_S, PAUSE_MAX_S = 0.5, 30.0
CLOSING_S = 3.0  # what waits when the stage ends has so long to go out

log = logging.getLogger("rung.webhook")


class _Stays(urllib.request.HTTPRedirectHandler):
    """Follows nobody elsewhere: urllib would ask there without the message, and take the answer for a delivery."""

    def redirect_request(self, *_: object) -> None:
        """None: the redirection is told as the error that it is."""


class WebhookError(ValueError):
    """There is no address to post to; the text says why and what to do."""


def address(settings: alerts.Webhook, environment: Mapping[str, str] = os.environ) -> str:
    """The receiver's address out of the environment. Raises WebhookError when it is none."""
    url = environment.get(settings.url_env, "")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        got = "something else" if url else "nothing"
        raise WebhookError(
            f"alerts.webhook.url_env: {settings.url_env} must hold an address that begins with http:// or https://, "
            f"got {got}. Nobody would hear of alerts. Set the variable, or leave [alerts.webhook] out."
        )
    return url


class Webhook:
    """Posts messages to `url` in the order in which they were offered. A context manager."""

    def __init__(self, url: str, settings: alerts.Webhook, first_pause_s: float = FIRST_PAUSE_S) -> None:
        self._url, self._settings, self._first_pause_s = url, settings, first_pause_s
        self._open = urllib.request.build_opener(_Stays).open
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(settings.queue_length_max)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._closing.set()
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)  # wakes the thread
        self._thread.join(CLOSING_S)

    def offer(self, message: dict[str, Any]) -> bool:
        """Takes a message along without waiting; False when too many wait already and it is left out."""
        try:
            self._waiting.put_nowait(message)
        except queue.Full:
            log.error("alert not posted: too many wait", extra=fields(alert=message.get("alert")))
            return False
        return True

    def _run(self) -> None:
        while not (self._closing.is_set() and self._waiting.empty()):
            if (message := self._waiting.get()) is not None:
                self._send(message)

    def _send(self, message: dict[str, Any]) -> None:
        pause_s = self._first_pause_s
        for tried in range(self._settings.retries_max + 1):
            why = self._post(message)
            if why == "":
                return
            last = tried == self._settings.retries_max or not _may_pass(why) or self._closing.is_set()
            level = logging.ERROR if last else logging.WARNING
            log.log(level, "alert not posted", extra=fields(alert=message.get("alert"), why=why, tries=tried + 1))
            if last or self._closing.wait(pause_s):
                return
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    def _post(self, message: dict[str, Any]) -> str:
        """Posts once; "" when it was taken, and otherwise what went wrong."""
        headers = {"content-type": "application/json", "user-agent": "rung"}
        request = urllib.request.Request(self._url, orjson.dumps(message), headers, method="POST")
        try:
            with self._open(request, timeout=self._settings.timeout_s):
                return ""
        except urllib.error.HTTPError as error:
            error.close()
            return f"status {error.code}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            return type(getattr(error, "reason", error)).__name__  # no text: it could have the address in it


def _may_pass(why: str) -> bool:
    """Whether trying again may help: not where the receiver understood the message and did not want it, or wants it
    to be sent elsewhere."""
    return not why.startswith(("status 3", "status 4")) or why in ("status 408", "status 429")
