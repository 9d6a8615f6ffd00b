"""Who gets which arm? A place on a line from 0 to 1 for each key, and the part of the line that is the challenger's.

    key, salt ── keyed BLAKE2b ──▶ bucket in [0, 1) ── below the share? ──▶ challenger, or else champion

    0         share               1    A share that grows gives the challenger those between its old and its new end,
    ├───────────┼─────────────────┤    and nobody else changes arm; one that shrinks gives them back. As long as it
      challenger      champion         stands still, nobody changes at all, whatever process asks.

Plain values in, plain values out, the same in both worlds. Not decided here: when a challenger is stopped
(stages/policies/guardrails.py), and which of an arm's replicas is next (stages/policies/balancing.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

Arm = Literal["champion", "challenger"]

_M, _R = 0x5BD1E995, 24  # of MurmurHash2
_WORD = 0xFFFFFFFF


class Wanted(NamedTuple):
    """What share the challenger is to have: a fixed one, that of a ramp, or none any more. Times of any one clock."""

    share: float
    ramp_began_s: float | None = None  # with it the ramp says the share
    stopped: str = ""  # the guardrail that stopped the challenger


def bucket(key: str, salt: str) -> float:
    """The place of a key in [0, 1), as good as drawn at random; another salt draws anew for all of them.

    The first 53 bits of a keyed BLAKE2b digest of 8 bytes, which fill a float. Python's own hash() of a text differs
    from process to process.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=8, key=_key_of(salt)).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def arm(bucket: float, share: float) -> Arm:
    """The arm of a key in that place: the challenger's below its share, which 1 gives everybody and 0 nobody."""
    return "challenger" if bucket < share else "champion"


def split_key(by: Literal["user", "request"], user: str, request: str) -> str:
    """What the arm follows from: the user, so that each keeps an arm, or the request. Who says no user is a request."""
    return user if by == "user" and user else request


def ramp_share(elapsed_s: float, shares: Sequence[float], step_duration_s: float) -> float:
    """The challenger's share so long after the ramp began: one step after the other, then the last; 0 before it."""
    if elapsed_s < 0.0:
        return 0.0
    return shares[min(int(elapsed_s / step_duration_s), len(shares) - 1)]


def share_at(wanted: Wanted, shares: Sequence[float], step_duration_s: float, now_s: float) -> float:
    """The challenger's share now; `shares` and `step_duration_s` are those of the ramp, if there is one."""
    if wanted.stopped:
        return 0.0
    if wanted.ramp_began_s is None:
        return wanted.share
    return ramp_share(now_s - wanted.ramp_began_s, shares, step_duration_s)


def bucket_of_nginx(key: str, salt: str) -> float:
    """The place that nginx's `split_clients` gives the same key: its MurmurHash2 (seed 0) over salt and key.

    nginx, src/core/ngx_murmurhash.c and src/http/modules/ngx_http_split_clients_module.c.
    """
    return murmur2(f"{salt}{key}".encode()) / 2**32


def murmur2(data: bytes) -> int:
    """MurmurHash2 of 32 bits with seed 0, by A. Appleby, as nginx computes it."""
    hashed, whole = len(data), len(data) & ~3
    for start in range(0, whole, 4):
        word = int.from_bytes(data[start : start + 4], "little") * _M & _WORD
        word = (word ^ word >> _R) * _M & _WORD
        hashed = (hashed * _M & _WORD) ^ word
    if whole < len(data):
        hashed = (hashed ^ int.from_bytes(data[whole:], "little")) * _M & _WORD
    hashed = (hashed ^ hashed >> 13) * _M & _WORD
    return hashed ^ hashed >> 15


@lru_cache(maxsize=16)
def _key_of(salt: str) -> bytes:
    """A salt of any length as a key, which BLAKE2b takes up to 64 bytes of."""
    return hashlib.blake2b(salt.encode(), digest_size=32, person=b"rung split").digest()
