"""The decisions of a running stage's autoscaler, as it wrote them down, beside the record of a run.

scaling.jsonl (monotonic times) ──▶ the rows of stages.records.SCALING, in seconds from the schedule's beginning
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from reference_apps.autoscaler import EARLIER_FILE, SCALING_FILE
from stages.policies.autoscaling import Look
from stages.records import looks_frame


def read(folder: Path, began_s: float, end_s: float) -> pl.DataFrame:
    """The decisions from `began_s` of the monotonic clock until `end_s` seconds later; none where nothing is scaled.

    `folder` is the stack's. A line that is not whole, yet or because a disk was full, is left out.
    """
    since = (look._replace(at_s=look.at_s - began_s) for look in _written(folder))
    return looks_frame(look for look in since if 0.0 <= look.at_s <= end_s)


def _written(folder: Path) -> Iterator[Look]:
    for name in (EARLIER_FILE, SCALING_FILE):
        with contextlib.suppress(FileNotFoundError):
            for line in (folder / name).read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, TypeError):
                    yield Look(**json.loads(line))
