"""The price list: what a machine costs an hour, with date and source in every row, and the user's own rows before it.

    RUNG_PRICES (--prices FILE) ─┐
    catalogue/prices.csv ────────┴─▶ prices() ─▶ find(machine, pricing, region) ─▶ stages/cost.py, `rung prices`

A machine is named "aws/g4dn.xlarge": its provider and its product. Prices change and differ by region; a row is a fact
of its date. Its source is the file it was read in, at its commit where that is known; the rows out of
datareceipts/data-receipts and tgarg01/silybench-data were read in excerpts of those files, not in the whole of them.
Not here: discounts for long contracts, prices that move by the hour, disks, and traffic.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from stages.problems import Problem, StageError, did_you_mean, shown

PRICES_VARIABLE = "RUNG_PRICES"
PRICINGS = ("on-demand", "spot")
COLUMNS = ("provider", "product", "gpu", "gpu_count", "usd_per_hour", "pricing", "region", "as_of", "source")
_REQUIRED = ("provider", "product", "gpu", "usd_per_hour", "pricing")  # of a user's own file
_FILE = Path(__file__).parent / "catalogue" / "prices.csv"
_USD_PER_HOUR_MAX, _GPUS_MAX, _BYTES_MAX = 100_000.0, 64, 1_048_576


@dataclass(frozen=True)
class Price:
    """One machine under one kind of contract in one region."""

    provider: str
    product: str
    gpu: str  # "T4 16GB"; empty for a machine without one
    gpu_count: int
    usd_per_hour: float  # of the whole machine
    pricing: str  # of PRICINGS
    region: str
    as_of: str
    source: str

    @property
    def machine(self) -> str:
        """How a stage names it: "aws/g4dn.xlarge"."""
        return f"{_slug(self.provider)}/{_slug(self.product)}"

    @property
    def gpu_family(self) -> str:
        """The GPU without its memory: "T4", "A100"; "none" for a machine without one."""
        return gpu_family(self.gpu) if self.gpu else "none"

    @property
    def usd_per_gpu_hour(self) -> float:
        """US dollars an hour of one GPU's share; of the machine where it has none."""
        return self.usd_per_hour / max(1, self.gpu_count)


def gpu_family(name: str) -> str:
    """The family of a GPU by a catalogue's name for it: "A100" of "A100-SXM4-40GB" and of "A100 80GB PCIe"."""
    return name.replace("-", " ").split(" ")[0]


def prices() -> tuple[Price, ...]:
    """Every price: those of the user's own file, if RUNG_PRICES names one, then those of the project's list.

    Raises StageError with every bad row of the user's file at once.
    """
    own = os.environ.get(PRICES_VARIABLE)
    if not own:
        return _ours()
    try:
        changed_ns = Path(own).stat().st_mtime_ns
    except OSError as error:
        raise _unreadable(own, str(error.strerror)) from None
    return _of_file(own, changed_ns) + _ours()


def find(machine: str, pricing: str | None = None, region: str | None = None) -> Price | None:
    """The first price of a machine by its name, under that contract and in that region; None where there is none.

    Without `pricing` it is the on-demand price, unless the name ends in "-spot". "aws-g4dn.xlarge" is
    "aws/g4dn.xlarge" too.
    """
    wanted = _slug(machine)
    for row in prices():
        named = _slug(row.machine)
        if wanted not in (named, f"{named}-spot") or region not in (None, row.region):
            continue
        if row.pricing == (pricing or ("spot" if wanted != named else "on-demand")):
            return row
    return None


def rows_of(machine: str) -> list[Price]:
    """Every price of a machine, whatever the contract and region."""
    wanted = _slug(machine)
    return [row for row in prices() if wanted in (_slug(row.machine), f"{_slug(row.machine)}-spot")]


def of_gpu(family: str, pricing: str = "on-demand") -> list[Price]:
    """The machines with GPUs of a family ("T4", "a100"), the cheapest GPU first; of as cheap ones, the smallest."""
    rows = [row for row in prices() if row.gpu_family.lower() == family.lower() and row.pricing == pricing]
    return sorted(rows, key=lambda row: (row.usd_per_gpu_hour, row.gpu_count))


def machines() -> tuple[str, ...]:
    """The names of all machines that have a price."""
    return tuple(dict.fromkeys(row.machine for row in prices()))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower().removeprefix("standard_")).strip("-")


# ---- reading -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _ours() -> tuple[Price, ...]:
    return read(_FILE, required=COLUMNS)


@lru_cache(maxsize=4)
def _of_file(path: str, changed_ns: int) -> tuple[Price, ...]:
    del changed_ns  # a file that was changed is read again
    return read(Path(path))


def read(path: Path, required: tuple[str, ...] = _REQUIRED) -> tuple[Price, ...]:
    """The prices of a CSV file whose first line names its columns: all of `required`, none that is not of COLUMNS.

    Left out, a GPU counts once, the region is "own", and date and source are the file's. Raises StageError with
    everything that is wrong with it.
    """
    try:
        if path.stat().st_size > _BYTES_MAX:
            raise _unreadable(str(path), f"more than {_BYTES_MAX:,} bytes")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise _unreadable(str(path), "bytes that are no UTF-8") from None
    except OSError as error:
        raise _unreadable(str(path), str(error.strerror)) from None
    table = csv.DictReader(io.StringIO(text), strict=False)
    problems = list(_wrong_header(list(table.fieldnames or ()), required))
    if problems:
        raise StageError(str(path), problems)
    rows: list[tuple[int, dict[str, str]]] = []
    for row in table:
        rows.append((table.line_num, {key: (row.get(key) or "").strip() for key in COLUMNS}))
        problems += _wrong_row(f"line {table.line_num}", rows[-1][1], required, None in row or None in row.values())
    problems += _told_twice(rows)
    if problems or not rows:
        raise StageError(str(path), problems or [_problem("rows", "must be at least 1", "0")])
    return tuple(_price(row, path) for _, row in rows)


def _price(row: dict[str, str], path: Path) -> Price:
    count = row["gpu_count"] or ("1" if row["gpu"] else "0")
    return Price(
        provider=row["provider"],
        product=row["product"],
        gpu=row["gpu"],
        gpu_count=int(float(count)),  # "1.0" is one, too
        usd_per_hour=float(row["usd_per_hour"]),
        pricing=row["pricing"],
        region=row["region"] or "own",
        as_of=row["as_of"] or "undated",
        source=row["source"] or f"the user's own file {path.name}",
    )


def _wrong_header(columns: list[str], required: tuple[str, ...]) -> Iterator[Problem]:
    missing = [name for name in required if name not in columns]
    if missing:
        begin = f"Begin the file with the line {','.join(COLUMNS)}."
        got = shown(",".join(columns)) if columns else "an empty file"
        yield Problem("line 1", f"must name the columns {', '.join(missing)}", got, "Rows would have no price.", begin)
    for name in columns:
        if name not in COLUMNS:
            remedy = did_you_mean(name, COLUMNS, f"The columns are {', '.join(COLUMNS)}.")
            yield Problem("line 1", f"{shown(name)} is no column of a price list", None, "Nothing reads it.", remedy)


def _wrong_row(place: str, row: dict[str, str], required: tuple[str, ...], ragged: bool) -> Iterator[Problem]:
    if ragged:
        yield _problem(place, "must have as many fields as the first line", "more or fewer")
        return
    for name in ("provider", "product", *(name for name in ("region", "as_of", "source") if name in required)):
        if not row[name]:
            yield _problem(f"{place}, {name}", "must not be empty", '""')
    usd = _number(row["usd_per_hour"])
    if not 0.0 < usd <= _USD_PER_HOUR_MAX:
        rule = f"must be US dollars an hour above 0, and at most {_USD_PER_HOUR_MAX:,.0f}"
        yield _problem(f"{place}, usd_per_hour", rule, shown(row["usd_per_hour"]))
    if row["pricing"] not in PRICINGS:
        yield _problem(f"{place}, pricing", f"must be {' or '.join(PRICINGS)}", shown(row["pricing"]))
    count = _number(row["gpu_count"] or ("1" if row["gpu"] else "0"))
    if not (count.is_integer() and bool(row["gpu"]) <= count <= (_GPUS_MAX if row["gpu"] else 0)):
        rule = f"must be a whole number of GPUs, 1 to {_GPUS_MAX}, and 0 where gpu is empty"
        yield _problem(f"{place}, gpu_count", rule, shown(row["gpu_count"]))


def _told_twice(rows: list[tuple[int, dict[str, str]]]) -> Iterator[Problem]:
    seen: dict[tuple[str, ...], int] = {}
    for line, row in rows:
        key = (_slug(row["provider"]), _slug(row["product"]), row["pricing"], row["region"])
        if key in seen:
            rule = f"must not tell the price of line {seen[key]} again"
            yield _problem(f"line {line}", rule, ", ".join(key))
        seen.setdefault(key, line)


def _number(text: str) -> float:
    """The number, or NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _problem(place: str, rule: str, got: str) -> Problem:
    return Problem(place, rule, got, "Nothing could be paid by this row.", "Mend it, or take it out.")


def _unreadable(path: str, why: str) -> StageError:
    rule = f"must be a readable CSV file of prices of at most {_BYTES_MAX:,} bytes"
    remedy = f"Correct {PRICES_VARIABLE} or --prices, or leave it out for the project's own list."
    return StageError(path, [Problem("file", rule, why, "Nothing says what your machines cost.", remedy)])
