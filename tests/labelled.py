"""Predictions and labels for tests, and a process that labels until it is killed: `python -m tests.labelled FOLDER`.

It prints the request of each label that was accepted, after it was: whatever is printed must be on the disk.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from reference_apps.feedback_schema import sqlite_url
from reference_apps.feedback_store import FeedbackStore, Label, Prediction
from stages.feedback import Feedback

NOW = 1_000_000.0  # seconds since the epoch


def a_prediction(request_id: str, label: int = 1, **more: Any) -> Prediction:
    """What the champion answered at NOW, unless something else is said."""
    made: dict[str, Any] = {
        "request_id": request_id,
        "arm": "champion",
        "user_key": "",
        "model": "digits",
        "version": "1",
        "answer": f'{{"label": {label}}}',
        "label": label,
        "latency_s": 0.01,
        "device_s": 0.004,
        "given": True,
        "forced": False,
        "predicted_at": NOW,
    }
    return Prediction(**made | more)


def a_label(request_id: str, label: int = 1, after_s: float = 1.0) -> Label:
    """A label that came so long after NOW."""
    return Label(request_id, label, NOW + after_s)


def _until_killed(folder: Path) -> None:
    with FeedbackStore(sqlite_url(folder / "feedback.db"), Feedback()) as store:
        started = time.time_ns()
        for number in range(1_000_000):
            ids = [f"r{started}-{number}-{each}" for each in range(3)]
            store.write([a_prediction(each) for each in ids[:2]], [a_label(each) for each in ids])
            sys.stdout.write("".join(f"{each}\n" for each in ids))
            sys.stdout.flush()


if __name__ == "__main__":
    _until_killed(Path(sys.argv[1]))
