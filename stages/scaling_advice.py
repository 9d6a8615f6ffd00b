"""What follows when the rule of a key of [scaling] is broken, and what to do then; part of stages/advice.py."""

from __future__ import annotations

Advice = dict[str, tuple[str, str]]

_INTERVAL = ("Nobody can look all the time.", "Use 15.0, as Kubernetes does.")
_PERIOD = ("A limit counts the changes of some time.", "Use 15.0, as Kubernetes does.")
_COLD = ("Nothing is ready before it was wanted.", "Measure it, or use 0.0 for no wait.")

ADVICE: Advice = {
    "scaling": ("It says when replicas come and go.", "Leave [scaling] out for a fleet that stays as it is."),
    "scaling.policy": ("Nothing else decides how many replicas there are.", 'Use "target-tracking" to begin with.'),
    "scaling.min_replicas": ("There cannot be fewer replicas than none.", "Use 1."),
    "scaling.max_replicas": ("A bill needs an upper bound.", "Give the most replicas that you would pay for."),
    "scaling.metric": (
        "It says what the replicas are held to.",
        'Use "concurrency" for the requests inside a replica, which shows a backlog at once.',
    ),
    "scaling.interval_s": _INTERVAL,
    "scaling.scrape_interval_s": _INTERVAL,
    "scaling.window_s": ("A metric is a mean over some time.", "Use scaling.scrape_interval_s or a multiple of it."),
    "scaling.target": (
        "No number of replicas brings a metric down to nothing.",
        "Use two batches for concurrency, 0.6 for utilisation.",
    ),
    "scaling.tolerance": ("It is how far from the target nothing changes.", "Use 0.1 for 10 %."),
    "scaling.polling_interval_s": ("Nobody can look all the time.", "Use 30.0, as KEDA does."),
    "scaling.activation_rps": ("A rate cannot be negative.", "Use 0.0 to wake at the first request."),
    "scaling.cooldown_s": ("A wait cannot be negative.", "Use 300.0."),
    "scaling.above": ("Every load is above nothing.", "Use 100.0 to add replicas over a hundred requests inside one."),
    "scaling.factor_up": ("The replicas would not become more.", "Use 2.0 to double them."),
    "scaling.below": ("No load is below nothing.", "Use a quarter of scaling.above, or leave it out."),
    "scaling.factor_down": ("There cannot be fewer replicas than none.", "Use 0.5 to halve them."),
    "scaling.schedule": ("It says when how many replicas there are.", "Write [[scaling.schedule]] for each change."),
    "scaling.schedule.at_s": ("The schedule starts with the autoscaler.", "Give it in seconds from there."),
    "scaling.schedule.replicas": ("There cannot be fewer replicas than none.", "Give how many there are from then on."),
    "scaling.day_s": ("A day must take some time.", "Use 86400.0, or less for shorter days."),
    "scaling.up": ("It bounds how fast replicas come.", "Leave [scaling.up] out for Kubernetes' own bounds."),
    "scaling.up.stabilisation_window_s": ("A window cannot be negative.", "Use 0.0 to scale out at once."),
    "scaling.up.replicas": ("No replica could ever come.", "Use 4."),
    "scaling.up.share": ("Replicas do not become fewer on the way up.", "Use 1.0 to let them double."),
    "scaling.up.period_s": _PERIOD,
    "scaling.down": ("It bounds how fast replicas go.", "Leave [scaling.down] out for Kubernetes' own bounds."),
    "scaling.down.stabilisation_window_s": ("A window cannot be negative.", "Use 300.0."),
    "scaling.down.replicas": ("No replica could ever go.", "Use 1."),
    "scaling.down.share": ("Replicas do not become more on the way down.", "Use 1.0 for no bound."),
    "scaling.down.period_s": _PERIOD,
    "scaling.cold_start": ("A replica needs some time to begin.", "Leave [scaling.cold_start] out for no wait."),
    "scaling.cold_start.machine_s": _COLD,
    "scaling.cold_start.image_s": _COLD,
    "scaling.cold_start.model_s": _COLD,
}

TOO_HIGH: Advice = {
    "scaling.tolerance": ("No load at all would be near enough to the target.", "Use 0.1 for 10 %."),
    "scaling.factor_down": ("The replicas would not become fewer.", "Use 0.5 to halve them."),
    "scaling.down.share": ("More than all replicas cannot go.", "Use 1.0 for no bound."),
}
