"""The advice of [queue], as stages/advice.py has it for the other tables."""

from __future__ import annotations

_IN_THE_ENVIRONMENT = "A URL may hold a password: it is read from the environment, and stands in no shared file."

ADVICE: dict[str, tuple[str, str]] = {
    "queue": ("It says who keeps accepted work until it is done.", "Leave [queue] out to answer requests at once."),
    "queue.broker": ("Jobs are kept nowhere else.", 'Use "sqlite" on one machine, "redis" for workers on several.'),
    "queue.url_env": (
        _IN_THE_ENVIRONMENT,
        'Write url_env = "RUNG_BROKER_URL", and set that variable to redis://HOST:PORT/0 or to the path of a file.',
    ),
    "queue.fsync": (
        "It says what a power cut may take.",
        'Use "commit" to lose nothing that was accepted, "interval" where the last second may go.',
    ),
    "queue.max_depth": ("Every job would be refused.", "Use 100000."),
    "queue.lease_s": ("A job would be given to a second worker at once.", "Use 30.0: workers extend it."),
    "queue.attempts_max": ("No job would ever be tried.", "Use 5, or 1 to try each once."),
    "queue.retry_delay_s": ("A job cannot be tried again before it failed.", "Use 1.0, or 0.0 to try again at once."),
    "queue.retry_delay_max_s": ("A job cannot be tried again before it failed.", "Use 60.0."),
    "queue.payload_max_bytes": ("Nearly every payload would be a file of its own.", "Use 65536 (64 KiB)."),
    "queue.priorities": (
        "A job needs a priority to have.",
        "Use 3: before the others, as usual, and when there is time.",
    ),
    "queue.result_ttl_s": ("Results would be gone before anybody could fetch them.", "Use 86400.0, a day."),
    "queue.results_url_env": (
        _IN_THE_ENVIRONMENT,
        'Write results_url_env = "RUNG_RESULTS_URL", or leave it out to keep results beside the queue.',
    ),
    "queue.request_reply_timeout_s": ("No worker could answer in time.", "Use 30.0."),
    "queue.poll_wait_max_s": ("Nobody can wait for less than no time.", "Use 30.0, or 0.0 to answer at once."),
    "queue.webhook_secret_env": (
        "The secret that callbacks are signed with is read from the environment, and stands in no file.",
        'Write webhook_secret_env = "RUNG_WEBHOOK_SECRET", or leave it out for no callbacks.',
    ),
    "queue.webhook_attempts_max": ("Nobody would ever be told.", "Use 6."),
    "queue.webhook_private": (
        "It says whether callbacks may go to this machine and to private networks.",
        "Leave it out, unless every client may reach what this machine reaches.",
    ),
}

TOO_HIGH: dict[str, tuple[str, str]] = {
    "queue.max_depth": (
        "So long a queue fills memory and disk, and takes days to work off.",
        "Use what the workers do in the longest time that a client would wait.",
    ),
    "queue.payload_max_bytes": (
        "A payload travels through the queue several times.",
        "Use 65536: larger ones are kept in files.",
    ),
}

UNITS = {
    "max_depth": "jobs",
    "attempts_max": "attempts",
    "priorities": "levels",
    "webhook_attempts_max": "attempts",
}
