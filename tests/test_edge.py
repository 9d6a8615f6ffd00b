"""Who is let in through the gateway's edge: keys, and TLS over real sockets."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

from reference_apps import logs, serve_gateway
from reference_apps.asking import key_headers, open_url, probe
from reference_apps.edge import EdgeError, Keys, checked_keys, checked_tls, client_url
from reference_apps.launchers.process import ProcessLauncher
from stages.fleet import Edge
from stages.spec import load_stage
from tests.conftest import PATIENCE_S, ROOT

pytestmark = pytest.mark.usefixtures("in_numpy")

KEY = "0123456789abcdef"


@pytest.mark.parametrize(
    ("headers", "admitted"),
    [
        ({b"authorization": b"Bearer " + KEY.encode()}, True),
        ({b"authorization": b"bearer " + KEY.encode() + b" "}, True),
        ({b"x-api-key": KEY.encode()}, True),
        ({b"authorization": KEY.encode()}, False),
        ({b"authorization": b"Basic " + KEY.encode()}, False),
        ({b"x-api-key": KEY[:-1].encode()}, False),
        ({b"x-api-key": b"", b"authorization": b"Bearer " + KEY.encode()}, False),
        ({}, False),
    ],
)
def test_a_key_is_a_bearer_token_or_a_header_of_its_own(headers: dict[bytes, bytes], admitted: bool) -> None:
    assert Keys(("another-key-of-16", KEY)).admits(headers) is admitted
    assert Keys().admits(headers)


def test_keys_are_in_the_environment() -> None:
    edge = Edge(api_keys_env="SOME_KEYS")
    assert checked_keys(edge, {"SOME_KEYS": f" {KEY}, {KEY}-two ,"}) == (KEY, f"{KEY}-two")
    assert checked_keys(Edge(), {}) == ()
    assert key_headers(edge, {"SOME_KEYS": f"{KEY},{KEY}-two"}) == {"authorization": f"Bearer {KEY}"}
    assert key_headers(edge, {}) == key_headers(Edge(), {"SOME_KEYS": KEY}) == key_headers(None) == {}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "SOME_KEYS: must hold the keys of gateway.edge.api_keys_env, separated by commas, and is empty."),
        (" , ", "SOME_KEYS: must hold the keys of gateway.edge.api_keys_env, separated by commas, and is empty."),
        (f"{KEY},short", "SOME_KEYS: key 2 must have at least 16 characters out of letters, digits and ._~+/-, got 5"),
        ("sixteen letters ü", "SOME_KEYS: key 1 must have at least 16 characters"),
    ],
)
def test_keys_that_are_none_are_refused_in_words(value: str | None, told: str) -> None:
    with pytest.raises(EdgeError) as caught:
        checked_keys(Edge(api_keys_env="SOME_KEYS"), {} if value is None else {"SOME_KEYS": value})
    assert str(caught.value).startswith(told)
    assert "ü" not in str(caught.value)  # a key is never told


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:7"), ("0.0.0.0", "http://127.0.0.1:7"), ("::", "http://[::1]:7")],
)
def test_where_clients_of_this_machine_go(host: str, url: str) -> None:
    assert client_url(Edge(host=host), 7) == url


def test_a_gateway_without_its_keys_does_not_start(tmp_path: Path) -> None:
    stage = load_stage("load-balanced", {"gateway.edge.api_keys_env": "SOME_KEYS", "gateway.edge.host": "0.0.0.0"})
    from stages.spec import stage_toml

    (tmp_path / "stage.toml").write_text(stage_toml(stage))
    command = [sys.executable, "-m", "reference_apps.serve_gateway", "--replicas", str(tmp_path / "replicas.json")]
    environment = {name: value for name, value in os.environ.items() if name != "SOME_KEYS"}
    done = subprocess.run(
        [*command, "--stage", str(tmp_path / "stage.toml")],
        capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE_S, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 2
    assert "SOME_KEYS: must hold the keys" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stage_without_a_gateway_serves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "configure", lambda *_: None)  # which is for a process of its own
    door = typer.Typer()
    door.command()(serve_gateway.main)
    refused = CliRunner().invoke(door, ["--replicas", str(tmp_path / "replicas.json"), "--stage", "single-vm"])
    assert refused.exit_code == 2
    assert "single-vm: has no [gateway]" in refused.stderr


def test_a_certificate_that_is_no_pem_is_refused_in_words(tmp_path: Path) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    edge = Edge(tls_certificate=str(certificate), tls_key=str(key))
    for content in (bytes.fromhex("30820305308201eda003020102"), b"", b"-----BEGIN CERTIFICATE-----\n"):
        certificate.write_bytes(content)
        key.write_bytes(content)
        with pytest.raises(EdgeError, match=r"must be a certificate and its key, both as PEM and without a password, "):
            checked_tls(edge)
    checked_tls(Edge())


def test_a_gateway_behind_tls_and_keys_is_started_looked_after_and_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=rung"]
    subprocess.run([*command, "-out", str(certificate), "-keyout", str(key)], capture_output=True, check=True)
    monkeypatch.setenv("SOME_KEYS", f"{KEY},another-key-of-16")
    edge = {"api_keys_env": "SOME_KEYS", "tls_certificate": str(certificate), "tls_key": str(key)}
    stage = load_stage("load-balanced", {"fleet.replicas": 1, "overload": True, "gateway.edge": edge})
    assert stage.gateway is not None
    checked_tls(stage.gateway.edge)
    with ProcessLauncher(stage, tmp_path / "stack") as launcher:
        assert launcher.url.startswith("https://127.0.0.1:")
        assert probe(f"{launcher.url}/readyz", PATIENCE_S, stage.gateway.edge)
        assert not probe(f"{launcher.url}/readyz", PATIENCE_S)
        with open_url(f"{launcher.url}/replicas", PATIENCE_S, stage.gateway.edge) as response:
            assert b'"ready":true' in response.read()
        believes = ssl.create_default_context(cafile=str(certificate))
        believes.check_hostname = False
        with httpx.Client(base_url=launcher.url, verify=believes, trust_env=False, timeout=PATIENCE_S) as client:
            ask = {"input": [[[0.5] * 8] * 8]}
            assert client.post("/predict", json=ask).status_code == 401
            assert client.post("/predict", json=ask, headers={"x-api-key": KEY}).status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{launcher.url}/healthz", trust_env=False, timeout=PATIENCE_S)  # an unknown certificate
        with pytest.raises(httpx.TransportError):
            httpx.get(launcher.url.replace("https", "http") + "/healthz", trust_env=False, timeout=PATIENCE_S)
