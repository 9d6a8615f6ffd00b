"""The running stack watches itself: its metrics, every alerts.interval_s, against the rules of its stage.

    targets ─▶ scrape, all at once ─▶ readings: the sum over all processes ─▶ rules ─▶ changes
                                                               alerts.jsonl, log, webhook ◀─┘

Twin: simulator/alerts.py, which takes its readings from records. The arithmetic and the decisions are in
stages/policies/alerting.py. It does not watch the machine (processors, memory, disks), and not itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from reference_apps import split_file
from reference_apps.launchers.launcher import SPLIT_FOLDER, Launcher
from reference_apps.logs import fields
from reference_apps.scrape import Scraped, Target, counts_requests, scrape, targets_of, write_targets
from reference_apps.tolerated import Tolerated
from reference_apps.webhook import CLOSING_S, Webhook, WebhookError, address
from stages.alerts import in_words, latency_bounds_of, limits_of, rules_of
from stages.policies.alerting import Change, Reading, RuleSet
from stages.policies.histogram import increase
from stages.spec import Stage

__all__ = ["readings", "watch"]

ALERTS_FILE = "alerts.jsonl"
# Replicas that are asked at once, and how long one of them may take.
SCRAPES_MAX = 32
SCRAPE_TIMEOUT_S = 1.0

log = logging.getLogger("rung.alerts")

Targets = Callable[[], Sequence[Target]]


def watch(
    stage: Stage, targets: Targets, folder: Path, stopping: threading.Event, split_folder: Path | None = None
) -> None:
    """Asks the stage's rules until `stopping` is set; for a thread of its own.

    `targets` tells who can be asked now, `split_folder` has the control file of a split. Changes go to alerts.jsonl in
    `folder`, to the log and to the webhook. What goes wrong here is written to the log and never raised: alerts must
    not end what they watch.
    """
    rules = RuleSet(rules_of(stage), limits_of(stage))
    with ExitStack() as stack:
        webhook = _opened(stage, stack)
        stops = None if stage.split is None else Stops(stage, split_folder or folder / SPLIT_FOLDER)
        asking = Tolerated("alerts could not be worked out or told", log, Exception)
        for reading in readings(stage, _published(stage, targets, folder), stopping):
            with asking:
                changes = [described(stage, rules, change) for change in rules.ask(reading)]
                for told in [*changes, *(stops.look() if stops is not None else ())]:
                    _tell(told, folder)
                    if webhook is not None and told["state"] in ("firing", "resolved"):
                        webhook.offer(told)


def readings(stage: Stage, targets: Targets, stopping: threading.Event) -> Iterator[Reading]:
    """What the metrics of the whole stack say, every alerts.interval_s until `stopping` is set; times are monotonic."""
    whole, interval_s = Whole(stage), stage.alerts.interval_s
    timeout_s = min(interval_s, SCRAPE_TIMEOUT_S)
    due_s, looking = time.monotonic(), Tolerated("the metrics could not be looked at", log, Exception)
    with ThreadPoolExecutor(SCRAPES_MAX, "scrape") as pool:
        while not stopping.is_set():
            reading = None
            with looking:
                asked, at_s = list(targets()), time.monotonic()
                answers = pool.map(lambda target: scrape(stage, target, whole.bounds_s, timeout_s), asked)
                reading = whole.reading(at_s, zip(asked, answers, strict=True))
            if reading is not None:
                yield reading
            due_s = max(due_s + interval_s, time.monotonic())  # what was missed is not made up for
            stopping.wait(due_s - time.monotonic())


class Whole:
    """The sum over all processes, from whose counts nothing is lost when one of them starts anew."""

    def __init__(self, stage: Stage) -> None:
        self.bounds_s = latency_bounds_of(stage)
        self._counting = counts_requests(stage)
        self._last: dict[tuple[str, int | None], Scraped] = {}
        self._sum = Reading(0.0, answers_within=(0.0,) * (len(self.bounds_s) + 1))

    def reading(self, at_s: float, answers: Iterable[tuple[Target, Scraped | None]]) -> Reading:
        """The sum after one more look; targets that did not answer add nothing."""
        queue_length, replicas = 0.0, 0
        for target, scraped in answers:
            if scraped is None:
                continue
            self._add(target, scraped)
            queue_length += scraped.queue_length
            replicas += target.role == "replica"
        self._sum = replace(self._sum, at_s=at_s, queue_length=queue_length, replicas=replicas)
        return self._sum

    def _add(self, target: Target, now: Scraped) -> None:
        who = (target.role, target.number)
        before = self._last.get(who, Scraped(answers_within=(0.0,) * len(now.answers_within)))
        self._last[who] = now
        total = self._sum
        if target.role == self._counting:
            pairs = zip(total.answers_within, before.answers_within, now.answers_within, strict=True)
            total = replace(
                total,
                requests=total.requests + increase(before.requests, now.requests),
                errors=total.errors + increase(before.errors, now.errors),
                answers_within=tuple(count + increase(then, more) for count, then, more in pairs),
            )
        busy_s = increase(before.device_busy_s, now.device_busy_s)
        self._sum = replace(total, device_busy_s=total.device_busy_s + busy_s)


class Stops:
    """The guardrail that has stopped the challenger of a split, told once; and that it is tried again, if it is."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self._stage, self._folder = stage, folder
        self._stopped = ""

    def look(self) -> list[dict[str, Any]]:
        """What has changed since the last look; nothing where the control file cannot be read."""
        try:
            told = split_file.read(self._folder)
        except (OSError, ValueError):
            return []
        if told is None or told.stopped == self._stopped:
            return []
        before, self._stopped = self._stopped, told.stopped
        guardrail, state = told.stopped or before, "firing" if told.stopped else "resolved"
        why = told.why if told.stopped else "the challenger is tried again"
        return [
            {
                "time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
                "stage": self._stage.name,
                "alert": f"guardrail-{guardrail}",
                "state": state,
                "severity": "page",
                "value": None,
                "above": None,
                "text": f"{self._stage.name}: guardrail-{guardrail} is {state}: {why}",
            }
        ]


@contextmanager
def watching(launcher: Launcher) -> Iterator[None]:
    """Watches the stage of a launcher in a thread of its own, until the block is left."""
    stopping = threading.Event()
    arguments = (launcher.stage, lambda: targets_of(launcher), launcher.folder, stopping, launcher.split_folder)
    thread = threading.Thread(target=watch, args=arguments, name="alerts", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(2 * CLOSING_S)


def described(stage: Stage, rules: RuleSet, change: Change) -> dict[str, Any]:
    """A change as it is written and posted; `text` is for people, and what chat programs show of a message."""
    (rule,) = (rule for rule in rules.rules if rule.name == change.alert)
    return {
        "time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "stage": stage.name,
        "alert": change.alert,
        "state": change.state,
        "severity": change.severity,
        "value": change.value,
        "above": change.above,
        "text": f"{stage.name}: {change.alert} is {change.state}: {in_words(rule, change.value)}",
    }


def _published(stage: Stage, targets: Targets, folder: Path) -> Targets:
    """The same targets, written to targets.json whenever they change."""
    last: list[Target] | None = None

    def publish() -> Sequence[Target]:
        nonlocal last
        now = list(targets())
        if now != last:
            try:
                write_targets(stage, now, folder)
            except OSError as error:
                log.error("targets not written", extra=fields(why=error.strerror))
            last = now
        return now

    return publish


def _tell(told: dict[str, Any], folder: Path) -> None:
    level = logging.WARNING if told["state"] == "firing" else logging.INFO
    log.log(level, told["text"], extra=fields(**{name: told[name] for name in ("alert", "state", "value", "above")}))
    try:
        with (folder / ALERTS_FILE).open("ab") as file:
            file.write(orjson.dumps(told) + b"\n")
    except OSError as error:
        log.error("alert not written", extra=fields(why=error.strerror))


def _opened(stage: Stage, stack: ExitStack) -> Webhook | None:
    settings = stage.alerts.webhook
    if settings is None:
        return None
    try:
        return stack.enter_context(Webhook(address(settings), settings))
    except WebhookError as error:
        log.error(str(error))
        return None
