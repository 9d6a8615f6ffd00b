"""The configuration of nginx as a stage's gateway, written from the stage.

    Stage, replicas, share ──▶ configuration ──▶ nginx.conf ──▶ nginx -t, SIGHUP
                                                clients ──▶ nginx ──▶ replicas

Nginx's free edition lacks learned and latency-weighted balancing, a bound on sticky load, active probes and a budget of
retries: a stage that asks it for one of them is refused (stages/fleet_rules.py, stages/unread.py). Nor does it add
its own times to `x-rung-record`, take off a deadline what has passed of it, or compare keys in constant time.

Of a split it has `split_clients`, whose hash is its own: other users get the challenger than by our gateway, and as few
change when the share does. It makes no copies without holding up whoever is copied, and counts nothing that a guardrail
could go by: a stage that asks it for one of them is refused (stages/split_rules.py).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stages.arms import arm_of, arms_of
from stages.fleet import Gateway
from stages.spec import Stage
from stages.split import Split

# Idle connections to replicas that each of nginx's workers keeps open.
IDLE_CONNECTIONS_MAX = 256
# Bodies up to this size never touch the disk.
BODY_IN_MEMORY_MAX_BYTES = 1_048_576
# What a bearer token may be made of (RFC 6750); nothing of it means anything to nginx.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")

# Shares are percentages with two digits after the point.
SHARE_DIGITS = 4

# The directive of each policy; round robin is what nginx does without one.
_METHODS = {
    "round-robin": "",
    "random": "random;",
    "least-outstanding": "least_conn;",
    "power-of-two": "random two least_conn;",
    "sticky": "hash $rung_key consistent;",
}


def configuration(
    stage: Stage,
    addresses: Mapping[int, str],
    generation: int,
    *,
    listen: str = "0.0.0.0:8000",
    certificate: str | None = None,
    certificate_key: str | None = None,
    api_keys: Sequence[str] = (),
    challenger_share: float = 0.0,
) -> str:
    """The whole nginx.conf for replicas at these addresses (number → host:port).

    `generation` counts the changes of fleet and share; `/generation` answers with it once nginx has the file.
    Certificate and key are paths as nginx sees them. Raises ValueError for an API key that is no bearer token, and
    for a stage whose gateway is not nginx's to be.
    """
    gateway = stage.gateway
    if gateway is None or gateway.policy not in _METHODS:
        raise ValueError("this stage has no gateway that nginx can be")
    return "\n".join(
        [
            "# Written from the stage by rung, and written again when the fleet changes.",
            *_process(gateway),
            "http {",
            *_indented(_http(stage)),
            *_indented(_split(stage.split, challenger_share)),
            *_indented(_upstreams(stage, gateway, addresses)),
            *_indented(_keys(api_keys)),
            "    server {",
            *_indented(_server(stage, gateway, listen, certificate, certificate_key), 2),
            *_indented(_locations(stage, gateway, generation, addresses, bool(api_keys)), 2),
            *_indented(_problems(stage), 2),
            "    }",
            "}",
            "",
        ]
    )


def _process(gateway: Gateway) -> list[str]:
    connections = 2 * gateway.max_in_flight + 1024  # one to the client and one to the replica each, and idle ones
    return [
        "worker_processes auto;",
        f"worker_rlimit_nofile {connections + 512};",
        # A worker of the configuration before leaves when its last answer is given, at the latest after this.
        f"worker_shutdown_timeout {_seconds(gateway.upstream_timeout_s * (gateway.retries_max + 1) + 5.0)};",
        "pid /tmp/nginx.pid;",
        "error_log stderr warn;",
        f"events {{ worker_connections {connections}; }}",
    ]


def _http(stage: Stage) -> list[str]:
    logged = 1 if stage.logs.requests == "all" or stage.logs.level == "debug" else 0
    return [
        "map_hash_bucket_size 512;",  # holds the longest key; nginx wants it before the first table
        # Nothing is written outside /tmp, so that nginx needs to be nobody in particular.
        *(f"{name}_temp_path /tmp/nginx-{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")),
        # The lines of reference_apps/logs.py, for the same requests.
        f"map $status $rung_logged {{ '~^[45]' 1; default {logged}; }}",
        "map $status $rung_level { '~^50[34]' warning; '~^5' error; '~^4' warning; default info; }",
        "log_format rung escape=json '"
        '{"time":"$time_iso8601","level":"$rung_level","role":"gateway","number":null,"pid":$pid,"event":"request",'
        '"status":$status,"seconds":$request_time,"request_id":"$rung_request_id","upstream":"$upstream_addr"}'
        "';",
        "access_log off;",
        "server_tokens off;",
        "tcp_nodelay on;",
        # A request id that a client gives is taken if it is sane; one is made otherwise.
        'map $http_x_request_id $rung_request_id { "~^[A-Za-z0-9._:+/=@-]{1,128}$" $http_x_request_id; '
        "default $request_id; }",
        # Requests without a key are spread, and not all sent to the replica that an empty key happens to hash to.
        "map $http_x_rung_key $rung_key { '' $rung_request_id; default $http_x_rung_key; }",
        # When no replica is in rotation, nginx names the group instead of an address, or nothing at all.
        f"map $upstream_addr $rung_no_replica {{ '' 1; '~({'|'.join(map(_group, arms_of(stage)))})$' 1; default 0; }}",
        # Connections are counted only while they carry a request: these are the requests inside.
        "limit_conn_zone $server_port zone=inside:1m;",
    ]


def _split(split: Split | None, share: float) -> list[str]:
    """Which arm a request is for: the one that it names, or that of its user's place, or of its own."""
    if split is None:
        return []
    # A load test numbers its requests (its seed, a hyphen, the number), so that both worlds know which arm each gets.
    request = 'map $http_x_rung_request $rung_number { "~^[0-9]{1,15}-(?<rung_place>[0-9]{1,15})$" $rung_place; '
    request += "default $rung_request_id; }"
    named = "$rung_number"
    users = []
    if split.key == "user":
        users, named = ["map $http_x_rung_user $rung_who { '' $rung_number; default $http_x_rung_user; }"], "$rung_who"
    percent = f"{100 * share:.2f}%"  # nginx takes none of 0
    header = split.force_header.replace("-", "_")
    return [
        request,
        *users,
        *_block(
            f'split_clients "{split.salt}{named}" $rung_drawn',
            [*([f"{percent} challenger;"] if round(share, SHARE_DIGITS) > 0.0 else []), "* champion;"],
        ),
        f"map $http_{header} $rung_arm {{ champion champion; challenger challenger; default $rung_drawn; }}",
    ]


def _group(arm: str) -> str:
    """The name of the group of replicas of an arm."""
    return arm or "fleet"


def _upstreams(stage: Stage, gateway: Gateway, addresses: Mapping[int, str]) -> list[str]:
    """A group of replicas for each arm that has any."""
    lines = []
    for arm in arms_of(stage):
        own = {number: address for number, address in addresses.items() if arm_of(stage, number) == arm}
        lines += _upstream(_group(arm), gateway, own)
    return lines


def _upstream(group: str, gateway: Gateway, addresses: Mapping[int, str]) -> list[str]:
    """A group of replicas; nothing where there are none, because nginx refuses an empty group."""
    if not addresses:
        return []
    method = _METHODS[gateway.policy]
    limits = (
        f"max_conns={gateway.connections_per_replica} "
        f"max_fails={gateway.eject_after} fail_timeout={math.ceil(gateway.eject_s)}s"  # in whole seconds only
    )
    return [
        f"upstream {group} {{",
        # Shared, so that all workers count the same outstanding requests and failures.
        f"    zone {group} 1m;",
        *([f"    {method}"] if method else []),
        *(f"    server {address} {limits};  # replica {replica}" for replica, address in addresses.items()),
        f"    keepalive {min(gateway.connections_per_replica, IDLE_CONNECTIONS_MAX)};",
        "}",
    ]


def _keys(api_keys: Sequence[str]) -> list[str]:
    """Tables of the keys that are believed, as `Authorization: Bearer` and as `x-api-key`."""
    if not api_keys:
        return []
    if not all(_TOKEN.fullmatch(key) for key in api_keys):
        raise ValueError("an API key that is no bearer token would be read by nginx in its own way")
    # Regular expressions, because nginx compares the plain texts of a table without regard to case.
    rows = [f'    "~^(?i:bearer) +{re.escape(key)}$" 1;' for key in api_keys]
    return [
        'map $http_x_api_key $rung_key_given { "" $http_authorization; default "bearer $http_x_api_key"; }',
        "map $rung_key_given $rung_allowed {",
        *rows,
        "    default 0;",
        "}",
    ]


def _server(
    stage: Stage, gateway: Gateway, listen: str, certificate: str | None, certificate_key: str | None
) -> list[str]:
    body_bytes = stage.admission.max_body_bytes
    tls = [f'ssl_certificate "{certificate}";', f'ssl_certificate_key "{certificate_key}";'] if certificate else []
    return [
        f"listen {listen}{' ssl' if certificate else ''} backlog=2048;",
        *tls,
        f"client_max_body_size {body_bytes};",
        f"client_body_buffer_size {min(body_bytes, BODY_IN_MEMORY_MAX_BYTES)};",
        "keepalive_timeout 75s;",
        "keepalive_requests 1000000;",
        "add_header x-request-id $rung_request_id always;",
        *([] if stage.split is None else ["add_header x-rung-arm $rung_arm always;"]),
    ]


def _locations(stage: Stage, gateway: Gateway, generation: int, addresses: Mapping[int, str], keyed: bool) -> list[str]:
    """The paths that there are: everything else of a replica (its documentation, its metrics) stays inside."""
    nobody = "return 502;"  # which becomes 503 no_replica below
    first = arms_of(stage)[0]
    asked = any(arm_of(stage, number) == first for number in addresses)
    guard = ["if ($rung_allowed = 0) { return 401; }"] if keyed else []
    return [
        *_block("location = /predict", [*guard, *(_proxied(stage, gateway) if addresses else [nobody])]),
        *_block("location = /readyz", _asked(first, gateway) if asked else [nobody]),
        *_block("location = /healthz", ["default_type application/json;", _return(200, {"status": "alive"})]),
        *_block("location = /generation", ["default_type text/plain;", f"return 200 '{generation}';"]),
        *_block("location /", ["return 404;"]),
    ]


def _proxied(stage: Stage, gateway: Gateway) -> list[str]:
    return [
        "access_log /dev/stderr rung if=$rung_logged;",
        f"limit_conn inside {gateway.max_in_flight};",
        "limit_conn_status 503;",
        "limit_conn_log_level info;",
        *_passed_on("fleet" if stage.split is None else "$rung_arm"),
        f"proxy_connect_timeout {_seconds(gateway.connect_timeout_s)};",
        f"proxy_send_timeout {_seconds(gateway.upstream_timeout_s)};",
        f"proxy_read_timeout {_seconds(gateway.upstream_timeout_s)};",
        # Safe to try again: nothing was sent, or the connection was lost before an answer, and an answer follows
        # from its input alone (which is why a POST may be sent twice). Not a timeout: the work may be going on.
        # Not a replica's 503 either: nginx would count it as a failure, and overload would eject the whole fleet.
        f"proxy_next_upstream {'error non_idempotent' if gateway.retries_max else 'off'};",
        f"proxy_next_upstream_tries {gateway.retries_max + 1};",
        f"proxy_next_upstream_timeout {_seconds(gateway.upstream_timeout_s)};",
    ]


def _asked(arm: str, gateway: Gateway) -> list[str]:
    timeout = _seconds(gateway.connect_timeout_s)
    timeouts = [f"proxy_connect_timeout {timeout};", f"proxy_read_timeout {timeout};"]
    return [*_passed_on(_group(arm)), *timeouts]


def _passed_on(group: str) -> list[str]:
    return [
        f"proxy_pass http://{group};",
        "proxy_http_version 1.1;",
        'proxy_set_header connection "";',  # kept alive
        "proxy_set_header host $host;",
        "proxy_set_header x-request-id $rung_request_id;",
        "proxy_hide_header x-request-id;",  # the server adds it to every answer, its own refusals too
        "proxy_set_header authorization '';",  # keys end here
        "proxy_set_header x-api-key '';",
    ]


def _problems(stage: Stage) -> list[str]:
    """nginx's own refusals, in the form of ours (RFC 9457). A replica's refusals pass as they are."""
    retry_after = f"add_header retry-after {max(1, round(stage.admission.retry_after_s))} always;"
    key = "add_header www-authenticate Bearer always;"
    identity = "add_header x-request-id $rung_request_id always;"  # a block with headers of its own inherits none
    lost = "The replica was lost before it answered. Try again."
    none = "No replica is in rotation. Try again later."
    full = "Too many requests are inside (gateway.max_in_flight). Try again later."
    late = "The replica did not answer in time (gateway.upstream_timeout_s)."
    large = f"The body must be at most {stage.admission.max_body_bytes} bytes (admission.max_body_bytes)."
    nobody = "Give one of this service's keys, as `Authorization: Bearer` or `x-api-key`."
    nowhere = "There is no such path. Send inputs to /predict."
    no_replica = f"if ($rung_no_replica) {{ {_return(503, _problem(503, 'no_replica', none))} }}"
    rows: list[tuple[int, str, list[str]]] = [
        (401, "unauthorized", [key, _return(401, _problem(401, "unauthorized", nobody))]),
        (404, "not_found", [_return(404, _problem(404, "not_found", nowhere))]),
        (413, "bad_input", [_return(413, _problem(413, "bad_input", large))]),
        (502, "lost", [retry_after, no_replica, _return(502, _problem(502, "upstream_lost", lost))]),
        (503, "full", [retry_after, _return(503, _problem(503, "gateway_full", full))]),
        (504, "late", [_return(504, _problem(504, "upstream_timeout", late))]),
    ]
    lines = []
    for status, name, body in rows:
        lines += [f"error_page {status} = @{name};"]  # =: with the status that is returned there
        lines += _block(f"location @{name}", ["default_type application/problem+json;", identity, *body])
    return lines


def _problem(status: int, title: str, detail: str) -> dict[str, Any]:
    return {"title": title, "status": status, "detail": detail}


def _return(status: int, content: Mapping[str, Any]) -> str:
    text = json.dumps(content).replace("'", "\\'")
    return f"return {status} '{text}';"


def _block(head: str, lines: Iterable[str]) -> list[str]:
    return [f"{head} {{", *_indented(lines), "}"]


def _indented(lines: Iterable[str], levels: int = 1) -> list[str]:
    return [f"{'    ' * levels}{line}" for line in lines]


def _seconds(seconds: float) -> str:
    """A time as nginx writes it: whole milliseconds, at least one, because 0 means something else to it."""
    return f"{max(1, round(seconds * 1000))}ms"
