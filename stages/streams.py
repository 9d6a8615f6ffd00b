"""Named streams of random numbers: one seed, one independent generator for each source of chance."""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, name: str, index: int | None = None) -> np.random.Generator:
    """A generator for the source `name` under `seed`; the same pair gives the same numbers on every machine.

    A stream a source keeps runs comparable: drawing more service times does not move a single arrival. `index`
    tells apart many sources of one name, such as users (a number in the name could collide in its checksum).
    """
    spawn_key = (zlib.crc32(name.encode()),) if index is None else (zlib.crc32(name.encode()), index)
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=spawn_key))
