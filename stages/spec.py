"""The stage: what is served, by which policies, under which traffic. The only code that reads a stage file.

    stage.toml ──▶ load_stage ──▶ Stage ──▶ simulator, reference_apps, loadtests
                       │
                       └─ every problem at once: bounds of a key (beside it, in words by stages/advice.py),
                          rules over several keys (stages/rules.py)

A key has a default, bounds and, at the end of its name, a unit. What it does not hold: how a policy decides
(`stages/policies/`), and what a device's service times are (`stages/catalogue/`).
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import Field, ValidationError

from stages import arms
from stages.alerts import Alerts, Logs
from stages.cache import Cache
from stages.cost import Cost
from stages.demand import Traffic
from stages.feedback import Feedback
from stages.fleet import Fleet, Gateway
from stages.machine import Machine
from stages.model_facts import ModelFacts
from stages.problems import Problem, StageError, did_you_mean, from_pydantic, shown
from stages.queue import Queue
from stages.scaling import Scaling
from stages.split import Split
from stages.table import Table

STAGES_DIR = Path(__file__).parent
BUNDLED_VERSION = "1"  # of the weights that come with the project


class Model(Table):
    """What answers: a version out of the registry, a safetensors file, or else the project's own weights."""

    name: Literal["digits", "resnet50", "xor"]
    version: str | None = Field(None, min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")  # or an alias of one
    registry: str | None = Field(None, min_length=1)  # its folder; without it $RUNG_REGISTRY, or the one of the runs
    weights: str | None = None
    facts: ModelFacts | None = None  # of the version; without them, what its metadata say
    image_size_px: int | None = Field(None, ge=32, le=1024)  # resnet50 only, which takes 224 without it
    memory_gib: float | None = Field(None, gt=0.0, le=10_000.0)  # of a GPU that workers share: what it takes there

    @property
    def known(self) -> ModelFacts:
        """Its facts; the neutral ones where the stage has none."""
        return self.facts or ModelFacts()

    @property
    def answers_as(self) -> str:
        """The version that its answers name."""
        return self.version or BUNDLED_VERSION


class Device(Table):
    """Where the model runs: `cpu` and `cuda` are timed, `emulated` keeps the pace of a catalogue row."""

    kind: Literal["cpu", "cuda", "emulated"]
    profile: str | None = None  # of an emulated device: a name out of `rung devices`
    slowdown: float = Field(1.0, ge=1.0, le=1000.0)  # of an emulated device: every batch takes so many times longer
    cpu_threads: int = Field(1, ge=1, le=1024)
    memory_gib: float | None = Field(None, gt=0.0, le=10_000.0)  # of a GPU that workers share: how much it has


class Batching(Table):
    """When a batch leaves: full, or `batch_wait_timeout_s` after its oldest request came (Ray Serve's names)."""

    max_batch_size: int = Field(1, ge=1, le=4096)
    batch_wait_timeout_s: float = Field(0.0, ge=0.0, le=60.0)


class Admission(Table):
    """Who is let in: a bounded queue, and a deadline that ends the wait of a request nobody waits for any more."""

    max_queue_length: int = Field(256, ge=1, le=1_000_000)
    retry_after_s: float = Field(1.0, gt=0.0, le=3600.0)
    deadline_s: float | None = Field(None, gt=0.0, le=3600.0)
    max_body_bytes: int = Field(16_777_216, ge=1024, le=1_073_741_824)


class Lifecycle(Table):
    """How long starting and stopping may take."""

    ready_timeout_s: float = Field(60.0, gt=0.0, le=3600.0)
    drain_timeout_s: float = Field(30.0, gt=0.0, le=3600.0)


class Slo(Table):
    """What was promised: `share` of the requests within `latency_s`."""

    latency_s: float = Field(gt=0.0, le=3600.0)
    share: float = Field(0.95, gt=0.0, lt=1.0)


class Stage(Table):
    """One rung of the ladder: everything that both worlds need to know about it."""

    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    title: str = Field(min_length=1)
    question: str = Field(min_length=1)
    grown_from: str = ""
    overload: bool = False  # more may arrive than can be served, and that is meant
    model: Model
    device: Device
    batching: Batching = Batching()
    admission: Admission = Admission()
    lifecycle: Lifecycle = Lifecycle()
    machine: Machine = Machine()
    fleet: Fleet = Fleet()
    gateway: Gateway | None = None  # without one, clients talk to the only replica themselves
    cache: Cache | None = None  # without it, every answer is computed
    queue: Queue | None = None  # without it, requests are answered at once
    feedback: Feedback | None = None  # without it, nothing is kept of the answers
    scaling: Scaling | None = None  # without it, the fleet stays as it is
    split: Split | None = None  # without it, there is one version of the model
    cost: Cost | None = None  # without it, reports have no dollars
    traffic: Traffic
    slo: Slo
    logs: Logs = Logs()
    alerts: Alerts = Alerts()


def load_stage(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Stage:
    """Reads a stage by its name (`micro-batched`) or its file, with keys overridden (`{"slo.latency_s": 0.2}`).

    An override of None removes the key. Paths in the file are seen from the file, paths in overrides from the
    working directory; both become absolute. Raises StageError with every problem of file and overrides at once.
    """
    path = find_stage(name_or_path)
    table = _read(path)
    _anchor_paths(table, path.parent)
    for dotted, value in (overrides or {}).items():
        _override(table, dotted, value, str(path))
    _anchor_paths(table, Path.cwd())
    return parse_stage(table, str(path))


def with_overrides(stage: Stage, overrides: Mapping[str, Any]) -> Stage:
    """The stage with dotted keys set as in `load_stage`; an override of None removes the key.

    Raises StageError when the result is not a sound stage.
    """
    table = tomllib.loads(stage_toml(stage))
    for dotted, value in overrides.items():
        _override(table, dotted, value, stage.name)
    _anchor_paths(table, Path.cwd())
    return parse_stage(table, stage.name)


def parse_stage(table: Mapping[str, Any], source: str = "stage") -> Stage:
    """Checks a stage given as nested tables; `source` heads the error text. Raises StageError."""
    from stages import rules  # they are about the tables above, and so import this module

    stage: Stage | None = None
    problems: list[Problem] = []
    try:
        stage = Stage.model_validate(table)
    except ValidationError as error:
        problems += from_pydantic(Stage, error.errors())
    problems += rules.broken(table)
    if problems or stage is None:
        raise StageError(source, problems)
    return stage


def stage_toml(stage: Stage) -> str:
    """The resolved stage as TOML: every key that counts, defaults included, without those that nothing reads.

    `load_stage` of this text gives back an equal Stage.
    """
    from stages import unread

    table = stage.model_dump(exclude_none=True)
    for key in unread.of_stage(stage):
        *parents, last = key.dotted.split(".")
        owner = table
        for parent in parents:
            owner = owner[parent]
        owner.pop(last, None)
    return tomli_w.dumps(table)


def stage_files() -> dict[str, Path]:
    """Name → file of the project's own stages, in the order of the ladder."""
    files = sorted(STAGES_DIR.glob("[0-9][0-9]_*/stage.toml"))
    return {path.parent.name[3:].replace("_", "-"): path for path in files}


def find_stage(name_or_path: str | Path) -> Path:
    """The stage file behind a name or a path. Raises StageError that names the stages there are."""
    known, path = stage_files(), Path(name_or_path)
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    if path.is_file():
        return path
    if path.is_dir():
        path = path / "stage.toml"
        if path.is_file():
            return path
        remedy = f"Name one that has it, or a stage: {', '.join(known)}."
        problem = Problem("stage.toml", "must be in the folder", None, "There is no stage to read.", remedy)
        raise StageError(str(path.parent), [problem])
    remedy = did_you_mean(str(name_or_path), known, f"The stages are {', '.join(known)}.")
    rule = "must be the name of a stage, its file or its folder"
    problem = Problem("stage", rule, shown(str(name_or_path)), "Nothing of that name was found.", remedy)
    raise StageError(str(name_or_path), [problem])


def device_label(stage: Stage) -> str:
    """How reports name the stage's device; an emulated one is always called so."""
    device = stage.device
    if device.kind != "emulated":
        return device.kind
    slower = f", {device.slowdown:g} times slower" if device.slowdown != 1.0 else ""
    return f"emulated {device.profile}{slower}"


def fleet_label(stage: Stage) -> str:
    """How reports name all of the stage's devices: `2 x emulated t4-…`, or `emulated t4-… + emulated a100-…`.

    Replicas alike are counted; the kinds come in the order of their first replica.
    """
    counts = Counter(device_label(of_replica(stage, number)) for number in range(arms.replicas_of(stage)))
    return " + ".join(label if count == 1 else f"{count} x {label}" for label, count in counts.items())


def of_replica(stage: Stage, number: int) -> Stage:
    """The stage as replica `number` sees it: on the device that the fleet has for it, with the model of its arm."""
    place = arms.place_of(stage, number)
    device = arms.device_of(stage, number, device_of_replica(stage.device, stage.fleet, place))
    model = arms.model_of(stage, arms.arm_of(stage, number))
    return stage.model_copy(update={"device": device, "model": model})


def device_of_replica(device: Device, fleet: Fleet, number: int) -> Device:
    """The device of replica `number`: [device], with the profile that the fleet gives it where it gives any."""
    if not fleet.profiles:
        return device
    return device.model_copy(update={"profile": fleet.profiles[number % len(fleet.profiles)]})


def without_version(model: Model) -> Model:
    """The model as its device would run any version of it: what a calibration is of."""
    return model.model_copy(update={"version": None, "registry": None, "facts": None})


def capacity_rps(service_time_s: Callable[[int], float], max_batch_size: int) -> float:
    """The most requests per second that one device serves: the best of n / service_time_s(n) over batch sizes n."""
    return max(n / service_time_s(n) for n in range(1, max_batch_size + 1))


def mean_rate_rps(traffic: Traffic) -> float | None:
    """The mean arrival rate over the run in requests per second; None for a closed loop, which has none.

    Raises StageError for a trace that cannot be replayed.
    """
    if traffic.loop == "closed" or traffic.rate is None:
        return None
    return traffic.rate.mean_rps(traffic.duration_s)


def _read(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises StageError when it holds none."""
    unread = "Nothing could be read."
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        problem = Problem("file", "must describe a stage", "an empty file", unread, _EXAMPLE)
    except tomllib.TOMLDecodeError as error:
        reason, _, place = str(error).removesuffix(")").partition(" (at ")
        rule = f"is no TOML: {reason[:1].lower()}{reason[1:]}"
        problem = Problem(place or "file", rule, None, unread, "Mend that place.")
    except UnicodeDecodeError:
        problem = Problem("file", "must be a text in UTF-8", "other bytes", unread, _EXAMPLE)
    except OSError as error:
        problem = Problem("file", "must be readable", str(error.strerror), unread, "Change its permissions.")
    else:
        if table:
            return table
    raise StageError(str(path), [problem])


_EXAMPLE = "Begin with the text of `rung show single-vm`."


def _override(table: dict[str, Any], dotted: str, value: Any, source: str) -> None:
    """Sets a dotted key, or removes it when the value is None."""
    *parents, last = dotted.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            remedy = "The keys are shown by `rung show`."
            problem = Problem(dotted, f"is no key, because {parent} is no table", None, "It cannot be set.", remedy)
            raise StageError(source, [problem])
    if value is None:
        table.pop(last, None)
    else:
        table[last] = value


# Keys that hold a path.
_PATHS = (
    "traffic.rate.path",
    "model.weights",
    "model.registry",
    "gateway.edge.tls_certificate",
    "gateway.edge.tls_key",
)


def _anchor_paths(table: dict[str, Any], folder: Path) -> None:
    """Paths in a stage file are seen from the file; from here on they are absolute."""
    for dotted in _PATHS:
        *parents, name = dotted.split(".")
        owner: Any = table
        for parent in parents:
            owner = owner.get(parent) if isinstance(owner, dict) else None
        if isinstance(owner, dict) and isinstance(owner.get(name), str) and owner[name]:
            owner[name] = str((folder / Path(owner[name]).expanduser()).resolve())
