"""Rules over the keys of [split]: what stands beside it, what its challenger must carry, what nothing would read.

Asked by stages/rules.py, like the rules there. A stage without [split] breaks none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from stages import catalogue, unread
from stages.cache import Cache
from stages.capacity import emulated_capacity
from stages.demand import Traffic
from stages.feedback import Feedback
from stages.fleet import Gateway
from stages.problems import Problem, StageError, did_you_mean, shown
from stages.queue import Queue
from stages.scaling import Scaling
from stages.spec import Batching, Device, Model, mean_rate_rps
from stages.split import Split


def no_unread_split_keys(split: Split | None, device: Device) -> Iterator[Problem]:
    """A key that nothing reads would look like a choice."""
    return (key.problem() for key in unread.of_split(split, device) if key.given)


def split_has_a_gateway(split: Split | None, gateway: Gateway | None, queue: Queue | None) -> Iterator[Problem]:
    """Somebody has to choose the arm of a request before it is computed."""
    if split is None:
        return
    if gateway is None:
        yield Problem(
            "split",
            "needs a [gateway]",
            "none",
            "Clients would go to a replica themselves, and nobody would choose its arm.",
            'Write [gateway] with policy = "least-outstanding", or remove [split].',
        )
    if queue is not None:
        yield Problem(
            "split",
            "cannot stand beside [queue]",
            "both",
            "Workers fetch their work, and know of no arms.",
            "Remove one of the two.",
        )


def arms_stay_as_they_are(split: Split | None, scaling: Scaling | None, cache: Cache | None) -> Iterator[Problem]:
    """What an experiment compares must not be changed, or hidden, by something else meanwhile."""
    if split is None:
        return
    others: tuple[tuple[str, object, str], ...] = (
        ("scaling", scaling, "Nothing says which arm a new replica would be of."),
        ("cache", cache, "A kept answer would hide what its arm takes to compute it."),
    )
    for name, other, consequence in others:
        if other is not None:
            yield Problem(name, "cannot stand beside [split]", "both", consequence, "Remove one of the two.")


def split_names_the_versions(split: Split | None, model: Model) -> Iterator[Problem]:
    """The model of a replica is that of its arm."""
    for name in ("version", "weights", "facts") if split is not None else ():
        if getattr(model, name) is not None:
            arm = "facts" if name == "facts" else "version"
            yield Problem(
                f"model.{name}",
                "cannot stand beside [split]",
                "both",
                f"Each arm has its own {arm}, and nothing would read this one.",
                "Remove it, and write split.champion"
                + ("_facts." if name == "facts" else ', a version out of the registry or its alias "champion".'),
            )


def nginx_only_splits(split: Split | None, gateway: Gateway | None) -> Iterator[Problem]:
    """Nginx has `split_clients`, and nothing that looks at answers."""
    if split is None or gateway is None or gateway.engine != "nginx":
        return
    if split.mode == "shadow":
        yield Problem(
            "split.mode",
            'must be "split" when gateway.engine is "nginx"',
            '"shadow"',
            "Nginx's mirror has a client's next request wait until the copy is answered.",
            'Use mode = "split", or gateway.engine = "rung".',
        )
    if split.guardrails is not None:
        yield Problem(
            "split.guardrails",
            'cannot stand beside gateway.engine "nginx"',
            "both",
            "Nginx counts no errors, latencies or labels by arm, and nobody would stop the challenger.",
            'Remove them, or use gateway.engine = "rung".',
        )


def ramp_rises(split: Split | None) -> Iterator[Problem]:
    """A ramp gives more and more users to the challenger; those it has keep it."""
    if split is None or split.ramp is None:
        return
    shares = split.ramp.shares
    if not shares or shares[0] == 0.0 or any(after <= before for before, after in pairwise(shares)):
        yield Problem(
            "split.ramp.shares",
            "must be at least one share, each greater than the one before it and the first greater than 0",
            str(list(shares)),
            "A step that changes nothing, or takes users away again, is no step.",
            "Use [0.01, 0.05, 0.2, 0.5].",
        )


def guardrails_watch_something(split: Split | None, feedback: Feedback | None) -> Iterator[Problem]:
    """A guardrail has a limit, and somebody who counts what it limits."""
    if split is None or split.guardrails is None:
        return
    if not split.guardrails.given:
        yield Problem(
            "split.guardrails",
            "must have errors_share_max, latency_s, goodput_share_min or accuracy_drop_max",
            "none of them",
            "Nothing would ever stop the challenger.",
            "Write one of them, or remove [split.guardrails].",
        )
    if split.guardrails.accuracy_drop_max is not None and feedback is None:
        yield Problem(
            "split.guardrails.accuracy_drop_max",
            "needs [feedback]",
            "none",
            "Without labels nobody knows which answers are right.",
            "Write [feedback], or remove it.",
        )


def challenger_profile_is_known(split: Split | None, device: Device, batching: Batching) -> Iterator[Problem]:
    """An emulated challenger takes its times from the catalogue, which does not guess."""
    name = None if split is None else split.challenger_profile
    if name is None or device.kind != "emulated":
        return
    profile = catalogue.profiles().get(name)
    if profile is None:
        yield Problem(
            "split.challenger_profile",
            "must be a profile of the catalogue",
            shown(name),
            "An emulated challenger needs a service time for each batch size.",
            did_you_mean(name, catalogue.profiles(), "List the profiles with `rung devices`."),
        )
    elif batching.max_batch_size > profile.max_batch_size:
        yield Problem(
            "batching.max_batch_size",
            f"must be at most {profile.max_batch_size} requests on {name}",
            str(batching.max_batch_size),
            "Larger batches were not measured, and service times are not guessed.",
            "Lower it, or pick another split.challenger_profile out of `rung devices`.",
        )


def challenger_carries_its_share(
    split: Split | None, device: Device, batching: Batching, traffic: Traffic, overload: Any
) -> Iterator[Problem]:
    """The share that the challenger comes to have is no more than its replicas can do, unless overload is meant.

    A shadow's copies are not made where it has no room. How slow the version itself is stays for the guardrails to
    find.
    """
    if split is None or split.mode == "shadow" or overload is True:
        return
    own = device
    if split.challenger_profile is not None:
        own = device.model_copy(update={"profile": split.challenger_profile})
    each = emulated_capacity(own, batching)
    try:
        rate_rps = mean_rate_rps(traffic)
    except StageError:
        return  # another rule says what is wrong with its trace
    if each is None or rate_rps is None:
        return
    share = split.challenger_share if split.ramp is None else max(split.ramp.shares, default=0.0)
    capacity_rps = split.challenger_replicas * each.rps
    if share * rate_rps >= capacity_rps:
        yield Problem(
            "split.challenger_replicas",
            f"must carry {share:g} of {rate_rps:g} requests per second, the most that the challenger gets",
            f"{split.challenger_replicas} with a capacity of {capacity_rps:.1f} ({each.arithmetic})",
            "Its queue would grow until it is full, and its users would be refused.",
            "Raise it, lower the challenger's share, or write overload = true if that is what you study.",
        )


RULES: tuple[Callable[..., Iterator[Problem]], ...] = (
    no_unread_split_keys,
    split_has_a_gateway,
    arms_stay_as_they_are,
    split_names_the_versions,
    nginx_only_splits,
    ramp_rises,
    guardrails_watch_something,
    challenger_profile_is_known,
    challenger_carries_its_share,
)
