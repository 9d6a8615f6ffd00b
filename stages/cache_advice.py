"""The advice of [cache] and of drifting popularity, as stages/advice.py has it for the other tables."""

from __future__ import annotations

ADVICE: dict[str, tuple[str, str]] = {
    "cache": ("It says which answers the gateway keeps.", "Leave [cache] out to compute every answer."),
    "cache.policy": ("Entries go by no other rule.", 'Use "lru" to begin with.'),
    "cache.max_bytes": ("Not even one answer would fit.", "Use 67108864 (64 MiB)."),
    "cache.ttl_s": ("Every answer would be too old at once.", "Use 60.0, or leave it out to keep answers for ever."),
    "cache.single_flight": (
        "It says whether requests wait for an answer that is being computed.",
        "Leave it out for true.",
    ),
    "cache.store": (
        "Answers are kept nowhere else.",
        'Use "process"; "redis" is for several gateways that share their answers.',
    ),
    "cache.url_env": (
        "A URL may hold a password: it is read from the environment, and never stands in a file that is shared.",
        'Write url_env = "RUNG_CACHE_URL", and set that variable to a URL such as redis://127.0.0.1:6379/0.',
    ),
    "cache.timeout_s": ("Every look would be a miss.", "Use 0.02."),
    "cache.down_s": ("A store that is down would be asked for every request.", "Use 1.0."),
    "traffic.items.drift_interval_s": (
        "Ranks are exchanged at the end of each interval.",
        "Use 10.0, or leave it out for a popularity that stays.",
    ),
    "traffic.items.drift_share": (
        "It is the share of the items that exchange their ranks.",
        "Use 0.1 for a tenth of them.",
    ),
}

TOO_HIGH: dict[str, tuple[str, str]] = {
    "cache.timeout_s": (
        "A request would wait longer for a kept answer than a replica takes to compute it.",
        "Use 0.02.",
    ),
    "traffic.items.drift_share": ("There are no more items than all of them.", "Use 0.1 for a tenth of them."),
}
