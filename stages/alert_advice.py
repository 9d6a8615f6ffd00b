"""What follows when the rule of a key of [logs] or [alerts] is broken, and what to do; part of stages/advice.py."""

from __future__ import annotations

Advice = dict[str, tuple[str, str]]

_WINDOW = ("A rule looks back over some time.", "Use 30.0.")
_FOR = ("An alert cannot fire before its rule holds.", "Use 10.0, or 0.0 to fire at once.")
_ENABLED = ("It says whether the rule is asked.", "Write enabled = false to switch the rule off.")

ADVICE: Advice = {
    "logs": ("It says what the processes write down.", "Leave [logs] out for a line a request that went wrong."),
    "logs.level": ("Lines have no other level.", 'Use "info".'),
    "logs.requests": ("A request is written down when it went wrong, or always.", 'Use "errors".'),
    "logs.requests_max_rps": ("No request would be written down.", "Use 500.0."),
    "logs.requests_max_bytes": ("The log would be full at once.", "Use 268435456 (256 MiB)."),
    "alerts": ("It says what the stack watches.", "Leave [alerts] out for the rules that every stage has."),
    "alerts.interval_s": ("Reading the metrics takes the stack some time, too.", "Use 1.0."),
    "alerts.latency": ("It bounds a percentile of the latency.", "Leave it out to bound p95 by slo.latency_s."),
    "alerts.latency.enabled": _ENABLED,
    "alerts.latency.percentile": ("Percentiles are between 1 and 100.", "Use 95.0."),
    "alerts.latency.above_s": ("Every answer takes some time.", "Leave it out to take slo.latency_s."),
    "alerts.latency.window_s": _WINDOW,
    "alerts.latency.for_s": _FOR,
    "alerts.errors": ("It bounds the share of errors.", "Leave it out to bound it by 5 %."),
    "alerts.errors.enabled": _ENABLED,
    "alerts.errors.above_share": ("A share of requests is between 0 and 1.", "Use 0.05 for 5 %."),
    "alerts.errors.window_s": _WINDOW,
    "alerts.errors.for_s": _FOR,
    "alerts.queue": ("It bounds how full the queues are.", "Leave it out to bound it by 80 %."),
    "alerts.queue.enabled": _ENABLED,
    "alerts.queue.above_share": ("A share of the queue's room is between 0 and 1.", "Use 0.8 for 80 %."),
    "alerts.queue.window_s": _WINDOW,
    "alerts.queue.for_s": _FOR,
    "alerts.utilisation": ("It bounds how busy the devices are.", "Leave it out to bound it by 95 %."),
    "alerts.utilisation.enabled": _ENABLED,
    "alerts.utilisation.above_share": ("A share of the time is between 0 and 1.", "Use 0.95 for 95 %."),
    "alerts.utilisation.window_s": _WINDOW,
    "alerts.utilisation.for_s": _FOR,
    "alerts.burn_rate": ("It bounds how fast the error budget burns.", "Leave it out for windows that take minutes."),
    "alerts.burn_rate.enabled": _ENABLED,
    "alerts.burn_rate.speedup": (
        "Windows longer than hours and days would never be seen to the end.",
        "Use 1.0 for a promise of 30 days, 60.0 to try it in minutes.",
    ),
    "alerts.webhook": ("It says whom firing alerts are told to.", "Leave it out to write them to alerts.jsonl only."),
    "alerts.webhook.url_env": (
        "The address may hold a secret, which belongs in no stage file.",
        'Write the name of the variable that holds it: url_env = "RUNG_WEBHOOK_URL".',
    ),
    "alerts.webhook.timeout_s": ("No receiver answers in no time.", "Use 2.0."),
    "alerts.webhook.retries_max": ("A message cannot be sent less than once.", "Use 3, or 0 to try once."),
    "alerts.webhook.queue_length_max": ("No message could wait for its turn.", "Use 100."),
}

_A_SHARE = ("Nothing is above the whole.", "Use a share such as 0.9.")

TOO_HIGH: Advice = {
    "alerts.latency.percentile": ("No answer is slower than the slowest.", "Use 95.0."),
    "alerts.errors.above_share": _A_SHARE,
    "alerts.queue.above_share": _A_SHARE,
    "alerts.utilisation.above_share": _A_SHARE,
}
