"""The gateway's outer side: where it listens, over what, and whom it lets in.

    client ── TLS ──▶ key? ──▶ gateway            off on loopback, unless the stage says otherwise

What can be done to the fleet (scaling, drills, restarts) is reachable through files of this machine only, never here.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import ssl
from collections.abc import Mapping

from stages.fleet import Edge

API_KEY_LENGTH_MIN = 16
# What a bearer token may be made of (RFC 6750).
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")


class EdgeError(ValueError):
    """The gateway must not listen like that; the text says why and what to do."""


class Keys:
    """The keys that are believed. An empty set of them lets everybody in."""

    def __init__(self, keys: tuple[str, ...] = ()) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admits(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a request with these headers brings a key: `authorization: Bearer KEY` or `x-api-key: KEY`.

        Digests of one length are compared, each in constant time and all of them, so that the time tells nothing.
        """
        if not self._digests:
            return True
        given = headers.get(b"x-api-key")
        if given is None:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer":
                return False
        digest = hashlib.sha256(given.strip()).digest()
        known = False
        for each in self._digests:
            known |= hmac.compare_digest(each, digest)
        return known


def checked_keys(edge: Edge, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The keys of an edge out of the environment; none where it asks for none. Raises EdgeError for unfit ones.

    That an edge beyond loopback asks for keys, and that its TLS files are there, are rules of the stage.
    """
    if edge.api_keys_env is None:
        return ()
    keys = tuple(key.strip() for key in environment.get(edge.api_keys_env, "").split(",") if key.strip())
    if not keys:
        raise EdgeError(
            f"{edge.api_keys_env}: must hold the keys of gateway.edge.api_keys_env, separated by commas, and is empty. "
            f"Nobody could get in. Try: export {edge.api_keys_env}=$(openssl rand -hex 24)"
        )
    for number, key in enumerate(keys, start=1):
        if len(key) < API_KEY_LENGTH_MIN or not _TOKEN.fullmatch(key):
            raise EdgeError(
                f"{edge.api_keys_env}: key {number} must have at least {API_KEY_LENGTH_MIN} characters out of letters, "
                f"digits and ._~+/-, got {len(key)} characters. It could be guessed, or not be sent. "
                "Try: openssl rand -hex 24"
            )
    return keys


def checked_tls(edge: Edge) -> None:
    """Reads certificate and key of an edge as its server will; nothing where it has none. Raises EdgeError."""
    if edge.tls_certificate is None:
        return
    try:
        # A key with a password would otherwise ask for it at a terminal that nobody watches.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            edge.tls_certificate, edge.tls_key, lambda: ""
        )
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise EdgeError(
            "gateway.edge.tls_certificate, gateway.edge.tls_key: must be a certificate and its key, both as PEM and "
            f"without a password, got {edge.tls_certificate} and {edge.tls_key} ({error}). Nobody could connect. "
            "Convert them, as with: openssl x509 -inform DER -in CERTIFICATE -out CERTIFICATE.pem"
        ) from None


def client_url(edge: Edge, port: int) -> str:
    """Where clients on this machine reach the gateway."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(edge.host, edge.host)
    shown = f"[{host}]" if ":" in host else host
    return f"{'http' if edge.tls_certificate is None else 'https'}://{shown}:{port}"
