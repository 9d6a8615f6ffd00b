"""Which inputs does a version fail on that fails on a share of all inputs? Always the same ones.

    input ──▶ position in [0, 1), as good as drawn at random ──▶ below the share? ──▶ the model raises

Moving the share up adds inputs and lets none go. Both worlds ask here: a running model with the bytes of its decoded
input, the simulator with the number of the item, or with the positions that a load test's bodies really have.
"""

from __future__ import annotations

import hashlib


def position(of: bytes) -> float:
    """Where an input stands in [0, 1): the first 53 bits of a keyed BLAKE2b digest of its bytes, which fill a float."""
    digest = hashlib.blake2b(of, digest_size=8, person=b"rung crashing").digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def crashes(position: float, share: float) -> bool:
    """Whether a version that fails on `share` of all inputs fails on the one at `position`; 0 for none, 1 for all."""
    return position < share


def item_position(item: int | str) -> float:
    """Where an item stands whose bytes nobody has: by its number. As many items crash as inputs would, other ones."""
    return position(str(item).encode())
