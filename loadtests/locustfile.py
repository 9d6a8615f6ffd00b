"""Locust for every stage: open loop from the stage's seeded schedule, or closed loop with its users.

    locust -f loadtests/locustfile.py --stage micro-batched                    web page; finds the stage that is up
    locust -f loadtests/locustfile.py --stage micro-batched --headless         until the schedule has been fired
    … --processes 2                                                           every worker fires its part

An open loop needs no number of users: one walks the schedule and sends each request at its time, whatever became of
the ones before. Latency counts from the scheduled time, so that a late start is not forgiven.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

import gevent
import gevent.monkey
import polars as pl
import psutil
from gevent.event import AsyncResult
from gevent.pool import Group
from locust import FastHttpUser, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from loadtests import payloads, raw_rows
from loadtests.label_sender import LabelSender
from reference_apps.asking import key_headers
from reference_apps.launchers.member import write_atomically
from stages.policies.balancing import ticket_of
from stages.problems import StageError
from stages.spec import Stage, load_stage
from stages.traffic import schedule, split, user_draws

log = logging.getLogger("rung.load")

# gevent's sleep ends 0.5 to 0.8 ms late, and on busy cores by a slice of the kernel's, some 3 ms: the last part of a
# wait is spent giving way instead. At low rates that part may be longer, for about a third of a core in all.
GIVE_WAY_S = (0.0012, 0.006)
GIVE_WAY_SHARE = 0.3
# How a row says that the client's time ran out; raw_rows.py reads it.
GAVE_UP = raw_rows.GAVE_UP
# The workers and the model server settle before the first request is due.
LEAD_S = 0.5


class Shots:
    """What one Locust process fires and what came back: the parsed stage, its payloads, and a row a request."""

    def __init__(self, environment: Any) -> None:
        options = environment.parsed_options
        self.environment = environment
        self.stage: Stage = load_stage(options.stage)
        self.payloads = (
            payloads.read(Path(options.payloads)) if options.payloads else payloads.make_payloads(self.stage)
        )
        edge = self.stage.gateway.edge if self.stage.gateway is not None else None
        self.sent_keys = key_headers(edge)
        self.headers = self.payloads.headers | self.sent_keys
        self.schedule = schedule(self.stage.traffic) if self.stage.traffic.loop == "open" else None
        self.rows_path = Path(options.rows) if options.rows else None
        self.began = AsyncResult()  # the monotonic time that the schedule counts from
        self.rows: list[tuple[Any, ...]] = []
        self.due = 0
        self.in_flight = 0  # of a closed loop
        self.numbers = itertools.count()
        self.cpu_s = 0.0
        self.labels: LabelSender | None = None  # of this test run, where answers get any

    @property
    def worker(self) -> tuple[int, int]:
        """Which of how many workers this process is."""
        runner, options = self.environment.runner, self.environment.parsed_options
        if isinstance(runner, WorkerRunner):
            return runner.worker_index, max(1, options.processes or options.expect_workers)
        return 0, 1

    def begin(self, began_s: float) -> None:
        """A new test run: forget the rows of the last one."""
        self.rows.clear()
        self.due = self.in_flight = 0
        self.numbers = itertools.count(self.worker[0], self.worker[1])
        self.cpu_s = _cpu_s()
        if (feedback := self.stage.feedback) is not None and feedback.share > 0.0:
            fired = 0 if self.schedule is None else self.schedule.arrivals_s.size
            self.labels = LabelSender(self.stage, feedback, self.payloads, self.sent_keys, self.worker[0], fired)
        # The collector would stop the generator for as long as a batch takes.
        gc.collect()
        gc.freeze()
        self.began.set(began_s)

    def end(self) -> None:
        """Writes the rows, if a file was asked for; users of the next test run wait for its beginning again."""
        if self.rows_path is not None and self.began.ready():
            self._write(self.rows_path, self.began.get())
        self.began = AsyncResult()

    def _write(self, path: Path, began_s: float) -> None:
        """This worker's rows, and what the generator can say of itself."""
        index, _ = self.worker
        frame = pl.DataFrame(self.rows, schema=raw_rows.SCHEMA, orient="row")
        frame.write_parquet(path.with_name(f"{path.stem}-{index}.parquet"))
        summary: dict[str, Any] = {
            "began_s": began_s,
            "due": self.due,
            "cpu_s": _cpu_s() - self.cpu_s,
            "wall_s": time.monotonic() - began_s,
        }
        if self.labels is not None:
            summary["labels"] = dict(self.labels.counts)
        path.with_name(f"{path.stem}-{index}.json").write_text(json.dumps(summary))

    def fire(self, user: FastHttpUser, number: int, item: int, scheduled_s: float, who: int | None = None) -> None:
        """Sends one request now, waits for its end, and notes it with times from the beginning of the schedule.

        `who` of the stage's users it is from; None where they have no names.
        """
        began_s, traffic = self.began.get(), self.stage.traffic
        # The replica of sticky balancing, and the dice of random choices: the same in every run of this schedule.
        headers = self.headers | {"x-rung-key": str(item), "x-rung-request": ticket_of(traffic.seed, number)}
        if who is not None:
            headers["x-rung-user"] = str(who)
        body = cast(Any, self.payloads.body(item))  # bytes; typed as str by Locust
        sent_s = time.monotonic()
        remaining_s = max(0.001, scheduled_s + began_s + traffic.timeout_s - sent_s)
        status, record, error, reason, request_id = 0, None, None, "", None
        with (
            gevent.Timeout(remaining_s, False),
            user.client.post("/predict", data=body, headers=headers, catch_response=True) as response,
        ):
            status = response.status_code
            replied_s = time.monotonic()
            record = response.headers.get("x-rung-record") if status > 0 else None
            request_id = response.headers.get("x-request-id") if status == 200 else None
            if status != 200:
                error = GAVE_UP if _timed_out(response.error) else str(response.error or f"HTTP {status}")
                reason = _reason(response.content)
                response.failure(reason or error)
            # Locust's own pages show the latency that this project means: from the scheduled time.
            response.request_meta["response_time"] = (replied_s - began_s - scheduled_s) * 1000
        if status == 200 and self.labels is not None:
            self.labels.answered(user.client, number, item, request_id)
        if status == 0 and error is None:
            replied_s, error = time.monotonic(), GAVE_UP
            self.environment.events.request.fire(
                request_type="POST",
                name="/predict",
                response_time=(replied_s - began_s - scheduled_s) * 1000,
                response_length=0,
                exception=TimeoutError(f"no answer within {traffic.timeout_s:g} s"),
                context={},
            )
        self.rows.append(
            (number, item, scheduled_s, sent_s - began_s, replied_s - began_s, status, reason, record, error)
        )


class OpenLoopUser(FastHttpUser):
    """One user that fires the whole schedule: a request at each arrival time, however many are in flight."""

    fixed_count = 1
    wait_time = constant(0)
    concurrency = 5000  # its default of 10 would silently cap the requests in flight
    max_retries = 0
    max_redirects = 0

    @task
    def walk(self) -> None:
        """Walks this worker's part of the schedule once, waits for the last replies, and ends the run."""
        shots = _shots(self.environment)
        began_s = shots.began.get()
        assert shots.schedule is not None  # the stage's loop is open: see _ready
        numbers, part = split(shots.schedule, *shots.worker)
        shots.due = len(numbers)
        give_way_s = _give_way_s(len(numbers) / part.duration_s)
        in_flight = Group()
        who = [None] * len(numbers) if part.users is None else part.users.tolist()
        each = zip(numbers.tolist(), part.items.tolist(), part.arrivals_s.tolist(), who, strict=True)
        for number, item, at_s, from_whom in each:
            _wait_until(began_s + at_s, give_way_s)
            in_flight.add(gevent.spawn(shots.fire, self, number, item, at_s, from_whom))
        _wait_until(began_s + part.duration_s, give_way_s)
        in_flight.join(shots.stage.traffic.timeout_s + 1.0)
        if shots.labels is not None:
            shots.labels.finish()
        _finish(self.environment)
        gevent.sleep(float("inf"))


class ClosedLoopUser(FastHttpUser):
    """One of many users, each of whom thinks, asks, and waits for the answer before thinking again."""

    wait_time = constant(0)
    concurrency = 10
    max_retries = 0
    max_redirects = 0

    @task
    def live(self) -> None:
        """Lives until the duration is over; the first user ends the run when nobody waits for an answer any more."""
        shots = _shots(self.environment)
        began_s, duration_s = shots.began.get(), shots.stage.traffic.duration_s
        user = next(shots.numbers)
        gevent.sleep(max(0.0, began_s - time.monotonic()))
        draws: Iterator[tuple[float, int]] = user_draws(shots.stage.traffic, user)
        for think_time_s, item in draws:
            if time.monotonic() + think_time_s - began_s >= duration_s:
                break
            gevent.sleep(max(0.0, think_time_s))
            shots.due += 1
            shots.in_flight += 1
            shots.fire(self, -1, item, time.monotonic() - began_s, user)
            shots.in_flight -= 1
        if user == shots.worker[0]:
            ends_s = began_s + duration_s + 0.2
            gevent.sleep(max(0.0, ends_s - time.monotonic()))
            while shots.in_flight and time.monotonic() < ends_s + shots.stage.traffic.timeout_s + 1.0:
                gevent.sleep(0.02)
            if shots.labels is not None:
                shots.labels.finish()
            _finish(self.environment)
        gevent.sleep(float("inf"))


@events.init_command_line_parser.add_listener
def _arguments(parser: LocustArgumentParser) -> None:
    add = parser.add_argument
    add("--stage", default="single-vm", help="A stage's name or file: its traffic is fired.")
    add("--rows", default="", help="Write a row a request to Parquet files of this stem.")
    add("--payloads", default="", include_in_web_ui=False, help="Bodies to send, made before.")
    add("--guarded", action="store_true", include_in_web_ui=False, help="End when stdin ends.")


@events.init.add_listener
def _ready(environment: Any, **_: Any) -> None:
    try:
        environment.shots = Shots(environment)
    except StageError as error:
        _give_up(str(error))
    stage = _shots(environment).stage
    options = environment.parsed_options
    if options.guarded:
        # A thread of its own, which ends the process however busy or stuck the greenlets are.
        gevent.monkey.get_original("_thread", "start_new_thread")(_leave_when_alone, ())
    if not environment.host:
        environment.host = _url_of_stage_that_is_up(stage.name)
    if stage.traffic.loop == "open":
        environment.user_classes = [OpenLoopUser]
        OpenLoopUser.fixed_count = max(1, options.processes or options.expect_workers or 1)
        options.num_users = OpenLoopUser.fixed_count
    else:
        environment.user_classes = [ClosedLoopUser]
        options.num_users = ClosedLoopUser.fixed_count = stage.traffic.closed_users
    options.spawn_rate = options.num_users  # all at once: at Locust's one a second every further worker would be late
    for user in (OpenLoopUser, ClosedLoopUser):
        user.host = environment.host
        user.connection_timeout = user.network_timeout = stage.traffic.timeout_s
    if isinstance(environment.runner, WorkerRunner):
        environment.runner.register_message("rung_begin", _on_begin)
    if isinstance(environment.runner, MasterRunner):
        environment.rung_unfinished = 0
        environment.runner.register_message("rung_finished", _on_finished)
    # gevent counts from the time at which it last looked: without this --run-time would begin before all of the above.
    gevent.get_hub().loop.update_now()


@events.test_start.add_listener
def _start(environment: Any, **_: Any) -> None:
    runner, shots = environment.runner, _shots(environment)
    began_s = time.monotonic() + LEAD_S
    if shots.rows_path is not None and not isinstance(runner, WorkerRunner):
        write_atomically(shots.rows_path.with_suffix(raw_rows.BEGAN), repr(began_s))
    if isinstance(runner, MasterRunner):
        traffic = shots.stage.traffic
        # A worker that has no user never finishes, and is not waited for.
        most = traffic.closed_users if traffic.loop == "closed" else runner.worker_count
        environment.rung_unfinished = min(runner.worker_count, most)
        gevent.spawn_later(0.1, runner.send_message, "rung_begin", began_s)
    elif isinstance(runner, LocalRunner):
        shots.begin(began_s)


@events.test_stop.add_listener
def _stop(environment: Any, **_: Any) -> None:
    if not isinstance(environment.runner, MasterRunner):
        _shots(environment).end()


def _on_begin(environment: Any, msg: Any, **_: Any) -> None:
    _shots(environment).begin(msg.data)


def _on_finished(environment: Any, msg: Any, **_: Any) -> None:
    del msg
    environment.rung_unfinished -= 1
    if environment.rung_unfinished <= 0:
        _end_run(environment)


def _finish(environment: Any) -> None:
    if isinstance(environment.runner, WorkerRunner):
        environment.runner.send_message("rung_finished")
    else:
        _end_run(environment)


def _end_run(environment: Any) -> None:
    """Headless: leave. With the web page: stop, so that the result can be looked at and the run started again."""
    headless = environment.parsed_options.headless
    gevent.spawn(environment.runner.quit if headless else environment.runner.stop)


def _shots(environment: Any) -> Shots:
    shots: Shots = environment.shots
    return shots


def _leave_when_alone() -> None:
    """Waits for the end of stdin, which comes when the process that started this one is gone."""
    os.read(0, 1)
    os._exit(1)


def _url_of_stage_that_is_up(name: str) -> str:
    from reference_apps.up import list_up

    found = [up.url for up in list_up() if up.stage == name]
    if not found:
        _give_up(f"{name}: is not up and no --host was given. Start it with `rung up {name}`, or give --host URL.")
    return found[0]


def _give_up(why: str) -> NoReturn:
    """Ends this process with words, and with it its workers: Locust leaves those that are still starting alone, and
    they look for it for minutes."""
    sys.stderr.write(f"{why}\n")
    for worker in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()
    sys.exit(2)


def _give_way_s(rate_rps: float) -> float:
    """How long before each of `rate_rps` arrivals a second to stop sleeping."""
    least_s, most_s = GIVE_WAY_S
    return min(most_s, max(least_s, GIVE_WAY_SHARE / max(rate_rps, 1e-9)))


def _wait_until(at_s: float, give_way_s: float) -> None:
    remaining_s = at_s - time.monotonic()
    if remaining_s > give_way_s:
        gevent.sleep(remaining_s - give_way_s)
    while time.monotonic() < at_s:
        gevent.sleep(0)


def _timed_out(error: Any) -> bool:
    """True when a request ended by a timer, ours above all: the client takes that for a broken connection."""
    return isinstance(getattr(error, "original", error), (gevent.Timeout, TimeoutError))


def _reason(content: bytes | None) -> str:
    """The `title` of an error as RFC 9457 puts it, or nothing."""
    try:
        title = json.loads(content or b"")["title"]
    except (ValueError, KeyError, TypeError):
        return ""
    return str(title)


def _cpu_s() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)
