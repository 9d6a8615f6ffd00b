"""Rules over several keys of a stage: what fits together, what nothing would read, what cannot be stable.

Each rule is a function of the tables that it names as parameters, and yields the problems that it finds. It is
asked whenever those tables are sound by themselves, so that one problem does not hide another.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from stages import (
    cache_rules,
    catalogue,
    cost_rules,
    feedback_rules,
    fleet_rules,
    machine_rules,
    model_rules,
    queue_rules,
    scaling_rules,
    sharing_rules,
    split_rules,
    unread,
)
from stages.alert_rules import burn_windows_hold_readings, windows_hold_readings
from stages.alerts import Alerts
from stages.cache import Cache
from stages.capacity import fleet_capacity, largest
from stages.demand import SpikeRate, StepRate, TraceRate, Traffic
from stages.feedback import Feedback
from stages.fleet import Fleet
from stages.model_facts import ModelFacts
from stages.problems import Problem, StageError, did_you_mean, shown
from stages.queue import Queue
from stages.scaling import Scaling
from stages.spec import Admission, Batching, Device, Model, Slo, Stage, mean_rate_rps
from stages.split import Split
from stages.table import Table

_ARRIVALS_MAX = 50_000_000


def broken(table: Mapping[str, Any]) -> Iterator[Problem]:
    """The problems that every rule finds in a stage given as nested tables."""
    sound: dict[str, Any] = {}
    for name, field in Stage.model_fields.items():
        if name in table or not field.is_required():
            try:
                sound[name] = _part(field.annotation, table.get(name, field.default))
            except ValidationError:
                continue  # stages.problems tells what is wrong with that table by itself
    for rule in RULES:
        needed = inspect.signature(rule).parameters
        if sound.keys() >= needed.keys():
            yield from rule(**{name: sound[name] for name in needed})


def _part(annotation: Any, value: Any) -> Any:
    table = next((part for part in get_args(annotation) or (annotation,) if issubclass(part, Table)), None)
    return value if table is None or value is None else table.model_validate(value)


def _mean_rate_rps(traffic: Traffic) -> float | None:
    """The mean arrival rate; None where another rule has found that there is none."""
    try:
        return mean_rate_rps(traffic)
    except StageError:
        return None


def no_unread_model_keys(model: Model, split: Split | None) -> Iterator[Problem]:
    """A key that nothing reads would look like a choice."""
    return (key.problem() for key in unread.of_model(model, split) if key.given)


def no_unread_device_keys(device: Device) -> Iterator[Problem]:
    """A key that nothing reads would look like a choice."""
    return (key.problem() for key in unread.of_device(device) if key.given)


def no_unread_traffic_keys(traffic: Traffic, split: Split | None, feedback: Feedback | None) -> Iterator[Problem]:
    """A key that nothing reads would look like a choice."""
    return (key.problem() for key in unread.of_traffic(traffic, split, feedback) if key.given)


def no_unread_alerts_keys(alerts: Alerts) -> Iterator[Problem]:
    """A key that nothing reads would look like a choice."""
    return (key.problem() for key in unread.of_alerts(alerts) if key.given)


def no_unread_scaling_keys(scaling: Scaling | None, queue: Queue | None) -> Iterator[Problem]:
    """A key that nothing reads would look like a choice."""
    return (key.problem() for key in unread.of_scaling(scaling, queue) if key.given)


def weights_are_safetensors(model: Model) -> Iterator[Problem]:
    """Weights are a file of a format that cannot run code."""
    if model.weights is None:
        return
    if not model.weights.endswith(".safetensors"):
        yield Problem(
            "model.weights",
            "must be a .safetensors file",
            shown(model.weights),
            "Other formats can run code when they are opened.",
            "Convert it with safetensors.torch.save_file.",
        )
    elif not Path(model.weights).is_file():
        yield Problem(
            "model.weights",
            "must be a file that exists",
            shown(model.weights),
            "The model would have no weights.",
            "Correct the path, which is seen from the stage file, or leave it out for the project's own.",
        )


def profile_is_known(device: Device) -> Iterator[Problem]:
    """An emulated device takes its times from the catalogue."""
    if device.kind != "emulated":
        return
    consequence = "An emulated device needs a service time for each batch size."
    otherwise = "List the profiles with `rung devices`."
    if device.profile is None:
        rule = 'is required when device.kind is "emulated"'
        yield Problem("device.profile", rule, None, consequence, otherwise)
    elif device.profile not in catalogue.profiles():
        remedy = did_you_mean(device.profile, catalogue.profiles(), otherwise)
        rule = "must be a profile of the catalogue"
        yield Problem("device.profile", rule, shown(device.profile), consequence, remedy)


def batch_fits_profile(device: Device, batching: Batching, fleet: Fleet) -> Iterator[Problem]:
    """Service times are not extrapolated, on no replica."""
    names = dict.fromkeys((device.profile or "", *fleet.profiles))
    for profile in (catalogue.profiles().get(name) for name in names):
        if profile is None or batching.max_batch_size <= profile.max_batch_size:
            continue
        yield Problem(
            "batching.max_batch_size",
            f"must be at most {profile.max_batch_size} requests on {profile.name}",
            str(batching.max_batch_size),
            "Larger batches were not measured, and service times are not guessed.",
            "Lower it, or pick another profile out of `rung devices`.",
        )


def queue_holds_a_batch(batching: Batching, admission: Admission, queue: Queue | None) -> Iterator[Problem]:
    """A batch is taken out of the queue, and so can be no longer than it."""
    if queue is None and admission.max_queue_length < batching.max_batch_size:
        yield Problem(
            "admission.max_queue_length",
            f"must be at least batching.max_batch_size ({batching.max_batch_size} requests)",
            str(admission.max_queue_length),
            "No batch could ever be full.",
            "Raise it, or lower batching.max_batch_size.",
        )


def wait_is_within_slo(batching: Batching, slo: Slo) -> Iterator[Problem]:
    """Waiting for company must not break the promise by itself."""
    if batching.batch_wait_timeout_s >= slo.latency_s:
        yield Problem(
            "batching.batch_wait_timeout_s",
            f"must be less than slo.latency_s ({slo.latency_s:g} seconds)",
            f"{batching.batch_wait_timeout_s:g}",
            "At low load every request would miss the promise by waiting for others.",
            "Lower it: a twentieth of slo.latency_s is a good start.",
        )


def input_fits_model(model: Model, traffic: Traffic) -> Iterator[Problem]:
    """Only pictures can be sent as pictures."""
    if model.name == "xor" and traffic.input_format == "png":
        yield Problem(
            "traffic.input_format",
            'must be "raw" or "json" for the model "xor"',
            '"png"',
            "Its input is two numbers, and no picture.",
            'Use "raw".',
        )


def open_loop_has_a_rate(traffic: Traffic) -> Iterator[Problem]:
    """Arrivals that ignore replies need a rate of their own."""
    if traffic.loop == "open" and traffic.rate is None:
        yield Problem(
            "traffic.rate",
            'is required when traffic.loop is "open"',
            None,
            "Nothing would arrive.",
            'Write [traffic.rate] with shape = "constant" and rate_rps, or set traffic.loop = "closed".',
        )


def gamma_has_a_spread(traffic: Traffic) -> Iterator[Problem]:
    """Gamma gaps are told by their mean, which is the rate, and their coefficient of variation."""
    if traffic.loop == "open" and traffic.arrivals == "gamma" and traffic.coefficient_of_variation is None:
        yield Problem(
            "traffic.coefficient_of_variation",
            'is required when traffic.arrivals is "gamma"',
            None,
            "Nothing else says how bursty the arrivals are.",
            "Use 3.0 for bursts; 1.0 is a Poisson process.",
        )


def change_is_within_run(traffic: Traffic) -> Iterator[Problem]:
    """A step or a spike after the end would never be seen."""
    match traffic.rate:
        case StepRate(step_at_s=at_s):
            key, what = "step_at_s", "step"
        case SpikeRate(spike_start_s=at_s):
            key, what = "spike_start_s", "spike"
        case _:
            return
    if at_s >= traffic.duration_s:
        yield Problem(
            f"traffic.rate.{key}",
            f"must be less than traffic.duration_s ({traffic.duration_s:g} seconds)",
            f"{at_s:g}",
            f"The {what} would never come.",
            "Lower it, or lengthen the run.",
        )


def trace_can_be_replayed(traffic: Traffic) -> Iterator[Problem]:
    """The trace is there, is of a known format, and lasts as long as the run."""
    if traffic.loop == "open" and isinstance(traffic.rate, TraceRate):
        try:
            mean_rate_rps(traffic)
        except StageError as error:
            yield from error.problems


def run_has_requests(traffic: Traffic) -> Iterator[Problem]:
    """A run has at least one request in the mean, and no more than fit into memory."""
    rate_rps = _mean_rate_rps(traffic)
    requests = 1.0 if rate_rps is None else rate_rps * traffic.duration_s
    got = f"{requests:.3g} ({rate_rps or 0.0:g} requests per second for {traffic.duration_s:g} seconds)"
    if requests < 1:
        yield Problem(
            "traffic.rate",
            "must bring at least 1 request in traffic.duration_s",
            got,
            "There would be nothing to measure.",
            "Raise the rate, or lengthen the run.",
        )
    if requests > _ARRIVALS_MAX:
        yield Problem(
            "traffic.rate",
            f"must bring at most {_ARRIVALS_MAX:,} requests in traffic.duration_s",
            got,
            "The schedule is made before the run, and would not fit into memory.",
            "Lower the rate, or shorten the run.",
        )


def rate_is_below_capacity(
    model: Model,
    device: Device,
    batching: Batching,
    fleet: Fleet,
    scaling: Scaling | None,
    cache: Cache | None,
    traffic: Traffic,
    split: Split | None,
    overload: Any,
) -> Iterator[Problem]:
    """More work than the devices can do is an error with its arithmetic, unless the stage says that it is meant.

    What a cache leaves for the devices is known when it has run: nothing is said of it here. With [split] it is the
    champion's devices that must carry all, since a challenger may be stopped.
    """
    if cache is not None:
        return
    facts = model.known if split is None else split.champion_facts or ModelFacts()
    factor, rate_rps = facts.service_time_factor, _mean_rate_rps(traffic)
    capacity = fleet_capacity(device, batching, largest(fleet, scaling), factor)
    if overload is not True and capacity is not None and rate_rps is not None and rate_rps >= capacity.rps:
        more = "batching.max_batch_size" if capacity.replicas == 1 else "the number of replicas"
        yield Problem(
            "traffic.rate",
            f"must on average be below the capacity of {capacity}",
            f"{rate_rps:.1f}",
            "The queue would grow until it is full, and the rest would be refused.",
            f"Lower the rate, raise {more}, or write overload = true if that is what you study.",
        )


RULES: tuple[Callable[..., Iterator[Problem]], ...] = (
    no_unread_model_keys,
    no_unread_device_keys,
    no_unread_traffic_keys,
    no_unread_alerts_keys,
    no_unread_scaling_keys,
    weights_are_safetensors,
    profile_is_known,
    batch_fits_profile,
    queue_holds_a_batch,
    wait_is_within_slo,
    input_fits_model,
    open_loop_has_a_rate,
    gamma_has_a_spread,
    change_is_within_run,
    trace_can_be_replayed,
    run_has_requests,
    rate_is_below_capacity,
    windows_hold_readings,
    burn_windows_hold_readings,
    *fleet_rules.RULES,
    *cache_rules.RULES,
    *queue_rules.RULES,
    *feedback_rules.RULES,
    *split_rules.RULES,
    *sharing_rules.RULES,
    *machine_rules.RULES,
    *model_rules.RULES,
    *scaling_rules.RULES,
    *cost_rules.RULES,
)
