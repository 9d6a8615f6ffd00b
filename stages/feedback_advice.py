"""The advice of [feedback], as stages/advice.py has it for the other tables."""

from __future__ import annotations

ADVICE: dict[str, tuple[str, str]] = {
    "feedback": ("It says what is kept of the answers.", "Leave [feedback] out to keep nothing."),
    "feedback.share": (
        "It is the share of the answers that a load test's clients give a label.",
        "Use 1.0 for all of them, or 0.0 to have labels from elsewhere only.",
    ),
    "feedback.delay_s": ("A label cannot come before its answer.", "Use 0.0 for labels at once."),
    "feedback.window_s": ("Every label would be late.", "Use 86400.0, a day."),
    "feedback.on_duplicate": (
        "It says which of two labels of one answer counts.",
        'Use "last" where people correct themselves, "first" where a second one is not believed.',
    ),
    "feedback.orphans_max": (
        "It is how many labels are kept whose answer is not known yet.",
        "Use 10000, or 0 to refuse them.",
    ),
    "feedback.predictions_max": ("Not even one answer could wait to be written.", "Use 10000."),
    "feedback.keep_s": ("What is written would be thrown away at once.", "Use 2592000.0, thirty days."),
    "feedback.timeout_s": ("No label could be stored in time.", "Use 5.0."),
    "feedback.url_env": (
        "A URL may hold a password: it is read from the environment, and stands in no shared file.",
        'Write url_env = "RUNG_FEEDBACK_URL", and set that variable to postgresql+psycopg://USER:PASSWORD@HOST/NAME, '
        "or leave it out for a file of this machine.",
    ),
}

TOO_HIGH: dict[str, tuple[str, str]] = {
    "feedback.share": ("No answer gets more than all of its labels.", "Use 1.0 for a label to each answer."),
}

UNITS = {"orphans_max": "labels", "predictions_max": "predictions"}
