"""The advice of [fleet] and [gateway], as stages/advice.py has it for the other tables."""

from __future__ import annotations

_NO_RETRY_NUMBER = ("It counts tries beyond the first.", "Use 1, or 0 for no retry.")
_PROBES = ("One probe at least must say so.", "Use 2: one lost packet is then no illness.")

ADVICE: dict[str, tuple[str, str]] = {
    "fleet": ("It says how many replicas there are.", "Leave [fleet] out for one."),
    "fleet.replicas": ("Nobody would answer.", "Use 1, or more with a [gateway]."),
    "fleet.profiles": (
        "It says which devices unequal replicas emulate.",
        'Write profiles = ["…", "…"], or leave it out.',
    ),
    "gateway": ("It gives several replicas one address.", "Leave [gateway] out where there is one replica."),
    "gateway.engine": ("No other gateway is started.", 'Use "rung"; "nginx" is for docker.'),
    "gateway.policy": ("Requests are shared out in no other way.", 'Use "least-outstanding" to begin with.'),
    "gateway.sticky_load_bound": (
        "Below a fair share there would be requests that no replica may take.",
        "Use 1.25 for a quarter more than its fair share.",
    ),
    "gateway.max_in_flight": ("Every request would be refused.", "Use 1024."),
    "gateway.connections_per_replica": ("A request needs a connection to its replica.", "Use 512."),
    "gateway.connect_timeout_s": ("No connection could be made in time.", "Use 1.0."),
    "gateway.upstream_timeout_s": ("No replica could answer in time.", "Use 30.0."),
    "gateway.retries_max": _NO_RETRY_NUMBER,
    "gateway.retry_budget_share": ("It is a share of the requests.", "Use 0.2, or 0.0 for no retry."),
    "gateway.probe_interval_s": ("Probes would follow each other without a pause.", "Use 1.0."),
    "gateway.probe_timeout_s": ("Every probe would fail.", "Use 0.5."),
    "gateway.unhealthy_after": _PROBES,
    "gateway.healthy_after": _PROBES,
    "gateway.eject_after": ("A replica would be ejected before it failed.", "Use 3."),
    "gateway.eject_s": ("An ejected replica would be back at once.", "Use 5.0."),
    "gateway.edge": ("It says where the gateway listens.", "Leave [gateway.edge] out for a free port of 127.0.0.1."),
    "gateway.edge.host": ("The gateway must listen somewhere.", 'Use "127.0.0.1".'),
    "gateway.edge.port": ("Ports are numbered from 0 on.", "Use 0 for a free one."),
    "gateway.edge.api_keys_env": (
        "Keys are read from the environment, and never stand in a file that is shared.",
        'Write api_keys_env = "RUNG_API_KEYS", and set that variable to keys separated by commas.',
    ),
    "gateway.edge.tls_certificate": ("TLS needs a certificate.", "Give the path of a PEM file."),
    "gateway.edge.tls_key": ("TLS needs the key of its certificate.", "Give the path of a PEM file."),
}

TOO_HIGH: dict[str, tuple[str, str]] = {
    "gateway.retry_budget_share": (
        "More retries than requests would make any failure an overload.",
        "Use 0.2 for one retry to five requests.",
    ),
    "gateway.edge.port": ("Ports are numbered up to 65535.", "Use 0 for a free one."),
}

UNITS = {
    "replicas": "replicas",
    "max_in_flight": "requests",
    "connections_per_replica": "connections",
    "retries_max": "retries",
    "unhealthy_after": "probes",
    "healthy_after": "probes",
    "eject_after": "requests",
}
