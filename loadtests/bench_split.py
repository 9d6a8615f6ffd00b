"""Who gets which version, over real sockets: `python -m loadtests.bench_split [--requests N]`, or `make bench-split`.

    users ──▶ a few pooled connections ──▶ gateway ──▶ two versions of the smallest model, a replica each
                                                └─ x-rung-record: the arm that answered, and its replica ──▶ counts

Five rounds, in one stack:

    at first         every request is another user's: is the challenger's share within binomial error of its weight?
    again            a fifth of these users come again: does anybody change arm while the weight stands still?
    a larger weight  it moves, without a restart, and they come again: do just those in between change?
    after kill -9    of the gateway: does anybody?
    back             it moves back: is everybody where they were at first?

Both versions have the same weights, so that nothing but the split tells them apart. The same is tested of the policy
alone in tests/test_splitting.py. It says nothing of latencies: clients ask one after the other, as fast as they can.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.box import SIMPLE_HEAD
from rich.table import Table
from scipy.stats import binom

from loadtests.payloads import Payloads, make_payloads
from loadtests.verbs import failures
from reference_apps import split_file
from reference_apps.asking import open_url, wait_until
from reference_apps.launchers.process import ProcessLauncher
from reference_apps.model_metadata import About
from reference_apps.models.inputs import WEIGHTS_DIR
from reference_apps.registry import Registry
from reference_apps.upstream import Address, LostError, Upstream
from stages.arms import arm_of
from stages.policies.splitting import bucket
from stages.spec import Stage, load_stage
from stages.terminal import Exit, JsonOption, fail, out, print_json, progress

CLIENTS = 32
FIRST, LARGER = 0.05, 0.2  # weights of the challenger
AGAIN = 5  # one user of so many comes again
AFTER_KILL = "after kill -9"
CONFIDENCE = 0.999
TAKES_OVER_S = 10.0  # at most, until the gateway goes by another weight
STAGE: dict[str, Any] = {
    **{"device": {"kind": "cpu"}, "model.name": "digits", "split.champion": "1", "split.challenger": "2"},
    **{"batching.max_batch_size": CLIENTS, "batching.batch_wait_timeout_s": 0.0, "fleet.replicas": 1},
    **{"split.ramp": None, "split.guardrails": None, "split.challenger_share": FIRST, "feedback": None},
    "overload": True,
}
Arms = dict[str, str]  # user → the arm that answered


@dataclass(frozen=True)
class Round:
    """One round. `least` and `most` are the bounds of the challenger's users by binomial error, at CONFIDENCE.

    `moved` are users with another arm than in the round before, `between` those whose place lies between the two
    weights: who has to move, and nobody else.
    """

    name: str
    weight: float
    users: int
    challenger: int
    least: int
    most: int
    moved: int
    between: int
    strays: int  # users who moved and had not to, or had to and did not
    requests_per_second: float

    @property
    def holds(self) -> bool:
        """Whether it is as it should be."""
        return self.least <= self.challenger <= self.most and self.strays == 0


def rounds(
    ask: Callable[[Sequence[str]], Arms],
    want: Callable[[float], None],
    crash: Callable[[], None],
    salt: str,
    requests: int,
) -> Iterator[Round]:
    """All rounds, of so many requests at first. `ask` has a request of each user answered, `want` has the gateway go by
    another weight, `crash` kills it and has it started again."""
    users = [str(number) for number in range(requests)]
    again = users[::AGAIN]
    before: Arms = {}
    weight_before = FIRST
    for name, weight, asking in (
        ("at first", FIRST, users),
        ("again", FIRST, again),
        ("a larger weight", LARGER, again),
        (AFTER_KILL, LARGER, again),
        ("back", FIRST, again),
    ):
        if name == AFTER_KILL:
            crash()
        elif weight != weight_before:
            want(weight)
        began_s = time.perf_counter()
        found = ask(asking)
        took_s = time.perf_counter() - began_s
        yield judged(name, weight, weight_before, found, before, salt, len(asking) / took_s)
        before, weight_before = found, weight


def judged(
    name: str, weight: float, weight_before: float, found: Arms, before: Arms, salt: str, requests_per_second: float
) -> Round:
    """What one round amounts to, against the one before it."""
    low, high = sorted((weight, weight_before))
    came_again = found.keys() & before.keys()
    between = {user for user in came_again if low <= bucket(user, salt) < high}
    moved = {user for user in came_again if found[user] != before[user]}
    least, most = binom.interval(CONFIDENCE, len(found), weight)
    challenger = sum(arm == "challenger" for arm in found.values())
    counts = (len(found), challenger, int(least), int(most), len(moved), len(between), len(moved ^ between))
    return Round(name, weight, *counts, requests_per_second)


async def answered(stage: Stage, url: str, payloads: Payloads, users: Iterable[str], done: Callable[[], None]) -> Arms:
    """The arm that answered each user, by CLIENTS clients that ask one after the other.

    Raises LostError for a request without an answer, and ValueError for one that another arm's replica answered.
    """
    pool, address, found = Upstream(connect_timeout_s=5.0), Address.of(url), Arms()
    plain = [(name.encode(), value.encode()) for name, value in payloads.headers.items()]
    body, rest = payloads.body(0), iter(users)

    async def client() -> None:
        for user in rest:
            headers = [*plain, (b"x-rung-user", user.encode())]
            reply = await pool.post(address, b"/predict", headers, body)
            if reply.status != 200:
                raise LostError("upstream_lost", True, f"HTTP {reply.status}: {reply.content[:200]!r}")
            found[user] = _arm(stage, reply.record.decode())
            done()

    try:
        await asyncio.gather(*(client() for _ in range(CLIENTS)))
    finally:
        await pool.close()
    return found


def _arm(stage: Stage, record: str) -> str:
    """The arm of an answer, which is that of the replica it came from."""
    told = dict(part.split("=", 1) for part in record.split(","))
    if told["arm"] != arm_of(stage, int(told["replica"])):
        raise ValueError(f"replica {told['replica']} answered a request of the {told['arm']}")
    return told["arm"]


@contextmanager
def stack(folder: Path) -> Iterator[ProcessLauncher]:
    """A gateway with a replica of each of two versions, out of a registry of their own."""
    registry = Registry(folder / "registry")
    weights = (WEIGHTS_DIR / "digits.safetensors").read_bytes()
    for version in ("1", "2"):
        registry.publish(About(model="digits"), weights, version)
    stage = load_stage("ab-test", {**STAGE, "model.registry": str(registry.root)})
    with ProcessLauncher(stage, folder / "stack") as launcher:
        yield launcher


def wanted(url: str, folder: Path, share: float) -> None:
    """Has the gateway go by that weight, as `rung ab share` does. Ends the command where it does not in time."""
    generation = split_file.set_share(folder, share).generation

    def in_force() -> bool:
        with open_url(f"{url}/split", 1.0) as response:
            return bool(json.load(response)["generation"] >= generation)

    if not wait_until(in_force, TAKES_OVER_S):
        fail(f"The gateway did not go by the new weight within {TAKES_OVER_S:g} s.")


def crashed(launcher: ProcessLauncher) -> None:
    """Kills the gateway, and starts it again as a supervisor would. Raises LaunchError where it does not come back."""
    assert launcher.gateway is not None
    launcher.gateway.process.kill()
    if not wait_until(lambda: bool([launcher.restart(dead) for dead in launcher.look()]), TAKES_OVER_S):
        fail(f"The gateway was not seen dead within {TAKES_OVER_S:g} s.")
    launcher.settle()


def show(found: Sequence[Round]) -> None:
    """Prints a line a round, and what it amounts to."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("round", no_wrap=True)
    for name in ("weight", "users", "challenger's", f"{100 * CONFIDENCE:g} % interval", "moved", "had to"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in found:
        shares = (f"{100 * each.weight:g} %", f"{each.users:,}", f"{each.challenger:,}")
        table.add_row(each.name, *shares, f"{each.least:,} to {each.most:,}", f"{each.moved:,}", f"{each.between:,}")
    out.print(table)
    slowest, quickest = (bound(each.requests_per_second for each in found) for bound in (min, max))
    out.print(
        f"{sum(each.users for each in found):,} requests, {slowest:,.0f} to {quickest:,.0f} a second, each answered by "
        "a replica of its arm. Moved: users with another arm than in the round before; had to: those whose place lies "
        "between the two weights.",
        highlight=False,
    )


def main(
    requests: Annotated[int, typer.Option(min=100, max=10_000_000, help="Of the first round, each another user's.")] = (
        100_000
    ),
    json_: JsonOption = False,
) -> None:
    """Counts who gets which of two versions, over real sockets; exit status 1 where it is not as the weights say."""
    total = requests + 4 * len(range(0, requests, AGAIN))
    with tempfile.TemporaryDirectory() as folder, failures(), stack(Path(folder)) as launcher, progress("") as bar:
        payloads, split = make_payloads(launcher.stage), launcher.stage.split
        assert split is not None
        task = bar.add_task("Requests", total=float(total))

        def ask(users: Sequence[str]) -> Arms:
            try:
                asking = answered(launcher.stage, launcher.url, payloads, users, lambda: bar.advance(task))
                found: Arms = uvloop.run(asking)
                return found
            except (LostError, ValueError) as error:
                fail(f"A request was not answered as it should be: {error}")

        def want(share: float) -> None:
            wanted(launcher.url, launcher.split_folder, share)

        counted = list(rounds(ask, want, lambda: crashed(launcher), split.salt, requests))
    good = all(each.holds for each in counted)
    if json_:
        print_json({"rounds": [{**asdict(each), "holds": each.holds} for each in counted], "holds": good})
    else:
        show(counted)
    if not good:
        fail("The split is not as its weights say.")
    raise typer.Exit(int(Exit.DONE))


if __name__ == "__main__":
    typer.run(main)
