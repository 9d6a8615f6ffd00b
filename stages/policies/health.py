"""Is a replica in rotation? What probes say (active) and what requests say (passive), as transitions of a value.

    probe ──▶ ready, after some in a row ─┐
                                          ├──▶ in rotation?
    request ─▶ failures in a row ─▶ ejected for a time ─┘

It does not model *why* a replica fails, nor who asks it: the gateways of both worlds call it with plain facts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

# Reasons of stages/outcomes.py for which the replica is to blame. A full queue is load, bad input is the client's, and
# a replica that drains says so by itself.
_REPLICAS_FAULT = frozenset({"connection", "model_error", "upstream_lost", "upstream_timeout"})


def speaks_against(reason: str) -> bool:
    """Whether a try that ended with this reason (of `stages.outcomes.REASONS`) counts as a failure of its replica."""
    return reason in _REPLICAS_FAULT


@dataclass(frozen=True)
class Health:
    """What is known of one replica's health; every transition gives a new value.

    A new replica is in rotation from its first good probe on; one that was found unhealthy needs `healthy_after` of
    them in a row. `eject_after` failed requests in a row take it out for `eject_s`, whatever the probes say; when it
    comes back, one more failure is enough, until a request succeeds.
    """

    unhealthy_after: int  # failed probes in a row
    healthy_after: int  # good probes in a row
    eject_after: int  # failed requests in a row
    eject_s: float
    ready: bool = False
    found_unhealthy: bool = False  # by a probe, ever: from then on one good probe is not enough
    probes_against: int = 0  # probes in a row that speak against `ready` as it is
    failures_in_a_row: int = 0
    ejected_until_s: float = -math.inf

    def after_probe(self, ok: bool) -> Health:
        """What is known after one more probe."""
        if ok == self.ready:
            return self if self.probes_against == 0 else replace(self, probes_against=0)
        probes, unproven = self.probes_against + 1, not self.ready and not self.found_unhealthy
        if probes >= (self.unhealthy_after if self.ready else 1 if unproven else self.healthy_after):
            return replace(self, ready=ok, found_unhealthy=self.found_unhealthy or self.ready, probes_against=0)
        return replace(self, probes_against=probes)

    def after_request(self, ok: bool, now_s: float) -> Health:
        """What is known after one more request; failures are those of `speaks_against`.

        What comes back while the replica is ejected was sent before, and says nothing new.
        """
        if self.ejected(now_s) or (ok and self.failures_in_a_row == 0):
            return self
        if ok:
            return replace(self, failures_in_a_row=0)
        failures = self.failures_in_a_row + 1
        if failures >= self.eject_after:
            return replace(self, failures_in_a_row=self.eject_after - 1, ejected_until_s=now_s + self.eject_s)
        return replace(self, failures_in_a_row=failures)

    def ejected(self, now_s: float) -> bool:
        """Whether its failures keep it out of rotation just now."""
        return now_s < self.ejected_until_s

    def in_rotation(self, now_s: float) -> bool:
        """Whether it may be sent requests: its probes say that it is ready, and it is not ejected."""
        return self.ready and not self.ejected(now_s)
