"""What the Redis broker promises beside the contract: a server that forgets nothing, a full disk, and a clock that a
server cannot set.
"""

from __future__ import annotations

import contextlib
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from reference_apps import broker_redis_scripts
from reference_apps.asking import wait_until
from reference_apps.broker import BrokerDownError, BrokerFullDiskError, NewJob, open_broker
from reference_apps.broker_redis import SLACK_S
from reference_apps.broker_redis_server import SharedClock, in_words, open_client
from stages.queue import Queue
from tests.brokers import HandClock, Place
from tests.conftest import PATIENCE_S
from tests.disks import disk_of, grow
from tests.redis_server import COMMIT, INTERVAL, redis_server

LEASE_S = 10.0
LONGER_S = LEASE_S + SLACK_S


@contextlib.contextmanager
def client(url: str) -> Iterator[redis.Redis]:
    with contextlib.closing(redis.Redis.from_url(url)) as asked:
        yield asked


@pytest.mark.parametrize(
    ("settings", "fsync", "told"),
    [
        (("--appendonly", "no"), "commit", "appendonly: .* must have yes .*, got no"),
        (("--appendonly", "no"), "interval", "appendonly: .* must have yes .*, got no"),
        (INTERVAL, "commit", "appendfsync: .* must have always .*, got everysec"),
        ((*COMMIT, "--no-appendfsync-on-rewrite", "yes"), "commit", "no-appendfsync-on-rewrite: .* must have no"),
        (
            (*COMMIT, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"),
            "commit",
            "maxmemory-policy: .* must have noeviction, got allkeys-lru",
        ),
    ],
)
def test_a_server_that_may_lose_jobs_is_refused(
    tmp_path: Path, settings: tuple[str, ...], fsync: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redis_server(tmp_path / "redis", settings) as server:
        monkeypatch.setenv("RUNG_BROKER_URL", server.url)
        with pytest.raises(BrokerDownError, match=told):
            open_broker(Queue(broker="redis", fsync=fsync), tmp_path)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "RUNG_BROKER_URL must hold the server's URL"),
        ("redis://127.0.0.1:1/0", "the broker's server does not answer: ConnectionError"),
        ("http://127.0.0.1:1", "must hold a URL like redis://HOST:PORT/0"),
    ],
)
def test_a_server_that_is_not_there_is_told_in_words(
    tmp_path: Path, url: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNG_BROKER_URL", url)
    with pytest.raises(BrokerDownError, match=told):
        open_broker(Queue(broker="redis"), tmp_path)


def test_a_url_that_cannot_be_read_is_told_without_its_password() -> None:
    with pytest.raises(BrokerDownError, match="must hold a URL like redis://HOST:PORT/0") as caught:
        open_client("redis://:pa/ss@host:6379/0")
    assert "pa/" not in str(caught.value)
    assert "'pa" not in str(caught.value)


def test_a_server_that_is_busy_is_down_for_a_while() -> None:
    with pytest.raises(BrokerDownError, match="refuses: BUSY"), in_words():
        raise redis.ResponseError("BUSY Redis is busy running a script. You can only call SCRIPT KILL.")


def test_a_client_that_is_not_installed_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    for module in ("redis.exceptions", "reference_apps.broker_redis", "reference_apps.broker_redis_server"):
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(BrokerDownError, match=r"needs the package redis.*pip install 'rung\[redis\]'"):
        open_broker(Queue(broker="redis"), tmp_path)


def test_a_server_that_was_killed_comes_back_with_everything(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as server:
        place = Place("redis", tmp_path, server.url)
        with place.open(attempts_max=2) as broker:
            ids = [one.job for one in broker.put([NewJob(b"a"), NewJob(b"b"), NewJob(b"c", key="k"), NewJob(b"d")])]
            leased, delayed, dead = broker.claim(3, LEASE_S)
            broker.nack(delayed, "failed", 5.0)
            broker.dead_letter(dead, "poison")
            server.kill()
            with pytest.raises(BrokerDownError):
                broker.put([NewJob(b"e")])
            with pytest.raises(BrokerDownError):
                broker.claim(1, LEASE_S, wait_s=1.0)
            server.start()
            found = broker.look(ids)
            assert [found[job].state for job in ids] == ["leased", "delayed", "dead", "waiting"]
            assert broker.put([NewJob(b"e", key="k")])[0].job == ids[2]
            assert broker.ack([leased]) == 1
            place.clock.pass_s(5.0)
            assert [job.job for job in broker.claim(9, LEASE_S)] == [ids[1], ids[3]]


def test_a_server_that_lost_everything_is_a_new_queue(redis_url: str, tmp_path: Path) -> None:
    place = Place("redis", tmp_path, redis_url)
    with place.open() as broker, client(redis_url) as asked:
        broker.put([NewJob(b"a")])
        (job,) = broker.claim(1, LEASE_S)
        asked.delete(*asked.keys(f"{{{place.name}}}:*"))
        assert broker.claim(1, LEASE_S) == []
        assert broker.ack([job]) == 0
        broker.put([NewJob(b"b")])
        assert [job.payload for job in broker.claim(1, LEASE_S)] == [b"b"]


def test_a_call_that_is_sent_twice_is_done_once(redis_url: str, tmp_path: Path) -> None:
    place = Place("redis", tmp_path, redis_url)
    with place.open() as broker:
        run, told = broker._run, []

        def twice(script: str, *words: object) -> list[object]:
            told.append(script)
            run(script, *words)
            return run(script, *words)

        broker._run = twice
        assert [one.duplicate for one in broker.put([NewJob(b"a", key="k"), NewJob(b"b")])] == [False, False]
        broker._run = run
        assert told == ["put"]
        assert [job.payload for job in broker.claim(9, LEASE_S)] == [b"a", b"b"]


def test_a_claim_that_finds_nothing_is_told_when_something_is_due(redis_url: str, tmp_path: Path) -> None:
    place = Place("redis", tmp_path, redis_url)
    with place.open() as broker:
        assert broker._run("claim", 1, 1000, "lease", 3)[:2] == [[], -1]
        broker.put([NewJob(b"a", run_after_s=70.0)])
        assert broker._run("claim", 1, 1000, "lease", 3)[:2] == [[], 70_000]
        broker.put([NewJob(b"b")])
        broker.claim(1, LEASE_S)
        claimed, due_ms, seen = broker._run("claim", 1, 1000, "lease", 3)
        assert (claimed, due_ms) == ([], 1000 * LONGER_S)
        assert [stream.decode().partition("}:")[2] for stream, _ in seen] == ["wake", "line:0", "line:1", "line:2"]


def test_the_streams_are_empty_when_the_queue_is(redis_url: str, tmp_path: Path) -> None:
    place = Place("redis", tmp_path, redis_url)
    with place.open(attempts_max=1) as broker, client(redis_url) as asked:
        broker.put([NewJob(b"%d" % n, priority=n % 3, key=f"k{n}") for n in range(9)])
        jobs = broker.claim(9, LEASE_S)
        for priority in range(3):
            (group,) = asked.xinfo_groups(f"{{{place.name}}}:line:{priority}")
            assert (group["pending"], group["lag"]) == (3, 0)  # what other tools scale by
        broker.nack(jobs[0], "failed", 0.0)
        broker.ack(jobs[1:])
        broker.forget()
        place.clock.pass_s(1e6)
        broker.put([NewJob(b"", key="last")])
        broker.ack(broker.claim(1, LEASE_S))
        left = {key.decode().partition("}:")[2]: asked.type(key).decode() for key in asked.keys(f"{{{place.name}}}:*")}
        assert left.pop("keys") == "hash"
        assert left.pop("until") == "zset"
        assert asked.hlen(f"{{{place.name}}}:keys") == 1
        for name, kind in left.items():
            assert name in ("clock", "place", "wake") or kind == "stream", name
            if kind == "stream" and name != "wake":
                assert asked.xlen(f"{{{place.name}}}:{name}") == 0
                assert all(group["pending"] == 0 for group in asked.xinfo_groups(f"{{{place.name}}}:{name}"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MiB."""
    with disk_of(tmp_path / "small", "2m") as folder:
        yield folder


@pytest.mark.parametrize(("settings", "fsync"), [(COMMIT, "commit"), (INTERVAL, "interval")])
def test_on_a_full_disk_nothing_that_was_accepted_is_lost(
    tmp_path: Path, small_disk: Path, settings: tuple[str, ...], fsync: str
) -> None:
    with redis_server(small_disk, (*settings, "--auto-aof-rewrite-percentage", "0")) as server:
        place = Place("redis", tmp_path, server.url)
        with place.open(fsync=fsync) as broker:
            accepted: list[str] = []
            with pytest.raises(BrokerDownError) as caught:
                for number in range(2000):
                    accepted += [one.job for one in broker.put([NewJob(b"%d " % number + b"x" * 8000)])]
            if fsync == "interval":  # a server with "always" ends itself instead
                assert isinstance(caught.value, BrokerFullDiskError)
                with pytest.raises(BrokerFullDiskError):
                    broker.claim(1, LEASE_S)
                assert broker.depth().waiting >= len(accepted)
        server.kill()
        grow(small_disk, "64m")
        server.start()
        with place.open(fsync=fsync) as broker:
            found = [job.job for job in broker.claim(1000, LEASE_S)]
            lost = [job for job in accepted if job not in found]
            # What was written in the last second before the kill was not promised with "interval".
            assert not lost or (fsync == "interval" and lost == accepted[-len(lost) :])
            assert fsync == "interval" or found[: len(accepted)] == accepted


def test_a_server_without_memory_refuses_and_keeps(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as server, client(server.url) as asked:
        place = Place("redis", tmp_path, server.url)
        with place.open() as broker:
            (accepted,) = broker.put([NewJob(b"a")])
            asked.config_set("maxmemory", 1)
            with pytest.raises(BrokerFullDiskError, match="no memory left"):
                broker.put([NewJob(b"b")])
            asked.config_set("maxmemory", 0)
            assert [job.job for job in broker.claim(2, LEASE_S)] == [accepted.job]


# ---- the clock ----


def test_no_script_asks_the_server_for_the_time() -> None:
    text = Path(broker_redis_scripts.__file__).read_text(encoding="utf-8")
    for command in ("'TIME'", "'XPENDING'", "'XAUTOCLAIM'", "'EXPIRE'", "'PEXPIRE'", "'PX'", "'EX'"):
        assert command not in text


def faketime() -> str:
    """The library that sets a process' clock. Skips where there is none, which CI counts as a failure."""
    for place in (f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}", "/usr/lib", "/usr/local/lib"):
        if (library := Path(place) / "faketime/libfaketime.so.1").is_file():
            return str(library)
    pytest.skip("no libfaketime: apt-get install libfaketime")


@pytest.mark.parametrize("step", ["+1h", "-1h"])
def test_a_server_whose_clock_is_set_ends_no_lease_and_keeps_none(tmp_path: Path, step: str) -> None:
    """The server's dates jump by an hour while jobs are leased and delayed."""
    setting = tmp_path / "now"
    setting.write_text("+0")
    environment = {
        "LD_PRELOAD": faketime(),
        "FAKETIME_TIMESTAMP_FILE": str(setting),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with redis_server(tmp_path / "redis", COMMIT, environment) as server, client(server.url) as asked:
        place = Place("redis", tmp_path, server.url)
        with place.open(attempts_max=2) as broker:
            broker.put([NewJob(b"a"), NewJob(b"b"), NewJob(b"later", run_after_s=5.0)])
            first, second = broker.claim(2, LEASE_S)
            (tmp_path / "then").write_text(step)
            (tmp_path / "then").replace(setting)
            assert wait_until(lambda: abs(asked.time()[0] - time.time()) > 3000, PATIENCE_S)
            assert broker.claim(9, LEASE_S) == []
            assert broker.depth().leased == 2
            place.clock.pass_s(5.0)
            assert [job.payload for job in broker.claim(9, LEASE_S)] == [b"later"]
            assert broker.extend([first], LEASE_S) == 1
            place.clock.pass_s(LONGER_S - 5.0)
            assert [job.job for job in broker.claim(9, LEASE_S)] == [second.job]
            assert broker.ack([first]) == 1
            began_s = time.monotonic()
            broker.put([NewJob(b"woken")])
            assert [job.payload for job in broker.claim(1, LEASE_S, wait_s=PATIENCE_S)] == [b"woken"]
            assert broker.claim(1, 1e-3, wait_s=0.2) == []  # a wait of the server's that may be an hour too long
            assert time.monotonic() - began_s < PATIENCE_S


@given(
    calls=st.lists(
        st.tuples(st.integers(0, 3), st.floats(0.0, 5.0), st.floats(0.0, 0.3), st.floats(0.0, 0.3)), max_size=60
    )
)
def test_the_shared_clock_is_never_ahead_of_what_has_passed(calls: list[tuple[int, float, float, float]]) -> None:
    """Four processes call a server that keeps the latest time it is told; every call has a way there and a way back."""
    true = HandClock(0.0)
    offsets_s = (17.0, 1e6, 0.0, 12345.678)  # every machine's monotonic clock begins somewhere else
    clocks = [SharedClock(lambda offset_s=offset_s: true() + offset_s) for offset_s in offsets_s]
    kept_ms, began_s = 0, None
    for process, pause_s, there_s, back_s in calls:
        true.pass_s(pause_s)
        said_ms = clocks[process].now_ms()
        true.pass_s(there_s)
        began_s = true() if began_s is None else began_s
        kept_ms = max(kept_ms, said_ms)
        true.pass_s(back_s)
        clocks[process].heard(kept_ms)
        assert kept_ms <= clocks[process].now_ms() + 1 <= 1000 * (true() - began_s) + 2


def test_a_process_that_comes_after_an_idle_hour_gets_whole_leases(redis_url: str, tmp_path: Path) -> None:
    """Whoever is there keeps the clock going, also while there is nothing to do: nobody who comes then is behind."""
    early = Place("redis", tmp_path, redis_url)
    late = replace(early, clock=HandClock(5.0))
    with early.open() as there, client(redis_url) as asked:
        early.clock.pass_s(3600.0)
        assert wait_until(lambda: int(asked.get(f"{{{early.name}}}:clock") or 0) >= 3_600_000, PATIENCE_S)
        with late.open() as comes:
            comes.put([NewJob(b"a")])
            (job,) = comes.claim(1, LEASE_S)
            early.clock.pass_s(LEASE_S)
            late.clock.pass_s(LEASE_S)
            assert there.claim(1, LEASE_S) == []
            assert comes.extend([job], LEASE_S) == 1
            early.clock.pass_s(LONGER_S)
            assert [each.job for each in there.claim(1, LEASE_S)] == [job.job]
            assert comes.ack([job]) == 0
