"""Rules over the fleet and its gateway: what fits together, what nothing would read, what must not be open.

Asked by stages/rules.py, like the rules there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from stages import catalogue, unread
from stages.advice import amount
from stages.fleet import NGINX_POLICIES, Fleet, Gateway, is_loopback
from stages.problems import Problem, did_you_mean, shown
from stages.queue import Queue
from stages.scaling import Scaling
from stages.spec import Batching, Device


def no_unread_fleet_keys(fleet: Fleet, device: Device) -> Iterator[Problem]:
    """A key that nothing reads would look like a choice."""
    return (key.problem() for key in unread.of_fleet(fleet, device) if key.given)


def no_unread_gateway_keys(gateway: Gateway | None) -> Iterator[Problem]:
    """A key that nothing reads would look like a choice."""
    return (key.problem() for key in unread.of_gateway(gateway) if key.given)


def several_replicas_need_a_gateway(fleet: Fleet, gateway: Gateway | None, queue: Queue | None) -> Iterator[Problem]:
    """Clients know one address; workers are known to nobody, and fetch their work."""
    if fleet.replicas > 1 and gateway is None and queue is None:
        yield Problem(
            "fleet.replicas",
            "must be 1 without a [gateway]",
            str(fleet.replicas),
            "Clients know one address, and nothing would share their requests out.",
            'Write [gateway] with policy = "least-outstanding".',
        )


def profiles_are_known(fleet: Fleet, device: Device) -> Iterator[Problem]:
    """Unequal replicas take their times from the catalogue."""
    known = catalogue.profiles()
    for number, profile in enumerate(fleet.profiles if device.kind == "emulated" else ()):
        if profile not in known:
            yield Problem(
                f"fleet.profiles[{number}]",
                "must be a profile of the catalogue",
                shown(profile),
                "An emulated replica needs a service time for each batch size.",
                did_you_mean(profile, known, "List the profiles with `rung devices`."),
            )


def profiles_have_replicas(fleet: Fleet, scaling: Scaling | None) -> Iterator[Problem]:
    """Profiles go to the replicas in turn, so those beyond the last replica go to nobody."""
    key, most = "fleet.replicas", fleet.replicas
    if scaling is not None and scaling.max_replicas > most:
        key, most = "scaling.max_replicas", scaling.max_replicas
    if len(fleet.profiles) > most:
        yield Problem(
            "fleet.profiles",
            f"must name at most as many profiles as {key} ({most})",
            str(len(fleet.profiles)),
            "Replica i emulates profile i, so nothing would read the last.",
            f"Shorten the list, or raise {key}.",
        )


def nginx_has_the_policy(gateway: Gateway | None) -> Iterator[Problem]:
    """Nginx's free edition has some of the policies; the others need to see latencies, which it keeps to itself."""
    if gateway is not None and gateway.engine == "nginx" and gateway.policy not in NGINX_POLICIES:
        *others, last = (f'"{policy}"' for policy in NGINX_POLICIES)
        yield Problem(
            "gateway.policy",
            f'must be {", ".join(others)} or {last} when gateway.engine is "nginx"',
            shown(gateway.policy),
            "Nginx's free edition does not look at latencies when it chooses.",
            'Use one of these, or gateway.engine = "rung".',
        )


def gateway_holds_a_batch(gateway: Gateway | None, batching: Batching) -> Iterator[Problem]:
    """Every request of a batch is inside the gateway, and has a connection to its replica, at the same time."""
    for name in ("max_in_flight", "connections_per_replica") if gateway is not None else ():
        most = getattr(gateway, name)
        if most < batching.max_batch_size:
            yield Problem(
                f"gateway.{name}",
                f"must be at least batching.max_batch_size ({batching.max_batch_size} requests)",
                str(most),
                "No batch could ever be full.",
                "Raise it, or lower batching.max_batch_size.",
            )


def connecting_is_within_timeout(gateway: Gateway | None) -> Iterator[Problem]:
    """Connecting is part of what the upstream timeout bounds."""
    if gateway is not None and gateway.connect_timeout_s > gateway.upstream_timeout_s:
        yield Problem(
            "gateway.connect_timeout_s",
            f"must be at most gateway.upstream_timeout_s ({amount(gateway.upstream_timeout_s, 'upstream_timeout_s')})",
            f"{gateway.connect_timeout_s:g}",
            "The request would be given up before its connection is.",
            "Lower it: replicas of one network connect within milliseconds.",
        )


def probe_is_within_interval(gateway: Gateway | None) -> Iterator[Problem]:
    """A probe has ended when the next one begins."""
    if gateway is None or gateway.engine == "nginx" or gateway.probe_timeout_s <= gateway.probe_interval_s:
        return
    yield Problem(
        "gateway.probe_timeout_s",
        f"must be at most gateway.probe_interval_s ({amount(gateway.probe_interval_s, 'probe_interval_s')})",
        f"{gateway.probe_timeout_s:g}",
        "Probes of a replica that hangs would pile up.",
        "Lower it, or raise gateway.probe_interval_s.",
    )


def edge_is_guarded(gateway: Gateway | None) -> Iterator[Problem]:
    """Whoever can reach the gateway can use it, unless it asks for a key."""
    if gateway is not None and gateway.edge.api_keys_env is None and not is_loopback(gateway.edge.host):
        yield Problem(
            "gateway.edge.host",
            "must be a loopback address (127.0.0.1, ::1, localhost) unless gateway.edge.api_keys_env is given",
            shown(gateway.edge.host),
            "Everybody who can reach this machine could use the service.",
            'Write gateway.edge.api_keys_env = "RUNG_API_KEYS" and set that variable to a key, or use "127.0.0.1".',
        )


def tls_files_are_there(gateway: Gateway | None) -> Iterator[Problem]:
    """A certificate is of no use without its key, nor the key without its certificate."""
    files = {} if gateway is None else {name: getattr(gateway.edge, name) for name in ("tls_certificate", "tls_key")}
    for name, other in (("tls_certificate", "tls_key"), ("tls_key", "tls_certificate")):
        if files.get(name) is None:
            continue
        if files[other] is None:
            yield Problem(
                f"gateway.edge.{other}",
                f"is required when gateway.edge.{name} is given",
                None,
                "TLS needs the certificate, and the key that belongs to it.",
                "Give the paths of two PEM files, or remove both for plain HTTP.",
            )
        if not Path(files[name]).is_file():
            yield Problem(
                f"gateway.edge.{name}",
                "must be a file that exists",
                shown(files[name]),
                "The gateway could not begin a single TLS connection.",
                "Correct the path, which is seen from the stage file.",
            )


RULES: tuple[Callable[..., Iterator[Problem]], ...] = (
    no_unread_fleet_keys,
    no_unread_gateway_keys,
    several_replicas_need_a_gateway,
    profiles_are_known,
    profiles_have_replicas,
    nginx_has_the_policy,
    gateway_holds_a_batch,
    connecting_is_within_timeout,
    probe_is_within_interval,
    edge_is_guarded,
    tls_files_are_there,
)
