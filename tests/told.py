"""What a replica tells about its work: the record in an answer, and its metrics."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Record:
    """The header x-rung-record of an answer."""

    replica: int
    batch: int
    batch_size: int
    arrived_s: float
    started_s: float
    finished_s: float
    gateway_in_s: float | None = None  # where there is a gateway, as are those below
    gateway_out_s: float | None = None
    tries: int | None = None
    cache: str | None = None  # where the gateway has one
    arm: str | None = None  # where there are two

    @classmethod
    def of(cls, response: httpx.Response) -> Record:
        fields = dict(part.split("=") for part in response.headers["x-rung-record"].split(","))
        kinds = {name: str if name in ("cache", "arm") else float if name.endswith("_s") else int for name in fields}
        return cls(**{name: kinds[name](value) for name, value in fields.items()})  # type: ignore[arg-type]


def scraped(client: httpx.Client) -> dict[str, float]:
    """Every sample of /metrics by name, outcomes with their labels; buckets are left out."""
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    samples = [s for family in text_string_to_metric_families(response.text) for s in family.samples]
    return {
        "/".join([s.name, *s.labels.values()]): s.value for s in samples if not s.name.endswith(("_bucket", "_created"))
    }
