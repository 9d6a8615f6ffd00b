"""The advice of [split] and of the users of [traffic], as stages/advice.py has it for the other tables."""

from __future__ import annotations

_VERSION = (
    "A version is a folder of the registry, or an alias of one: letters, digits, dots, dashes and underscores.",
    "List them with `rung models list`.",
)
_FACTS = (
    "It stands in for what the version's metadata say, in both worlds.",
    "Leave it out to go by the metadata.",
)
_FACTOR = ("A version cannot be faster than its device.", "Use 3.0 for a third of its speed.")
_CRASHES = ("It is a share of all inputs.", "Use 0.001 for one input in a thousand.")
_ACCURACY = ("It is a share of right answers.", "Use 0.97 for 97 %.")
_NO_SHARE = ("It is a share of the challenger's requests.", "Use 0.01 for 1 %, or leave it out to bound it by nothing.")

ADVICE: dict[str, tuple[str, str]] = {
    "split": ("It puts two versions of the model in production.", "Leave [split] out for one."),
    "split.champion": _VERSION,
    "split.challenger": _VERSION,
    **{
        f"split.{arm}_facts{key}": advice
        for arm in ("champion", "challenger")
        for key, advice in {
            "": _FACTS,
            ".service_time_factor": _FACTOR,
            ".crash_share": _CRASHES,
            ".accuracy": _ACCURACY,
        }.items()
    },
    "split.challenger_share": ("It is the part that gets the challenger.", "Use 0.05 for a twentieth, 0.0 for nobody."),
    "split.key": (
        "Nothing else is known of a request before it is answered.",
        'Use "user", so that each user keeps an arm.',
    ),
    "split.mode": (
        "A challenger either answers, or only gets copies.",
        'Use "split"; "shadow" lets it see the traffic and answer nobody.',
    ),
    "split.salt": ("Another salt gives the challenger to other users.", 'Write salt = "second-try", or leave it out.'),
    "split.challenger_replicas": ("Nobody would answer for the challenger.", "Use 1."),
    "split.challenger_profile": (
        "It says which device the challenger emulates.",
        "Leave it out for the one of [device].",
    ),
    "split.force_header": ("Whoever tries an arm names it in this header.", 'Use "x-rung-arm".'),
    "split.shadow_outstanding_max": ("No copy would ever be made.", "Use 64."),
    "split.ramp": (
        "It gives the challenger a larger share step by step.",
        "Leave [split.ramp] out for one that stays.",
    ),
    "split.ramp.shares": ("Each is a part of the users.", "Use [0.01, 0.05, 0.2, 0.5]."),
    "split.ramp.step_duration_s": ("A step must take some time.", "Give it in seconds, 600.0 for ten minutes."),
    "split.guardrails": (
        "They stop a challenger that is proven to be bad.",
        "Leave [split.guardrails] out to stop it yourself.",
    ),
    "split.guardrails.requests_min": ("A verdict needs a request to go by.", "Use 50."),
    "split.guardrails.errors_share_max": _NO_SHARE,
    "split.guardrails.latency_s": (
        "It bounds the 95th percentile of the challenger's latency.",
        "Use slo.latency_s, or leave it out to bound it by nothing.",
    ),
    "split.guardrails.goodput_share_min": (
        "It is the share of the challenger's requests that are answered within slo.latency_s.",
        "Use slo.share, or leave it out to bound it by nothing.",
    ),
    "split.guardrails.accuracy_drop_max": (
        "It is how much smaller than the champion's the challenger's share of right answers may be.",
        "Use 0.01 for one point, or leave it out to bound it by nothing.",
    ),
    "split.guardrails.alpha": (
        "It is the chance that a challenger which keeps every guardrail is stopped all the same.",
        "Use 0.05.",
    ),
    "traffic.user_popularity": ("Users have no other activity here.", 'Use "uniform" or "zipf".'),
    "traffic.user_exponent": (
        "By Zipf's law user k asks 1 / k ** exponent as often as user 1.",
        'Use 1.0, or user_popularity = "uniform" for no difference.',
    ),
}

TOO_HIGH: dict[str, tuple[str, str]] = {
    **{f"split.{arm}_facts.crash_share": _CRASHES for arm in ("champion", "challenger")},
    **{f"split.{arm}_facts.accuracy": _ACCURACY for arm in ("champion", "challenger")},
    "split.challenger_share": ("There are no more users than all of them.", "Use 0.05 for a twentieth."),
    "split.ramp.shares": ("There are no more users than all of them.", "Use [0.01, 0.05, 0.2, 0.5]."),
    "split.guardrails.errors_share_max": ("No challenger could ever break it.", "Use 0.01 for 1 %."),
    "split.guardrails.goodput_share_min": ("No service answers every single request in time.", "Use slo.share."),
    "split.guardrails.accuracy_drop_max": ("No challenger could ever break it.", "Use 0.01 for one point."),
    "split.guardrails.alpha": ("Every challenger would be stopped.", "Use 0.05."),
}

UNITS = {
    "challenger_replicas": "replicas",
    "shadow_outstanding_max": "requests",
    "requests_min": "requests",
}
