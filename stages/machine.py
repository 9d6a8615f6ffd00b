"""The table of a stage that says how large the machine of a replica is.

    [machine] cpus, memory_mib ──▶ the limits of its container (`rung up --on docker`)

Read by stages/spec.py alone. A process of this machine has no such limits: it shares what there is.
"""

from __future__ import annotations

from pydantic import Field

from stages.table import Table


class Machine(Table):
    """What a replica may take of the host. Without a limit it may take all of it."""

    cpus: float | None = Field(None, ge=0.01, le=1024.0)  # 0.5: half of one processor's time
    memory_mib: int | None = Field(None, ge=256, le=16_777_216)  # PyTorch alone takes about 200
