"""GET from servers of this machine: directly, in a bounded time, with the key and the certificate of the stage."""

from __future__ import annotations

import http.client
import os
import ssl
import time
import urllib.request
from collections.abc import Callable, Mapping

from stages.fleet import Edge

POLL_S = 0.02


def open_url(url: str, timeout_s: float, edge: Edge | None = None) -> http.client.HTTPResponse:
    """The answer to GET `url`, asked directly: a proxy out of the environment does not know this machine's ports.

    `edge` is given where a gateway is asked: its key goes with the request, its certificate is the one believed.
    Raises OSError when there is no answer, and http.client.HTTPException when it is no HTTP.
    """
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if edge is not None and edge.tls_certificate is not None:
        handlers.append(urllib.request.HTTPSHandler(context=_believes(edge.tls_certificate)))
    request = urllib.request.Request(url, headers=key_headers(edge))
    response: http.client.HTTPResponse = urllib.request.build_opener(*handlers).open(request, timeout=timeout_s)
    return response


def probe(url: str, timeout_s: float = 1.0, edge: Edge | None = None) -> bool:
    """True when `url` answers 200 within the timeout."""
    try:
        with open_url(url, timeout_s, edge) as response:
            return bool(response.status == 200)
    except (http.client.HTTPException, OSError):
        return False


def key_headers(edge: Edge | None, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The header that lets this machine's own tools through the gateway: the first of its keys, if it wants one."""
    if edge is None or edge.api_keys_env is None:
        return {}
    first = environment.get(edge.api_keys_env, "").split(",")[0].strip()
    return {"authorization": f"Bearer {first}"} if first else {}


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Polls until `condition` holds; False when it does not within the timeout."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(POLL_S)
    return True


def _believes(certificate: str) -> ssl.SSLContext:
    """Trusts this certificate and what it signed, under any name: the server is asked by its address."""
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
