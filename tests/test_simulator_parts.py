"""The simulator's parts by themselves: clock, draws, and the batcher's behaviour that no single replica shows."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simpy import Environment, Event

from simulator.batcher import Batcher, Request
from simulator.clock import LATE, At
from simulator.device import open_device
from simulator.draws import Draws, Quantiles
from simulator.host import Host
from simulator.replica import Replica
from stages.calibration import HostCosts
from stages.spec import Admission, Batching
from tests.made import a_calibration, a_stage

# ---- clock ---------------------------------------------------------------------------------------------------


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_an_event_fires_at_exactly_its_time(one_s: float, other_s: float) -> None:
    now_s, time_s = sorted((one_s, other_s))
    env = Environment(now_s)
    At(env, time_s)
    env.run()
    assert env.now == time_s


def test_an_event_fires_at_exactly_its_time_where_the_delay_cannot_be_written() -> None:
    now_s, time_s = 0.5 + 2**-53, 1.5 + 3 * 2**-52
    assert now_s + (time_s - now_s) != time_s
    env = Environment(now_s)
    At(env, time_s)
    env.run()
    assert env.now == time_s


def test_late_events_come_after_all_others_of_their_moment() -> None:
    env, order = Environment(), []
    At(env, 1.0, LATE).add_callback(lambda _: order.append("late"))
    At(env, 1.0).add_callback(lambda _: env.timeout(0).callbacks.append(lambda _: order.append("of the moment")))
    env.run()
    assert order == ["of the moment", "late"]


def test_the_past_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be scheduled"):
        At(Environment(2.0), 1.0)


# ---- draws ---------------------------------------------------------------------------------------------------


def test_draws_are_the_same_in_any_order_and_number() -> None:
    one_by_one, at_once = Draws(5, "send"), Draws(5, "send")
    wanted = at_once.first(5000)
    assert [one_by_one[index] for index in (3000, 0, 1500, 4999)] == wanted[[3000, 0, 1500, 4999]].tolist()
    np.testing.assert_array_equal(one_by_one.first(5000), wanted)
    assert Draws(5, "reply")[0] != wanted[0] != Draws(5, "send", 1)[0]
    assert np.unique(wanted).size == wanted.size


@given(st.lists(st.floats(0, 10), min_size=1, max_size=9).map(sorted), st.floats(0, 1, exclude_max=True))
def test_a_quantile_is_read_off_the_straight_lines(quantiles_s: list[float], u: float) -> None:
    quantiles = Quantiles(quantiles_s)
    wanted_s = np.interp(u, np.linspace(0, 1, len(quantiles_s)), quantiles_s)
    assert quantiles.at(u) == pytest.approx(wanted_s, abs=1e-9)
    assert quantiles.at_each(np.array([u]))[0] == quantiles.at(u)
    assert min(quantiles_s) <= quantiles.mean_s <= max(quantiles_s) * (1 + 1e-12)


def test_host_times_one_by_one_are_the_vectorised_ones() -> None:
    costs = HostCosts(send_quantiles_s=(0.0, 0.1, 0.5), reply_quantiles_s=(0.0, 0.2), reply_per_item_s=0.01, wake_s=0.1)
    one_by_one, at_once = Host(costs, 9), Host(costs, 9)
    times_s = np.sort(np.random.default_rng(1).uniform(0, 10, 200))
    numbers = np.arange(200)
    arrived_s = at_once.arrivals_s(times_s)
    assert (np.diff(arrived_s) >= 0).all()  # nobody overtakes, though sending takes up to half a second
    assert [one_by_one.arrival_s(i, t) for i, t in enumerate(times_s.tolist())] == arrived_s.tolist()
    answers_s = at_once.answers_s(times_s, numbers // 3, numbers % 3)
    one_s = [one_by_one.answer_s(t, i // 3, i % 3) for i, t in enumerate(times_s.tolist())]
    assert one_s == answers_s.tolist()
    refused = numbers[::7]
    one_s = [one_by_one.refusal_s(times_s[i], i) for i in refused.tolist()]
    assert one_s == at_once.refusals_s(times_s[refused], refused).tolist()


# ---- batcher -------------------------------------------------------------------------------------------------


Taken = list[tuple[float, list[int]]]


def taker(env: Environment, batcher: Batcher, taken: Taken, busy_s: float) -> Generator[Event, None, None]:
    while batch := (yield from batcher.take()):
        taken.append((env.now, [request.number for request in batch]))
        yield At(env, env.now + busy_s, LATE)
    taken.append((env.now, []))


def put(
    batcher: Batcher, env: Environment, number: int, deadline_s: float | None = None, _: Event | None = None
) -> bool:
    return batcher.put(Request(number, env.now, deadline_s, lambda request: expired.append(request.number)))


expired: list[int] = []


@pytest.fixture(autouse=True)
def _nobody_expired() -> None:
    expired.clear()


def a_batcher(env: Environment, size: int, wait_s: float, wake_s: float = 0.0) -> Batcher:
    batching = Batching(max_batch_size=size, batch_wait_timeout_s=wait_s)
    return Batcher(batching, Admission(max_queue_length=8), env, wake_s)


def test_takers_that_sleep_are_all_woken_when_there_is_a_batch_for_each() -> None:
    env, taken = Environment(), Taken()
    batcher = a_batcher(env, size=2, wait_s=4.0, wake_s=0.25)
    for _ in range(3):
        env.process(taker(env, batcher, taken, busy_s=1.0))
    At(env, 1.0).add_callback(lambda _: [put(batcher, env, number) for number in range(5)])
    env.run()
    # One after the other is woken, each by the one before it; the odd request waits its time out.
    assert taken == [(1.25, [0, 1]), (1.5, [2, 3]), (5.25, [4])]


def test_a_batcher_that_closes_lets_nobody_in_and_everybody_out() -> None:
    env, taken = Environment(), Taken()
    batcher = a_batcher(env, size=4, wait_s=10.0)
    env.process(taker(env, batcher, taken, busy_s=1.0))
    At(env, 1.0).add_callback(lambda _: [put(batcher, env, number) for number in range(5)])
    At(env, 1.0).add_callback(lambda _: batcher.close())
    At(env, 1.5).add_callback(lambda _: taken.append((env.now, [put(batcher, env, 9)])))
    env.run()
    assert taken == [(1.0, [0, 1, 2, 3]), (1.5, [False]), (2.0, [4]), (3.0, [])]


def test_a_taker_with_nothing_to_take_ends_when_the_batcher_closes() -> None:
    env, taken = Environment(), Taken()
    batcher = a_batcher(env, size=4, wait_s=10.0)
    env.process(taker(env, batcher, taken, busy_s=1.0))
    At(env, 2.0).add_callback(lambda _: batcher.close())
    env.run()
    assert taken == [(2.0, [])]


def test_deadlines_may_differ_from_request_to_request() -> None:
    env, taken = Environment(), Taken()
    batcher = a_batcher(env, size=3, wait_s=0.0)
    env.process(taker(env, batcher, taken, busy_s=1.0))
    for number, deadline_s in enumerate((None, 2.0, 0.25, None)):
        At(env, number / 8).add_callback(partial(put, batcher, env, number, deadline_s))
    env.run()
    assert taken == [(0.0, [0]), (1.0, [1, 3])]
    assert expired == [2]


def test_queue_length_and_the_oldest_wait_are_those_of_now() -> None:
    env = Environment()
    batcher = a_batcher(env, size=4, wait_s=10.0)
    seen = []
    At(env, 1.0).add_callback(lambda _: put(batcher, env, 0))
    At(env, 2.0).add_callback(lambda _: put(batcher, env, 1))
    for time_s in (0.5, 1.5, 4.0):
        At(env, time_s).add_callback(lambda _: seen.append((batcher.queue_length, batcher.oldest_wait_s)))
    env.run()
    assert seen == [(0, 0.0), (1, 0.5), (2, 3.0)]


def test_a_replica_that_closes_answers_the_accepted() -> None:
    env = Environment()
    stage = a_stage(batching={"max_batch_size": 4, "batch_wait_timeout_s": 60.0})
    device = open_device(stage, a_calibration({1: (1.0,), 4: (1.0,)}))
    settled: list[tuple[int, float, str]] = []
    replica = Replica(stage, env, device, Host(HostCosts(), 1), lambda *settling: settled.append(settling))
    At(env, 1.0).add_callback(lambda _: replica.submit(0))
    At(env, 2.0).add_callback(lambda _: replica.close())
    At(env, 2.5).add_callback(lambda _: replica.submit(1))
    env.run()
    assert settled == [(1, 2.5, "draining"), (0, 3.0, "")]
    assert replica.log().served.tolist() == [0]
    assert replica.log().shed.tolist() == [1]
