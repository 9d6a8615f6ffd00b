"""What follows when the rule of a key is broken, and what to do then: a sentence each for every key of a stage.

The rules themselves (bounds, choices, patterns) stand beside the keys in stages/spec.py.
"""

from __future__ import annotations

from stages import (
    alert_advice,
    cache_advice,
    cost_advice,
    feedback_advice,
    fleet_advice,
    queue_advice,
    scaling_advice,
    split_advice,
)

_UNIT_OF_ENDING = {
    "_s": "seconds",
    "_rps": "requests per second",
    "_px": "pixels",
    "_bytes": "bytes",
    "_mib": "MiB",
    "_gib": "GiB",
}
_UNIT_OF_KEY = {
    "max_batch_size": "requests",
    "max_queue_length": "requests",
    "cpu_threads": "threads",
    "cpus": "processors",
    "count": "items",
    "min_replicas": "replicas",
    "max_replicas": "replicas",
    "users": "users",
    "queue_length_max": "alerts",
    "rate_rps_start": "requests per second",
    "rate_rps_end": "requests per second",
    "rate_rps_after": "requests per second",
    **fleet_advice.UNITS,
    **cost_advice.UNITS,
    **queue_advice.UNITS,
    **feedback_advice.UNITS,
    **split_advice.UNITS,
}

_NO_RATE = ("Nothing would arrive.", "Give the rate in requests per second.")
_NEGATIVE_RATE = ("A rate cannot be negative, and has no default.", "Use 0.0 for no traffic.")

# Dotted key → (consequence, what to do) when the key is missing, too low or not one of the choices.
ADVICE: dict[str, tuple[str, str]] = {
    "name": ("The name is what is typed after `rung up`.", 'Use words like "micro-batched".'),
    "title": ("Reports are headed by it.", "Say in a few words what the stage is."),
    "question": ("A stage exists to answer one.", "Write the question that it answers."),
    "grown_from": ("`rung stages` shows it.", "Say in a few words where the stage comes from."),
    "overload": ("It says that more may arrive than can be served.", "Write overload = true, or leave it out."),
    "model": ("There would be nothing to serve.", 'Write [model] with name = "digits".'),
    "model.name": ("It says what is served.", 'Use "digits" to begin with, or add yours in reference_apps/models/.'),
    "model.version": (
        "It says which version out of the registry answers.",
        'Write version = "champion", or leave it out for the weights that come with the project.',
    ),
    "model.registry": (
        "Versions of models are read out of a folder.",
        "Give its path, seen from the stage file, or leave it out for the one of the runs.",
    ),
    "model.facts": ("They stand in for what the version's metadata say.", "Write [model.facts], or leave it out."),
    "model.facts.service_time_factor": (
        "Nothing makes a model faster than its device.",
        "Use 1.0 for the device's own time.",
    ),
    "model.facts.crash_share": ("It is a share of all inputs.", "Use 0.001 for one in a thousand."),
    "model.facts.accuracy": ("It is a share of the answers.", "Use 0.97 for 97 %."),
    "model.weights": ("The model would have no weights.", "Give the path of a .safetensors file."),
    "model.image_size_px": ("resnet50 halves an image five times.", "Use 224 as ImageNet does."),
    "model.memory_gib": (
        "A model takes some of the memory of its GPU.",
        "Use what `nvidia-smi` shows while it computes.",
    ),
    "device": ("The model would have nowhere to run.", 'Write [device] with kind = "cpu".'),
    "device.kind": (
        "It says what runs the batches.",
        'Use "emulated" with a profile to keep the pace of a GPU on a laptop.',
    ),
    "device.profile": (
        "An emulated device needs a service time for each batch size.",
        "List the profiles with `rung devices`.",
    ),
    "device.slowdown": (
        "An emulated device cannot be faster than its profile, because the model runs too.",
        "Use 1.0 for the profile's own pace.",
    ),
    "device.cpu_threads": ("PyTorch needs a thread to compute with.", "Use 1 on a laptop that does more."),
    "device.memory_gib": ("A GPU without memory holds no model.", "Use what `nvidia-smi` shows, 8.0 for instance."),
    "batching": ("It says when a batch leaves.", "Leave [batching] out to serve one request at a time."),
    "batching.max_batch_size": ("A batch without a request never leaves.", "Use 1 for no batching."),
    "batching.batch_wait_timeout_s": (
        "A batch cannot leave before its first request came.",
        "Use 0.0 to wait for nothing.",
    ),
    "admission": ("It bounds the queue.", "Leave [admission] out for a queue of 256 requests."),
    "admission.max_queue_length": (
        "Without a queue every request that meets a busy device would be refused.",
        "Start with the capacity in requests per second times the wait that you would accept.",
    ),
    "admission.retry_after_s": ("A refused client would come back at once.", "Use 1.0."),
    "admission.deadline_s": (
        "No request could be answered in time.",
        "Use the client's timeout, or leave it out for no deadline.",
    ),
    "admission.max_body_bytes": ("No input would fit.", "Use 16777216 (16 MiB)."),
    "lifecycle": ("It bounds start and stop.", "Leave [lifecycle] out for 60 and 30 seconds."),
    "lifecycle.ready_timeout_s": ("No replica could get ready in time.", "Use 60.0."),
    "lifecycle.drain_timeout_s": ("Accepted requests would be cut off at SIGTERM.", "Use 30.0."),
    "machine": ("It is the size of a replica's machine.", "Leave [machine] out for no limits."),
    "machine.cpus": ("A replica needs some time of a processor.", "Use 1.0, or leave it out for no limit."),
    "machine.memory_mib": ("PyTorch alone takes about 200 MiB.", "Use 1024, or leave it out for no limit."),
    "traffic": ("Nothing would arrive.", "Write [traffic.rate] with its shape."),
    "traffic.loop": (
        "Arrivals either ignore replies (open) or wait for them (closed).",
        'Use "open" unless your users do wait.',
    ),
    "traffic.duration_s": ("The run would be over at once.", "Use 60.0."),
    "traffic.seed": ("Streams of random numbers are numbered from 0 on.", "Use 1."),
    "traffic.arrivals": ("Gaps between arrivals follow no other law here.", 'Use "poisson" for many users.'),
    "traffic.coefficient_of_variation": (
        "It is the spread of the gaps over their mean, and 0 would be no gamma law.",
        'Use 3.0 for bursts, 1.0 for a Poisson process, or arrivals = "deterministic" for no spread.',
    ),
    "traffic.rate": ("Nothing would arrive.", 'Write [traffic.rate] with shape = "constant" and rate_rps.'),
    "traffic.rate.shape": (
        "The keys of [traffic.rate] depend on it.",
        'Use shape = "constant" with rate_rps to begin with.',
    ),
    "traffic.rate.rate_rps": _NO_RATE,
    "traffic.rate.rate_rps_start": _NEGATIVE_RATE,
    "traffic.rate.rate_rps_end": _NEGATIVE_RATE,
    "traffic.rate.rate_rps_after": _NEGATIVE_RATE,
    "traffic.rate.step_at_s": ("It says when the rate changes.", "Give it in seconds from the start of the run."),
    "traffic.rate.spike_factor": ("The spike would bring no traffic at all.", "Use 8.0 for eight times the rate."),
    "traffic.rate.spike_start_s": ("It says when the rate changes.", "Give it in seconds from the start of the run."),
    "traffic.rate.spike_duration_s": ("The spike would take no time.", "Give it in seconds."),
    "traffic.rate.amplitude": ("Noon would be quieter than midnight.", "Use 0.8, or 0.0 for no swing."),
    "traffic.rate.period_s": ("A day must take some time.", "Use 86400.0, or less for shorter days."),
    "traffic.rate.path": ("There would be no trace to replay.", "Give its path, seen from the stage file."),
    "traffic.rate.format": ("No other format can be read.", 'Use "auto" to tell it by the column names.'),
    "traffic.rate.start_s": ("A trace has nothing before its start.", "Use 0.0."),
    "traffic.rate.time_scale": ("Time would stand still.", "Use 0.1 to replay an hour in six minutes."),
    "traffic.rate.rate_scale": ("No request would be left.", "Use 2.0 for twice as many in the same time."),
    "traffic.items": ("Requests must ask for something.", "Leave [traffic.items] out for 1000 equal items."),
    "traffic.items.popularity": ("Items have no other popularity here.", 'Use "uniform" or "zipf".'),
    "traffic.items.count": ("There would be nothing to ask for.", "Use 1000."),
    "traffic.items.exponent": (
        "By Zipf's law item k is asked for 1 / k ** exponent as often as item 1.",
        'Use 1.0, or popularity = "uniform" for no difference.',
    ),
    "traffic.users": ("A closed loop is made of users, and so is whoever is split.", "Use 10 for a closed loop."),
    "traffic.think_time_s": ("A user cannot ask before the reply is there.", "Use 1.0, or 0.0 to ask at once."),
    "traffic.timeout_s": ("Clients would give up before any answer.", "Use 10.0."),
    "traffic.input_format": ("Inputs are sent in no other form.", 'Use "raw" for the least work on the host.'),
    "slo": ("Goodput needs a promise to be held to.", "Write [slo] with latency_s."),
    "slo.latency_s": ("Goodput counts the answers within it.", "Use 0.1 for a tenth of a second."),
    "slo.share": ("A promise to nobody is kept by every service.", "Use 0.95 for 95 %."),
    **fleet_advice.ADVICE,
    **alert_advice.ADVICE,
    **scaling_advice.ADVICE,
    **cost_advice.ADVICE,
    **cache_advice.ADVICE,
    **queue_advice.ADVICE,
    **feedback_advice.ADVICE,
    **split_advice.ADVICE,
}

# The same for values that are too high, where more can be said than that it must be a slip.
TOO_HIGH: dict[str, tuple[str, str]] = {
    **fleet_advice.TOO_HIGH,
    **alert_advice.TOO_HIGH,
    **scaling_advice.TOO_HIGH,
    **cache_advice.TOO_HIGH,
    **queue_advice.TOO_HIGH,
    **feedback_advice.TOO_HIGH,
    **split_advice.TOO_HIGH,
    "model.facts.crash_share": ("A model cannot fail on more than all inputs.", "Use 0.001 for one in a thousand."),
    "model.facts.accuracy": ("No model is right more often than always.", "Use 0.97 for 97 %."),
    "slo.share": ("No service keeps a promise to every single request.", "Use 0.95 for 95 %."),
    "traffic.rate.amplitude": ("The rate would fall below zero at night.", "Use 0.8."),
    "admission.max_queue_length": (
        "So long a queue turns overload into minutes of latency.",
        "Start with the capacity in requests per second times the wait that you would accept.",
    ),
}


def unit(key: str) -> str:
    """The unit of a dotted key, in words; empty for a plain number or text."""
    last = key.rsplit(".", 1)[-1]
    by_ending = (words for ending, words in _UNIT_OF_ENDING.items() if last.endswith(ending))
    return _UNIT_OF_KEY.get(last) or next(by_ending, "")


def amount(number: float, key: str) -> str:
    """A number with the unit of its key, which is in the singular for 1."""
    text = str(number) if isinstance(number, int) else f"{number:.12g}"
    first, *rest = unit(key).split(" ")
    return " ".join([text, first.removesuffix("s") if number == 1 else first, *rest]).rstrip()


def too_high(key: str) -> tuple[str, str]:
    """Consequence and remedy for a value above the bound of a key."""
    slip = f"Look for a slip: the number is in {unit(key)}." if unit(key) else "Look for a slip."
    return TOO_HIGH.get(key, ("Nothing here was built for so much.", slip))
