"""The stage: what is served, by which policies, under which traffic. The only code that reads a stage file.

    stage.toml ──▶ load_stage ──▶ Stage ──▶ simulator, reference_apps, loadtests

Every problem of a file is found and told at once (`stages.problems`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages import catalogue
from stages.problems import Problem, StageError, from_pydantic

STAGES_DIR = Path(__file__).parent


class Table(BaseModel):
    """A table of a stage file: read-only, strict about types, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def key(default: Any = ..., *, why: str, do: str, unit: str = "", **bounds: Any) -> Any:
    """A key of a stage file with what follows when its rule is broken (`why`) and what to do then (`do`)."""
    return Field(default, json_schema_extra={"why": why, "do": do, "unit": unit}, **bounds)


class Model(Table):
    """What answers. `weights` names a safetensors file; without one, the project's own weights are used."""

    name: Literal["digits", "resnet50", "xor"] = key(
        why="There is no such model to serve.",
        do="Pick one of those, or add yours in reference_apps/models/.",
    )
    version: str = key(
        "1", min_length=1, why="Every answer names the version that gave it.", do='Write version = "1".'
    )
    weights: str | None = key(
        None, why="The weights could not be found.", do="Give the path of a .safetensors file."
    )
    image_size_px: int | None = key(
        None,
        ge=32,
        le=1024,
        unit="pixels",
        why="resnet50 halves its input five times.",
        do="Use 224 as ImageNet does.",
    )


class Device(Table):
    """Where the model runs: `cpu` and `cuda` are timed, `emulated` keeps the pace of a catalogue row."""

    kind: Literal["cpu", "cuda", "emulated"] = key(
        why="No device of that kind can run a batch.",
        do='Use "emulated" with a profile to pace a GPU on a laptop.',
    )
    profile: str | None = key(
        None,
        why="An emulated device needs a service time for each batch size.",
        do="List them with `rung devices`.",
    )
    slowdown: float = key(
        1.0,
        ge=1.0,
        le=1000.0,
        why="An emulated device cannot be faster than its profile.",
        do="Leave it at 1.0.",
    )
    cpu_threads: int = key(
        1,
        ge=1,
        le=1024,
        unit="threads",
        why="PyTorch needs a thread to compute with.",
        do="Use 1 on a shared laptop.",
    )


class Batching(Table):
    """When a batch leaves: full, or `batch_wait_timeout_s` after its oldest request arrived (Ray Serve's names)."""

    max_batch_size: int = key(
        1,
        ge=1,
        le=4096,
        unit="requests",
        why="A batch without a request never leaves.",
        do="Use 1 for no batching.",
    )
    batch_wait_timeout_s: float = key(
        0.0,
        ge=0.0,
        le=60.0,
        unit="seconds",
        why="A batch cannot leave before its first request.",
        do="Use 0 to wait for nothing.",
    )


class Admission(Table):
    """Who is let in: a bounded queue, and a deadline that ends the wait of a request nobody waits for any more."""

    max_queue_length: int = key(
        256,
        ge=1,
        le=1_000_000,
        unit="requests",
        why="A queue without a limit turns overload into minutes of latency.",
        do="Start with capacity in requests per second times the wait you would accept.",
    )
    retry_after_s: float = key(
        1.0,
        gt=0.0,
        le=3600.0,
        unit="seconds",
        why="It is told to every client that is refused.",
        do="Use 1.0.",
    )
    deadline_s: float | None = key(
        None,
        gt=0.0,
        le=3600.0,
        unit="seconds",
        why="No request could be answered in time.",
        do="Use the client's timeout, or leave it out.",
    )
    max_body_bytes: int = key(
        16_777_216,
        ge=1024,
        le=1_073_741_824,
        unit="bytes",
        why="One large body could take the memory of all.",
        do="Use 16777216 (16 MiB).",
    )


class Lifecycle(Table):
    """How long starting and stopping may take."""

    ready_timeout_s: float = key(
        60.0,
        gt=0.0,
        le=3600.0,
        unit="seconds",
        why="A replica that never gets ready would be waited for forever.",
        do="Use 60.",
    )
    drain_timeout_s: float = key(
        30.0,
        gt=0.0,
        le=3600.0,
        unit="seconds",
        why="Accepted requests would be cut off at SIGTERM.",
        do="Use 30.",
    )


RPS = "requests per second"
_NO_RATE = {"why": "Nothing would arrive.", "do": "Give the rate in requests per second.", "unit": RPS}
_TIME = {"why": "The traffic has no time to change in.", "do": "Give it in seconds.", "unit": "seconds"}


class ConstantRate(Table):
    """The same rate all the time."""

    shape: Literal["constant"]
    rate_rps: float = key(gt=0.0, le=1e6, **_NO_RATE)


class RampRate(Table):
    """A straight line from one rate to another over the whole duration."""

    shape: Literal["ramp"]
    rate_rps_start: float = key(ge=0.0, le=1e6, **_NO_RATE)
    rate_rps_end: float = key(gt=0.0, le=1e6, **_NO_RATE)


class StepRate(Table):
    """One rate until `step_at_s`, another from then on."""

    shape: Literal["step"]
    rate_rps: float = key(gt=0.0, le=1e6, **_NO_RATE)
    rate_rps_after: float = key(ge=0.0, le=1e6, **_NO_RATE)
    step_at_s: float = key(gt=0.0, le=1e7, **_TIME)


class SpikeRate(Table):
    """A base rate, `spike_factor` times as high from `spike_start_s` for `spike_duration_s`."""

    shape: Literal["spike"]
    rate_rps: float = key(gt=0.0, le=1e6, **_NO_RATE)
    spike_factor: float = key(
        gt=0.0, le=1e4, why="The spike would be no traffic at all.", do="Use 8 for eight times the rate."
    )
    spike_start_s: float = key(ge=0.0, le=1e7, **_TIME)
    spike_duration_s: float = key(gt=0.0, le=1e7, **_TIME)


class DiurnalRate(Table):
    """A day as a sine: mean `rate_rps`, swinging by `amplitude` of it, lowest at the start of each period."""

    shape: Literal["diurnal"]
    rate_rps: float = key(gt=0.0, le=1e6, **_NO_RATE)
    amplitude: float = key(0.8, ge=0.0, le=1.0, why="The rate would fall below zero at night.", do="Use 0.8.")
    period_s: float = key(86_400.0, gt=0.0, le=1e7, **_TIME)


class TraceRate(Table):
    """Arrivals out of a file: times as they are, or counts a bin as a rate (see `stages.traces` for the formats)."""

    shape: Literal["trace"]
    path: str = key(
        min_length=1, why="There is no trace to replay.", do="Give a path, seen from the stage file."
    )
    format: Literal["auto", "azure-llm", "azure-functions", "burstgpt", "counts"] = key(
        "auto", why="The columns cannot be told apart.", do='Use "auto" to read it off the header.'
    )
    start_s: float = key(
        0.0, ge=0.0, le=1e9, unit="seconds", why="A trace has nothing before its start.", do="Use 0."
    )
    time_scale: float = key(
        1.0, gt=0.0, le=1e6, why="Time would stand still.", do="Use 0.1 to replay an hour in six minutes."
    )
    rate_scale: float = key(
        1.0,
        gt=0.0,
        le=1e6,
        why="No request would be left.",
        do="Use 2 for twice as many requests in the same time.",
    )


Rate = Annotated[
    ConstantRate | RampRate | StepRate | SpikeRate | DiurnalRate | TraceRate, Field(discriminator="shape")
]


class Items(Table):
    """What is asked for: one of `count` inputs, all alike or by Zipf's law with an exponent."""

    popularity: Literal["uniform", "zipf"] = key(
        "uniform", why="Items have no such popularity.", do='Use "uniform".'
    )
    count: int = key(
        1000, ge=1, le=100_000_000, unit="items", why="There would be nothing to ask for.", do="Use 1000."
    )
    exponent: float = key(1.0, gt=0.0, le=10.0, why="Zipf's law needs a positive exponent.", do="Use 1.0.")


class Traffic(Table):
    """Who arrives, when, and for what; all of it follows from `seed`."""

    loop: Literal["open", "closed"] = key(
        "open",
        why="Arrivals either ignore replies or wait for them.",
        do='Use "open" unless you know your users wait.',
    )
    duration_s: float = key(
        60.0, gt=0.0, le=1e7, unit="seconds", why="The run would be over at once.", do="Use 60."
    )
    seed: int = key(1, ge=0, le=2**63 - 1, why="Random streams are numbered from 0.", do="Use 1.")
    arrivals: Literal["poisson", "gamma", "deterministic"] = key(
        "poisson",
        why="Gaps between arrivals follow no such law.",
        do='Use "poisson" for many independent users.',
    )
    coefficient_of_variation: float | None = key(
        None, gt=0.0, le=100.0, why="Gamma gaps need their spread.", do="Use 3.0 for bursts, 1.0 is Poisson."
    )
    rate: Rate = key(
        why="Nothing would arrive.", do='Write [traffic.rate] with shape = "constant" and rate_rps.'
    )
    items: Items = key(
        Items(), why="Requests must ask for something.", do="Leave [traffic.items] out for 1000 equal items."
    )
    users: int = key(
        10, ge=1, le=1_000_000, unit="users", why="A closed loop is made of users.", do="Use 10."
    )
    think_time_s: float = key(
        1.0, ge=0.0, le=1e6, unit="seconds", why="A user cannot ask before the reply.", do="Use 1.0."
    )
    timeout_s: float = key(
        10.0, gt=0.0, le=3600.0, unit="seconds", why="Clients would wait forever or not at all.", do="Use 10."
    )
    input_format: Literal["raw", "json", "png"] = key(
        "raw",
        why="Inputs can be sent in those forms only.",
        do='Use "raw" (float32) for the least work on the host.',
    )


class Slo(Table):
    """What was promised: `share` of the requests within `latency_s`."""

    latency_s: float = key(
        gt=0.0, le=3600.0, unit="seconds", why="Nothing could be good enough.", do="Use 0.1."
    )
    share: float = key(
        0.95, gt=0.0, lt=1.0, why="A promise holds for a share of the requests.", do="Use 0.95."
    )


class Stage(Table):
    """One rung of the ladder: everything that both worlds need to know about it."""

    name: str = key(
        pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$",
        why="The name is typed after `rung up`.",
        do='Use words like "micro-batched".',
    )
    title: str = key(
        min_length=1, why="Reports are headed by it.", do="Say in a few words what the stage is."
    )
    question: str = key(
        min_length=1, why="A stage exists to answer one.", do="Write the question that it answers."
    )
    grown_from: str = key("", why="It is shown by `rung stages`.", do="Say where the stage comes from.")
    overload: bool = key(
        False,
        why="It tells that more may arrive than can be served.",
        do="Write overload = true, or leave it out.",
    )
    model: Model = key(why="There would be nothing to serve.", do='Write [model] with name = "digits".')
    device: Device = key(why="The model would have nowhere to run.", do='Write [device] with kind = "cpu".')
    batching: Batching = key(
        Batching(), why="It says when a batch leaves.", do="Leave [batching] out for one at a time."
    )
    admission: Admission = key(
        Admission(), why="It bounds the queue.", do="Leave [admission] out for a queue of 256."
    )
    lifecycle: Lifecycle = key(
        Lifecycle(), why="It bounds start and stop.", do="Leave [lifecycle] out for 60 and 30 seconds."
    )
    traffic: Traffic = key(why="Nothing would arrive.", do="Write [traffic] with a [traffic.rate].")
    slo: Slo = key(why="Goodput needs a promise to be held to.", do="Write [slo] with latency_s.")


def load_stage(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Stage:
    """Reads a stage by its name (`micro-batched`) or its file, with dotted keys overridden (`{"slo.latency_s": 0.2}`).

    Raises StageError with every problem of the file and of the overrides at once.
    """
    path = find_stage(name_or_path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise StageError(str(path), [_not_toml(str(error))]) from None
    except UnicodeDecodeError:
        raise StageError(str(path), [_not_toml("the file is not UTF-8 text")]) from None
    for dotted, value in (overrides or {}).items():
        _override(table, dotted, value, str(path))
    _anchor_paths(table, path.parent)
    return parse_stage(table, str(path))


def parse_stage(table: Mapping[str, Any], source: str = "stage") -> Stage:
    """Checks a stage given as nested tables; `source` heads the error text. Raises StageError."""
    stage: Stage | None = None
    problems: list[Problem] = []
    try:
        stage = Stage.model_validate(table)
    except ValidationError as error:
        problems += from_pydantic(Stage, error.errors())
    problems += _broken_rules(table)
    if problems or stage is None:
        raise StageError(source, problems)
    return stage


def stage_files() -> dict[str, Path]:
    """Name → file of the project's own stages, in the order of the ladder."""
    files = sorted(STAGES_DIR.glob("[0-9][0-9]_*/stage.toml"))
    return {path.parent.name[3:].replace("_", "-"): path for path in files}


def find_stage(name_or_path: str | Path) -> Path:
    """The stage file behind a name or a path. Raises StageError that lists the names there are."""
    known = stage_files()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    path = Path(name_or_path)
    if path.is_dir():
        path = path / "stage.toml"
    if path.is_file():
        return path
    raise StageError(
        str(name_or_path),
        [
            Problem(
                "stage",
                "must be a stage's name or file",
                shown_name(name_or_path),
                "No such stage was found.",
                f"Known names: {', '.join(known)}.",
            )
        ],
    )


def shown_name(name: str | Path) -> str:
    """A name in quotes, for messages."""
    return f'"{name}"'


def stage_toml(stage: Stage) -> str:
    """The resolved stage as TOML: `load_stage` of this text gives back an equal Stage."""
    return tomli_w.dumps(stage.model_dump(exclude_none=True))


def capacity_rps(service_time_s: Callable[[int], float], max_batch_size: int) -> float:
    """The most requests per second that one device serves: the best of n / service_time_s(n) over batch sizes n."""
    return max(n / service_time_s(n) for n in range(1, max_batch_size + 1))


def _not_toml(reason: str) -> Problem:
    return Problem("file", "must be TOML", reason, "Nothing could be read.", "Mend the line named there.")


def _override(table: dict[str, Any], dotted: str, value: Any, source: str) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        inner = table.setdefault(parent, {})
        if not isinstance(inner, dict):
            problem = Problem(
                dotted,
                f"'{parent}' is a value, not a table",
                None,
                "The key cannot be set.",
                "See the keys with `rung show`.",
            )
            raise StageError(source, [problem])
        table = inner
    table[last] = value


def _anchor_paths(table: dict[str, Any], folder: Path) -> None:
    """Paths in a stage file are seen from the file; from here on they are absolute."""
    rate = table.get("traffic", {}).get("rate", {}) if isinstance(table.get("traffic"), dict) else {}
    model = table.get("model", {})
    for owner, name in ((rate, "path"), (model, "weights")):
        if isinstance(owner, dict) and isinstance(owner.get(name), str) and owner[name]:
            owner[name] = str((folder / Path(owner[name]).expanduser()).resolve())


def _broken_rules(table: Mapping[str, Any]) -> Iterator[Problem]:
    """Rules over several keys, each checked when the tables it needs are sound, whatever the others are."""
    parts: dict[str, Any] = {}
    for name, field in Stage.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Table):
            try:
                parts[name] = annotation.model_validate(table.get(name, {}))
            except ValidationError:
                continue
        else:
            parts[name] = table.get(name, field.default)
    for needs, rule in _RULES:
        if all(need in parts for need in needs):
            yield from rule(*(parts[need] for need in needs))


def _device_rules(device: Device) -> Iterator[Problem]:
    if device.kind == "emulated" and device.profile is None:
        yield Problem(
            "device.profile",
            'is required when device.kind is "emulated"',
            None,
            "An emulated device needs a service time for each batch size.",
            "List them with `rung devices`.",
        )
    if device.kind != "emulated" and device.profile is not None:
        yield Problem(
            "device.profile",
            'belongs to device.kind "emulated" only',
            f'"{device.profile}"',
            f"A {device.kind} device takes the time it takes.",
            'Remove it, or set kind = "emulated".',
        )
    if device.kind != "emulated" and device.slowdown != 1.0:
        yield Problem(
            "device.slowdown",
            'belongs to device.kind "emulated" only',
            f"{device.slowdown:g}",
            f"A {device.kind} device cannot be slowed down.",
            'Remove it, or set kind = "emulated".',
        )
    if device.profile is not None and device.profile not in catalogue.profiles():
        yield Problem(
            "device.profile",
            "must be a profile of the device catalogue",
            f'"{device.profile}"',
            "The device would have no service times.",
            f"{_near_profile(device.profile)}",
        )


def _near_profile(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, catalogue.profiles(), n=1, cutoff=0.4)
    return f"Did you mean '{near[0]}'?" if near else "List them with `rung devices`."


def _batch_fits_profile(device: Device, batching: Batching) -> Iterator[Problem]:
    profile = catalogue.profiles().get(device.profile or "")
    if profile is not None and batching.max_batch_size > profile.max_batch_size:
        yield Problem(
            "batching.max_batch_size",
            f"must be at most {profile.max_batch_size} requests for {profile.name}",
            str(batching.max_batch_size),
            "The profile was not measured beyond that, and is not extrapolated.",
            "Lower it, or pick another profile.",
        )


def _model_rules(model: Model) -> Iterator[Problem]:
    if model.image_size_px is not None and model.name != "resnet50":
        yield Problem(
            "model.image_size_px",
            'belongs to model.name "resnet50" only',
            str(model.image_size_px),
            f"The input of {model.name} has one size.",
            "Remove it.",
        )
    if model.weights is not None and not model.weights.endswith(".safetensors"):
        yield Problem(
            "model.weights",
            "must be a .safetensors file",
            f'"{model.weights}"',
            "Other formats can run code when they are opened.",
            "Convert it with safetensors.torch.save_file.",
        )
    elif model.weights is not None and not Path(model.weights).is_file():
        yield Problem(
            "model.weights",
            "must be a file that exists",
            f'"{model.weights}"',
            "The model would have no weights.",
            "Correct the path, or leave it out for the project's own.",
        )


def _traffic_rules(traffic: Traffic) -> Iterator[Problem]:
    if traffic.arrivals == "gamma" and traffic.coefficient_of_variation is None:
        yield Problem(
            "traffic.coefficient_of_variation",
            'is required when traffic.arrivals is "gamma"',
            None,
            "Gamma gaps need their spread.",
            "Use 3.0 for bursts, 1.0 is Poisson.",
        )
    if traffic.arrivals != "gamma" and traffic.coefficient_of_variation is not None:
        yield Problem(
            "traffic.coefficient_of_variation",
            'belongs to traffic.arrivals "gamma" only',
            f"{traffic.coefficient_of_variation:g}",
            f"The spread of {traffic.arrivals} gaps is fixed.",
            'Remove it, or set arrivals = "gamma".',
        )
    match traffic.rate:
        case TraceRate(path=path) if not Path(path).is_file():
            yield Problem(
                "traffic.rate.path",
                "must be a file that exists",
                f'"{path}"',
                "There is no trace to replay.",
                "Correct the path; it is seen from the stage file.",
            )
        case StepRate(step_at_s=at_s) if at_s >= traffic.duration_s:
            yield Problem(
                "traffic.rate.step_at_s",
                f"must be before traffic.duration_s ({traffic.duration_s:g} seconds)",
                f"{at_s:g}",
                "The step would never come.",
                "Lower it, or lengthen the run.",
            )
        case SpikeRate(spike_start_s=start_s) if start_s >= traffic.duration_s:
            yield Problem(
                "traffic.rate.spike_start_s",
                f"must be before traffic.duration_s ({traffic.duration_s:g} seconds)",
                f"{start_s:g}",
                "The spike would never come.",
                "Lower it, or lengthen the run.",
            )
        case _:
            pass


def _wait_within_slo(batching: Batching, slo: Slo) -> Iterator[Problem]:
    if batching.batch_wait_timeout_s >= slo.latency_s:
        yield Problem(
            "batching.batch_wait_timeout_s",
            f"must be below slo.latency_s ({slo.latency_s:g} seconds)",
            f"{batching.batch_wait_timeout_s:g}",
            "At low load every request would miss the promise by waiting.",
            "Lower it: a twentieth of the SLO is a good start.",
        )


def _input_format(model: Model, traffic: Traffic) -> Iterator[Problem]:
    if model.name == "xor" and traffic.input_format == "png":
        yield Problem(
            "traffic.input_format",
            'must be "raw" or "json" for model "xor"',
            '"png"',
            "Two numbers are no picture.",
            'Use "raw".',
        )


def _stable(device: Device, batching: Batching, traffic: Traffic, overload: Any) -> Iterator[Problem]:
    """More work than the device can do is an error with its arithmetic, unless the stage says that it means it."""
    profile = catalogue.profiles().get(device.profile or "")
    rate_rps = mean_rate_rps(traffic)
    if (
        overload is True
        or profile is None
        or rate_rps is None
        or batching.max_batch_size > profile.max_batch_size
    ):
        return
    capacity = capacity_rps(profile.service_time_s, batching.max_batch_size) / device.slowdown
    if rate_rps >= capacity:
        yield Problem(
            "traffic.rate",
            f"must stay below the capacity of {capacity:.1f} requests per second on average "
            f"(the best of n / service time for n up to {batching.max_batch_size} on {profile.name}"
            f"{f', {device.slowdown:g} times slower' if device.slowdown != 1 else ''})",
            f"{rate_rps:.1f}",
            "The queue would grow until it is full, and the rest be refused.",
            "Lower the rate, raise batching.max_batch_size, or say overload = true.",
        )


def mean_rate_rps(traffic: Traffic) -> float | None:
    """The mean arrival rate of an open loop in requests per second; None for a closed loop and for a trace."""
    if traffic.loop == "closed":
        return None
    duration_s = traffic.duration_s
    match traffic.rate:
        case ConstantRate(rate_rps=rate) | DiurnalRate(rate_rps=rate):
            return rate
        case RampRate(rate_rps_start=start, rate_rps_end=end):
            return (start + end) / 2
        case StepRate(rate_rps=before, rate_rps_after=after, step_at_s=at_s):
            share = min(at_s / duration_s, 1.0)
            return before * share + after * (1 - share)
        case SpikeRate(rate_rps=base, spike_factor=factor, spike_start_s=start_s, spike_duration_s=spike_s):
            share = max(0.0, min(start_s + spike_s, duration_s) - start_s) / duration_s
            return base * (1 + (factor - 1) * share)
        case _:
            return None


_RULES: list[tuple[tuple[str, ...], Callable[..., Iterator[Problem]]]] = [
    (("model",), _model_rules),
    (("device",), _device_rules),
    (("traffic",), _traffic_rules),
    (("device", "batching"), _batch_fits_profile),
    (("batching", "slo"), _wait_within_slo),
    (("model", "traffic"), _input_format),
    (("device", "batching", "traffic", "overload"), _stable),
]
