"""Which label of a prediction counts: the first or the last, and what comes too late.

    label ─▶ is_late? ─▶ is there one already? ─▶ replaces? ─▶ it stands, or the one before it does

Plain values in, plain values out; times in seconds since the epoch. What is late is kept and told, and no experiment
counts it: its window was closed. Not decided here: whether a label is true.
"""

from __future__ import annotations

from typing import Literal

OnDuplicate = Literal["first", "last"]


def is_late(predicted_at: float, labelled_at: float, window_s: float) -> bool:
    """Whether a label came after the window of its prediction. One that was there before it is not late."""
    return labelled_at - predicted_at > window_s


def replaces(on_duplicate: OnDuplicate, old_is_late: bool, new_is_late: bool) -> bool:
    """Whether a second label of one prediction takes the place of the first.

    One that came in time stands against all that come late: what an experiment has counted it goes on counting.
    """
    if new_is_late and not old_is_late:
        return False
    return on_duplicate == "last"
