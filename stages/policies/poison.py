"""What becomes of a job that the model failed on: is it the input's fault, or the device's?

    a batch failed ──▶ each of its jobs alone ──▶ some fail ──▶ poison: to the dead letters, with their error
                                              └─▶ all fail  ──▶ nobody knows: later once more, wherever that may be

One bad input among good ones fails alone. A device that is gone fails all of them, and would sweep a whole queue into
the dead letters within a minute if each job were blamed. A batch of one tells nothing. No job is tried for ever: after
queue.attempts_max deliveries it is dead all the same (stages/policies/queueing.py).
"""

from __future__ import annotations


def is_poison(failed: int, batch_size: int) -> bool:
    """Whether each of the `failed` jobs of a batch, each of which was run alone, is to blame."""
    return 0 < failed < batch_size
