"""Callbacks of jobs: signed, tried again with growing pauses, to public addresses alone; they outlive a restart.

    results ── due ──▶ ours for a lease ──▶ resolved ─▶ public? ─▶ POST, signed ──▶ receiver
       ▲ told: 2xx, or given up ◀───────────────────────────────────────────────────────┤
       └ put_off by 1, 2, 4 … s ◀────────────────────────────────────────── anything else ┘

Who calls back by an address that a client chose can be sent into its own network. So only http and https are taken; a
name is resolved here, every address it has must be public, and the connection goes to the very address that was looked
at; redirections are not followed, and no proxy is asked. `queue.webhook_private = true` lets loopback and private
addresses in, for receivers of the same network. A callback may come twice, if its answer was lost: `job` tells. No
twin: the simulator calls nobody.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import ipaddress
import logging
import math
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self
from urllib.parse import urlsplit

from reference_apps.logs import fields
from reference_apps.results import Result, Results, ResultsDownError, described
from stages.policies.queueing import retry_delay_s

TIMESTAMP, SIGNATURE = "x-rung-timestamp", "x-rung-signature"
SECRET_LENGTH_MIN = 16
URL_LENGTH_MAX = 2048
# A receiver has so long to take a connection or to say a byte, and so long in all, from the look-up of its name on; a
# look-up itself cannot be broken off, and has the limits of the system's resolver.
QUIET_TIMEOUT_S, WHOLE_TIMEOUT_S = 5.0, 10.0
FIRST_PAUSE_S, PAUSE_MAX_S = 1.0, 300.0
SENDERS = 8
ADDRESSES_MAX = 4  # of one host that are tried
LEASE_S = 60.0  # a callback of a process that died meanwhile is somebody else's then
LOOK_S, DOWN_S = 0.2, 1.0  # between looks, and while nothing can be looked for

# IPv6 addresses that stand for one of IPv4 each (RFC 6052).
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

log = logging.getLogger("rung.callbacks")


class CallbackError(ValueError):
    """An address, or a secret, that cannot be used; the text says why and what to do."""


def secret_of(variable: str | None, environment: Mapping[str, str] = os.environ) -> bytes | None:
    """The secret that signs callbacks; None where the stage names no variable. Raises CallbackError."""
    if variable is None:
        return None
    secret = environment.get(variable, "").strip().encode()
    if len(secret) < SECRET_LENGTH_MIN:
        raise CallbackError(
            f"{variable}: must hold the secret of queue.webhook_secret_env, at least {SECRET_LENGTH_MIN} characters, "
            f"got {len(secret)}. Receivers could not tell our callbacks from anybody's. "
            f"Try: export {variable}=$(openssl rand -hex 24)"
        )
    return secret


def signature(secret: bytes, timestamp: int, body: bytes) -> str:
    """What x-rung-signature says: HMAC-SHA256 over the timestamp, a dot and the body, in hexadecimal."""
    return "sha256=" + hmac.new(secret, b"%d.%b" % (timestamp, body), hashlib.sha256).hexdigest()


def is_ours(secret: bytes, headers: Mapping[str, str], body: bytes, now_s: float, within_s: float = 300.0) -> bool:
    """What a receiver asks: whether the body was signed with the secret, at most `within_s` seconds ago."""
    try:
        timestamp = int(headers.get(TIMESTAMP, ""))
    except ValueError:
        return False
    wanted = signature(secret, timestamp, body)
    return hmac.compare_digest(wanted, headers.get(SIGNATURE, "")) and abs(now_s - timestamp) <= within_s


def checked_callback(url: str, private: bool) -> str:
    """The address, if it may be called as far as it can be seen without resolving it. Raises CallbackError."""
    try:
        parts = urlsplit(url)
        port_is_sound = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_sound = urlsplit(""), False
    sound = parts.scheme in ("http", "https") and parts.hostname and port_is_sound and "@" not in parts.netloc
    if not sound or len(url) > URL_LENGTH_MAX or not url.isascii() or any(c <= " " for c in url):
        raise CallbackError(
            f"callback: must be an address that begins with http:// or https://, without a user and of at most "
            f"{URL_LENGTH_MAX} characters, got {url[:80]!r}. Nobody could be told. Send the address of your receiver."
        )
    host = str(parts.hostname)
    if not private and _is_within(host):
        raise CallbackError(
            f"callback: must be a public address, got {host}. A client could have this service call its own network. "
            "Use a public address, or set queue.webhook_private = true where receivers are within."
        )
    return url


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's; those that wrap another are what they wrap."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        wrapped = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            wrapped = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if wrapped is not None:
            ip = wrapped
    return ip.is_global and not ip.is_multicast


class Callbacks:
    """Tells what is due, from threads of its own. A context manager; any number of processes may do it at once."""

    def __init__(
        self,
        results: Results,
        secret: bytes,
        attempts_max: int,
        private: bool = False,
        first_pause_s: float = FIRST_PAUSE_S,
        ended: Callable[[str], None] = lambda _: None,  # is told "delivered", "put_off" or "given_up" of each try
    ) -> None:
        self._results, self._secret = results, secret
        self._attempts_max, self._private, self._first_pause_s = attempts_max, private, first_pause_s
        self._ended = ended
        self._closing = threading.Event()
        self._free = threading.Semaphore(SENDERS)
        self._pool = ThreadPoolExecutor(SENDERS, "callback")
        self._thread = threading.Thread(target=self._run, name="callbacks", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """What is not told by now is told by whoever comes next."""
        self._closing.set()
        self._thread.join(2 * WHOLE_TIMEOUT_S)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self) -> None:
        while not self._closing.wait(LOOK_S):
            try:
                while not self._closing.is_set() and self._send_some():
                    pass
            except ResultsDownError as error:
                log.warning("callbacks wait", extra=fields(why=str(error)))
                self._closing.wait(DOWN_S)
            except Exception:
                log.exception("callbacks wait")
                self._closing.wait(DOWN_S)

    def _send_some(self) -> bool:
        """Hands what is due to the free senders; False when there is nothing, or nobody."""
        if not self._results.any_due(time.time()):
            return False
        free = 0
        while free < SENDERS and self._free.acquire(blocking=False):
            free += 1
        due: list[Result] = []
        try:
            due = self._results.due(time.time(), free, LEASE_S) if free else []
        finally:
            for _ in range(free - len(due)):
                self._free.release()
        for result in due:
            self._pool.submit(self._tell, result)
        return bool(due)

    def _tell(self, result: Result) -> None:
        """One try for one callback, and what follows from it."""
        try:
            why = self._post(result)
            tries = result.callback_attempts
            last = tries >= self._attempts_max or why in ("status 410", "not a public address")
            how = "delivered" if not why else "given_up" if last else "put_off"
            if why:
                host = urlsplit(result.callback or "").hostname  # the rest of the address may hold a secret
                told = fields(job=result.job, host=host, why=why, tries=tries)
                log.log(logging.ERROR if last else logging.WARNING, "callback not taken", extra=told)
            if how == "put_off":
                self._results.put_off(result, time.time() + retry_delay_s(tries, self._first_pause_s, PAUSE_MAX_S))
            else:
                self._results.told(result)
            self._ended(how)
        except ResultsDownError as error:  # it comes again when its lease is over
            log.warning("callback not noted", extra=fields(job=result.job, why=str(error)))
        except Exception:
            log.exception("callback failed")
        finally:
            self._free.release()

    def _post(self, result: Result) -> str:
        """Posts once; "" when it was taken, and otherwise what went wrong."""
        parts = urlsplit(result.callback or "")
        host, tls = str(parts.hostname), parts.scheme == "https"
        port = parts.port or (443 if tls else 80)
        deadline_s = time.monotonic() + WHOLE_TIMEOUT_S
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return "no such host"
        addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
        if not self._private and not all(map(is_public, addresses)):
            return "not a public address"
        body, timestamp = described(result), int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": "rung",
            TIMESTAMP: str(timestamp),
            SIGNATURE: signature(self._secret, timestamp, body),
        }
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection = (_PinnedTLS if tls else _Pinned)(host, port, addresses[:ADDRESSES_MAX])
        try:
            with connection.until(deadline_s):
                connection.request("POST", target, body, headers)
                status = connection.getresponse().status
        except (OSError, http.client.HTTPException, ValueError) as error:
            return type(error).__name__
        finally:
            connection.close()
        return "" if 200 <= status < 300 else f"status {status}"


class _Pinned(http.client.HTTPConnection):
    """A connection to one of the addresses of a host, whatever its name resolves to meanwhile."""

    def __init__(self, host: str, port: int, addresses: Sequence[str]) -> None:
        super().__init__(host, port, timeout=QUIET_TIMEOUT_S)
        self._addresses = addresses
        self._deadline_s = math.inf  # of the monotonic clock

    def connect(self) -> None:
        *others, last = self._addresses
        for address in others:
            with contextlib.suppress(OSError):
                self.sock = self._reached(address)
                return
        self.sock = self._reached(last)

    @contextlib.contextmanager
    def until(self, deadline_s: float) -> Iterator[None]:
        """Connects, and breaks off at that moment: a receiver may say a byte now and then for ever."""
        self._deadline_s = deadline_s
        alarm = threading.Timer(max(0.0, deadline_s - time.monotonic()), self._break_off)
        alarm.daemon = True
        alarm.start()
        try:
            self.connect()
            if time.monotonic() >= deadline_s:  # the alarm may have found nothing yet that it could break off
                raise TimeoutError
            yield
        finally:
            alarm.cancel()

    def _reached(self, address: str) -> socket.socket:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0.0:
            raise TimeoutError
        return socket.create_connection((address, self.port), min(QUIET_TIMEOUT_S, left_s))

    def _break_off(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            self.sock.shutdown(socket.SHUT_RDWR)


class _PinnedTLS(_Pinned):
    """The same over TLS, for which the certificate has to be of the host's name."""

    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        super().connect()
        try:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)
        except BaseException:
            self.sock.close()
            raise


def _is_within(host: str) -> bool:
    """Whether a host is seen to be of this machine or network; a name has to be resolved for more than that."""
    try:
        return not is_public(host)
    except ValueError:  # a name
        return host == "localhost" or host.endswith(".localhost")
