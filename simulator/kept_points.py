"""Points of a sweep that are done, as files: what was simulated once is not simulated again.

    stage, seeds, calibration, prices, code ──▶ digest ──▶ folder/points/<digest>.json ──▶ Estimate

A file is there whole or not at all. Its name follows from all that its figures follow from, the project's own code
included, so that no old figure is ever taken for a new one. No twin.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path

import stages
from simulator.estimate import Estimate
from stages.calibration import Calibration
from stages.demand import TraceRate
from stages.prices import prices
from stages.spec import Stage

_FORMAT = 1  # of the files


def digest(stage: Stage, replications: int, seed: int | None, calibration: Calibration | None) -> str:
    """What a point's file is called, without its ending. Raises OSError for a trace that cannot be read."""
    seed = stage.traffic.seed if seed is None else seed
    rate = stage.traffic.rate
    trace = hashlib.sha256(Path(rate.path).read_bytes()).hexdigest() if isinstance(rate, TraceRate) else ""
    parts = (
        str(_FORMAT),
        stage.model_dump_json(),
        f"{replications} from {seed}",
        calibration.model_dump_json() if calibration else "",
        repr(prices()) if stage.cost is not None else "",
        trace,
        code_digest(),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Of every source file and catalogue that a simulated figure can follow from."""
    ours, simulated = Path(stages.__file__).parent, Path(__file__).parent
    files = [*ours.rglob("*.py"), *ours.rglob("*.csv"), *simulated.rglob("*.py")]
    whole = hashlib.sha256()
    for file in sorted(files, key=lambda path: (path.parent.name, path.name)):
        whole.update(f"{file.parent.name}/{file.name}\n".encode() + file.read_bytes())
    return whole.hexdigest()


def write(folder: Path, name: str, estimate: Estimate) -> None:
    """Keeps an estimate in `folder` under its digest. Raises OSError where that cannot be done."""
    file = _file(folder, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    told = {"seeds": estimate.seeds, "requests": estimate.requests, "wall_s": estimate.wall_s}
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps({**told, "values": estimate.values}), encoding="utf-8")
    part.replace(file)


def read(folder: Path, name: str) -> Estimate | None:
    """The estimate that `write` kept under this digest; None where there is none that can be read."""
    try:
        told = json.loads(_file(folder, name).read_text(encoding="utf-8"))
        values = {str(metric): tuple(map(float, each)) for metric, each in told["values"].items()}
        seeds = tuple(map(int, told["seeds"]))
        if any(len(each) != len(seeds) for each in values.values()):
            return None
        return Estimate(seeds, values, int(told["requests"]), float(told["wall_s"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _file(folder: Path, name: str) -> Path:
    return folder / "points" / f"{name}.json"
