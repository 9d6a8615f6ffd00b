"""Keys that nothing reads, given what other keys say: a stage that has one is refused, and none is written out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stages.alerts import Alerts
from stages.cache import Cache
from stages.cost import Cost
from stages.demand import TraceRate, Traffic
from stages.feedback import Feedback
from stages.fleet import Fleet, Gateway
from stages.problems import Problem, StageError, shown
from stages.queue import Queue
from stages.scaling import Scaling
from stages.spec import Admission, Device, Model, Stage
from stages.split import Split
from stages.table import Table


@dataclass(frozen=True)
class Unread:
    """A key that nothing reads; `owner` is the table that it stands in, `belongs_to` the choice that would read it."""

    dotted: str
    owner: Table
    belongs_to: str
    consequence: str
    remedy: str

    @property
    def name(self) -> str:
        """The last part of the dotted key."""
        return self.dotted.rsplit(".", 1)[-1]

    @property
    def given(self) -> bool:
        """Whether the file has the key, rather than its default."""
        return self.name in self.owner.model_fields_set

    def problem(self) -> Problem:
        """What to tell the person who wrote the key."""
        value = getattr(self.owner, self.name)
        got = "a table" if isinstance(value, Table) else shown(value)
        return Problem(self.dotted, f"belongs to {self.belongs_to} only", got, self.consequence, self.remedy)


def of_stage(stage: Stage) -> Iterator[Unread]:
    """Every key that nothing reads in this stage, whether the file has it or not."""
    yield from of_model(stage.model, stage.split)
    yield from of_shared_gpu(stage.model, stage.device, stage.queue)
    yield from of_admission(stage.admission, stage.queue)
    yield from of_device(stage.device)
    yield from of_fleet(stage.fleet, stage.device)
    yield from of_gateway(stage.gateway)
    yield from of_cache(stage.cache)
    yield from of_queue(stage.queue)
    yield from of_feedback(stage.feedback)
    yield from of_split(stage.split, stage.device)
    yield from of_traffic(stage.traffic, stage.split, stage.feedback)
    yield from of_alerts(stage.alerts)
    yield from of_scaling(stage.scaling, stage.queue)
    yield from of_cost(stage.cost, stage.split)


def of_model(model: Model, split: Split | None) -> Iterator[Unread]:
    """The keys of [model] that nothing reads."""
    if model.name != "resnet50":
        consequence = f"The input of {model.name} has one size."
        yield Unread("model.image_size_px", model, 'model.name "resnet50"', consequence, "Remove it.")
    if model.version is None and split is None:
        consequence = "The weights that come with the project, and those of a file, are in no registry."
        yield Unread("model.registry", model, "model.version", consequence, "Remove it, or write model.version.")


def of_admission(admission: Admission, queue: Queue | None) -> Iterator[Unread]:
    """The keys of [admission] that nothing reads: those of a queue in front of a device, where there is another."""
    if queue is not None:
        consequence = "Jobs wait in the queue, and workers take no more than a batch out of it."
        remedy = "Remove it, or write queue.max_depth."
        yield Unread("admission.max_queue_length", admission, "stages without a [queue]", consequence, remedy)


def of_shared_gpu(model: Model, device: Device, queue: Queue | None) -> Iterator[Unread]:
    """The keys of [model] and [device] about a GPU's memory, which workers alone share in turns."""
    if queue is None:
        consequence = "Whoever answers at once cannot wait for a turn on a GPU."
        owners: tuple[tuple[str, Table], ...] = (("model", model), ("device", device))
        for name, owner in owners:
            yield Unread(
                f"{name}.memory_gib", owner, "stages with a [queue]", consequence, "Remove it, or write [queue]."
            )


def of_device(device: Device) -> Iterator[Unread]:
    """The keys of [device] that nothing reads."""
    if device.kind != "emulated":
        owner, remedy = 'device.kind "emulated"', 'Remove it, or set device.kind = "emulated".'
        consequence = f'A "{device.kind}" device runs at its own pace.'
        yield Unread("device.profile", device, owner, consequence, remedy)
        yield Unread("device.slowdown", device, owner, consequence, remedy)


def of_fleet(fleet: Fleet, device: Device) -> Iterator[Unread]:
    """The keys of [fleet] that nothing reads."""
    if device.kind != "emulated":
        remedy = 'Remove it, or set device.kind = "emulated".'
        consequence = f'A "{device.kind}" device runs at its own pace.'
        yield Unread("fleet.profiles", fleet, 'device.kind "emulated"', consequence, remedy)


def of_gateway(gateway: Gateway | None) -> Iterator[Unread]:
    """The keys of [gateway] that nothing reads: of other policies, and of what nginx does in its own way or not."""
    if gateway is None:
        return

    def unread(name: str, belongs_to: str, consequence: str, remedy: str) -> Unread:
        return Unread(f"gateway.{name}", gateway, belongs_to, consequence, remedy)

    ours, instead = 'gateway.engine "rung"', 'Remove it, or set gateway.engine = "rung".'
    if gateway.policy != "sticky":
        consequence, remedy = "No other policy has a bound on load.", 'Remove it, or set gateway.policy = "sticky".'
        yield unread("sticky_load_bound", 'gateway.policy "sticky"', consequence, remedy)
    elif gateway.engine == "nginx":
        yield unread("sticky_load_bound", ours, "Nginx's consistent hashing has no bound on load.", instead)
    if gateway.retries_max == 0:
        remedy = "Remove it, or raise gateway.retries_max."
        yield unread("retry_budget_share", "gateway.retries_max of 1 and more", "Nothing is tried again.", remedy)
    elif gateway.engine == "nginx":
        yield unread("retry_budget_share", ours, "Nginx has no budget of retries.", instead)
    if gateway.engine == "nginx":
        consequence = "Nginx's free edition sends no probes: it goes by the requests that fail."
        for name in ("probe_interval_s", "probe_timeout_s", "unhealthy_after", "healthy_after"):
            yield unread(name, ours, consequence, instead)


def of_cache(cache: Cache | None) -> Iterator[Unread]:
    """The keys of [cache] that nothing reads: those of a store that is asked over a network."""
    if cache is not None and cache.store != "redis":
        consequence = "The gateway's own memory has no address, and is always there."
        for name in ("url_env", "timeout_s", "down_s"):
            remedy = 'Remove it, or set cache.store = "redis".'
            yield Unread(f"cache.{name}", cache, 'cache.store "redis"', consequence, remedy)


def of_queue(queue: Queue | None) -> Iterator[Unread]:
    """The keys of [queue] that nothing reads: those of callbacks, where none can be signed."""
    if queue is not None and queue.webhook_secret_env is None:
        consequence = (
            "Callbacks are signed, and there is nothing to sign them with: a job that asks for one is refused."
        )
        for name in ("webhook_attempts_max", "webhook_private"):
            remedy = "Remove it, or write queue.webhook_secret_env."
            yield Unread(f"queue.{name}", queue, "queue.webhook_secret_env", consequence, remedy)


def of_feedback(feedback: Feedback | None) -> Iterator[Unread]:
    """The keys of [feedback] that nothing reads: when a label would come that no client gives."""
    if feedback is not None and feedback.share == 0.0:
        consequence, remedy = "No client of a load test gives a label.", "Remove it, or raise feedback.share."
        yield Unread("feedback.delay_s", feedback, "feedback.share above 0", consequence, remedy)


def of_split(split: Split | None, device: Device) -> Iterator[Unread]:
    """The keys of [split] that nothing reads: of a ramp, of shadows, and of devices that are what they are."""
    if split is None:
        return
    if split.ramp is not None:
        consequence, remedy = "The ramp says the share.", "Remove it, or remove [split.ramp]."
        yield Unread("split.challenger_share", split, "stages without [split.ramp]", consequence, remedy)
    if split.mode != "shadow":
        consequence, remedy = "No copy is made of any request.", 'Remove it, or set split.mode = "shadow".'
        yield Unread("split.shadow_outstanding_max", split, 'split.mode "shadow"', consequence, remedy)
    if device.kind != "emulated":
        consequence = f'A "{device.kind}" device runs at its own pace.'
        remedy = 'Remove it, or set device.kind = "emulated".'
        yield Unread("split.challenger_profile", split, 'device.kind "emulated"', consequence, remedy)


def of_cost(cost: Cost | None, split: Split | None) -> Iterator[Unread]:
    """The keys of [cost] that nothing reads: the price of a challenger that there is not."""
    if cost is not None and split is None:
        for name in ("challenger_machine", "challenger_usd_per_hour"):
            remedy = "Remove it, or write [split]."
            yield Unread(f"cost.{name}", cost, "stages with a [split]", "There is no challenger to pay.", remedy)


def of_traffic(traffic: Traffic, split: Split | None, feedback: Feedback | None) -> Iterator[Unread]:
    """The keys of [traffic] that nothing reads. Opens a trace to see whether it has rates or single arrivals."""

    def unread(name: str, belongs_to: str, consequence: str, remedy: str, owner: Table = traffic) -> Unread:
        return Unread(f"traffic.{name}", owner, belongs_to, consequence, remedy)

    if traffic.loop == "closed":
        remedy = 'Remove it, or set traffic.loop = "open".'
        for name in ("rate", "arrivals", "coefficient_of_variation"):
            yield unread(name, 'traffic.loop "open"', "In a closed loop replies bring the next requests.", remedy)
        for name in ("user_popularity", "user_exponent"):
            yield unread(name, 'traffic.loop "open"', "In a closed loop every user asks as soon as it may.", remedy)
    else:
        remedy = 'Remove it, or set traffic.loop = "closed".'
        yield unread("think_time_s", 'traffic.loop "closed"', "In an open loop nobody waits for a reply.", remedy)
        yield from _of_users(traffic, split is not None or feedback is not None)
        if _names_each_arrival(traffic):
            for name in ("arrivals", "coefficient_of_variation"):
                yield unread(
                    name, "rates and traces of counts", "This trace says when each request comes.", "Remove it."
                )
        elif traffic.arrivals != "gamma":
            consequence = f'The spread of "{traffic.arrivals}" gaps is fixed.'
            remedy = 'Remove it, or set traffic.arrivals = "gamma".'
            yield unread("coefficient_of_variation", 'traffic.arrivals "gamma"', consequence, remedy)
    if traffic.items.popularity != "zipf":
        consequence, remedy = "All items are alike.", 'Remove it, or set traffic.items.popularity = "zipf".'
        belongs_to = 'traffic.items.popularity "zipf"'
        for name in ("exponent", "drift_interval_s", "drift_share"):
            yield unread(f"items.{name}", belongs_to, consequence, remedy, traffic.items)
    elif traffic.loop == "closed":
        consequence, remedy = "In a closed loop nobody knows when a request will come.", "Remove it."
        for name in ("drift_interval_s", "drift_share"):
            yield unread(f"items.{name}", 'traffic.loop "open"', consequence, remedy, traffic.items)


def _of_users(traffic: Traffic, asked: bool) -> Iterator[Unread]:
    """The keys about the users of an open loop; `asked` says whether anything goes by who sent a request."""
    if not asked:
        belongs_to = 'traffic.loop "closed" and stages with [split] or [feedback]'
        consequence, remedy = "In an open loop nobody else asks who sent a request.", "Remove it."
        yield Unread("traffic.users", traffic, belongs_to, consequence, remedy)
    named = asked and traffic.users is not None
    if not named:
        belongs_to, consequence = "traffic.users of an open loop", "Every request is a stranger's."
        yield Unread("traffic.user_popularity", traffic, belongs_to, consequence, "Remove it.")
    if not named or traffic.user_popularity != "zipf":
        remedy = 'Remove it, or set traffic.user_popularity = "zipf".'
        belongs_to = 'traffic.user_popularity "zipf"'
        yield Unread("traffic.user_exponent", traffic, belongs_to, "All users are alike.", remedy)


def of_alerts(alerts: Alerts) -> Iterator[Unread]:
    """The keys of [alerts] that nothing reads: those of a rule that is switched off."""
    for name in ("latency", "errors", "queue", "utilisation", "burn_rate"):
        rule = getattr(alerts, name)
        if rule.enabled:
            continue
        for key in type(rule).model_fields:
            if key != "enabled":
                owner = f"alerts.{name}.enabled = true"
                yield Unread(f"alerts.{name}.{key}", rule, owner, "This rule is switched off.", "Remove it.")


_METERED = ("metric", "scrape_interval_s", "window_s")
_BY_TARGET = (*_METERED, "target", "tolerance", "up", "down")
_READ_BY: dict[str, tuple[str, ...]] = {
    "target-tracking": _BY_TARGET,
    "keda": (*_BY_TARGET, "polling_interval_s", "activation_rps", "cooldown_s"),
    "step": (*_METERED, "above", "factor_up", "below", "factor_down", "cooldown_s"),
    "scheduled": ("schedule", "day_s"),
}


def of_scaling(scaling: Scaling | None, queue: Queue | None) -> Iterator[Unread]:
    """The keys of [scaling] that nothing reads: those of other policies."""
    if scaling is None:
        return
    for name in dict.fromkeys(name for names in _READ_BY.values() for name in names):
        if name not in _READ_BY[scaling.policy]:
            owners = " or ".join(f'"{policy}"' for policy, names in _READ_BY.items() if name in names)
            consequence = f'The policy "{scaling.policy}" does not read it.'
            yield Unread(f"scaling.{name}", scaling, f"scaling.policy {owners}", consequence, "Remove it.")
    if scaling.policy == "keda" and queue is not None:
        consequence = "With a queue, any job in it makes the first worker."
        yield Unread("scaling.activation_rps", scaling, "stages without a [queue]", consequence, "Remove it.")
    if scaling.policy == "step" and scaling.below is None:
        consequence = "Without a bound below no replica ever goes."
        yield Unread("scaling.factor_down", scaling, "scaling.below", consequence, "Remove it, or write scaling.below.")


def _names_each_arrival(traffic: Traffic) -> bool:
    """Whether the traffic comes from a trace of arrival times; False for a trace that cannot be read."""
    if not isinstance(traffic.rate, TraceRate):
        return False
    from stages import traces  # needs polars, which takes longer to import than all the rest

    try:
        return isinstance(traces.read(traffic.rate.path, traffic.rate.format), traces.Times)
    except StageError:
        return False
