"""The table of a stage that says that its work is accepted now and done later, and who keeps it until then.

    POST /jobs ──▶ [queue] broker: SQLite or Redis Streams ──▶ workers, each with its micro-batcher ──▶ results
                      └─ retries, dead letters, leases

How long a retry waits, and when a job is given up, is in stages/policies/queueing.py. Rules are in
stages/queue_rules.py. Not here: queues of several stages behind each other, and fair shares of many tenants.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.table import Table

_VARIABLE = r"^[A-Z][A-Z0-9_]*$"
# Most jobs of one call to a broker: a transaction holds everybody else up for as long as it takes.
BATCH_MAX = 1000


class Queue(Table):
    """The queue between the jobs API and its workers. URLs and secrets are in the environment, under these names.

    `fsync` says what survives a power cut, and the end of a Redis server: all that was accepted ("commit"), or all but
    the last second ("interval"). The end of any other process loses nothing either way.
    """

    broker: Literal["sqlite", "redis"] = "sqlite"  # sqlite: the processes of one machine
    url_env: str = Field("RUNG_BROKER_URL", pattern=_VARIABLE)
    fsync: Literal["commit", "interval"] = "commit"
    max_depth: int = Field(100_000, ge=1, le=10_000_000)  # jobs inside, dead letters too; more are refused
    lease_s: float = Field(30.0, gt=0.0, le=86_400.0)  # so long a job is one worker's, who extends it
    attempts_max: int = Field(5, ge=1, le=1000)  # deliveries; then it is a dead letter
    retry_delay_s: float = Field(1.0, ge=0.0, le=86_400.0)  # after the first failure; doubles with each
    retry_delay_max_s: float = Field(60.0, ge=0.0, le=86_400.0)
    payload_max_bytes: int = Field(65_536, ge=1024, le=16_777_216)  # larger ones are kept in files, and not queued
    priorities: int = Field(3, ge=1, le=10)  # 0 goes first
    result_ttl_s: float = Field(86_400.0, gt=0.0, le=31_536_000.0)  # of results, and of keys of jobs that are over
    results_url_env: str | None = Field(None, pattern=_VARIABLE)  # of SQLite or Postgres; none: beside the queue
    request_reply_timeout_s: float = Field(30.0, gt=0.0, le=3600.0)  # of POST /predict, which waits for its result
    poll_wait_max_s: float = Field(30.0, ge=0.0, le=3600.0)  # of GET /jobs/{id}?wait_s=
    webhook_secret_env: str | None = Field(None, pattern=_VARIABLE)  # signs what callbacks are told; none: no callbacks
    webhook_attempts_max: int = Field(6, ge=1, le=100)
    webhook_private: bool = False  # callbacks may go to this machine and to private networks
