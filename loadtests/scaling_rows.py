"""The decisions of a running stage's autoscaler, as it wrote them down, beside the record of a run.

scaling.jsonl (monotonic times) ──▶ the rows of stages.records.SCALING, in seconds from the schedule's beginning
"""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from reference_apps.autoscaler import SCALING_FILE
from stages.policies.autoscaling import Look
from stages.records import looks_frame


def read(folder: Path, began_s: float, end_s: float) -> pl.DataFrame:
    """The decisions from `began_s` of the monotonic clock until `end_s` seconds later; none where nothing is scaled.

    `folder` is the stack's. A last line that is not whole yet is left out.
    """
    try:
        lines = (folder / SCALING_FILE).read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return looks_frame(())
    looks = (Look(**json.loads(line)) for line in lines if line.endswith("\n"))
    since = (look._replace(at_s=look.at_s - began_s) for look in looks)
    return looks_frame(look for look in since if 0.0 <= look.at_s <= end_s)
