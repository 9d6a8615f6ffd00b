"""The words for what became of a request, the same in both worlds; without polars, which a gateway has no use for."""

from __future__ import annotations

OUTCOMES = ("ok", "shed", "timed_out", "failed")
REASONS = (
    "",
    "queue_full",
    "deadline",
    "client_timeout",
    "draining",
    "connection",
    "bad_input",
    "model_error",
    "unfinished",
    "gateway_full",
    "no_replica",
    "upstream_lost",
    "upstream_timeout",
)

# What a look into the gateway's cache gave: the answer, the wait for that of another request, or neither.
CACHE = ("", "hit", "joined", "miss")

# Which version of the model a request was for, where two are in production.
ARMS = ("", "champion", "challenger")
