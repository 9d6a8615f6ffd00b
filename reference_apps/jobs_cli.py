"""The verbs for the jobs of a queued stage: put, status, wait, dead, retry, forget, run.

They open the stage's queue and results themselves, as its workers do, and so they work while its API does not, and only
where queue and results can be reached. What they can do to dead letters is reachable over no network.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import orjson
import typer

from stages.terminal import Exit, JsonOption, StageArgument, err, fail, out, print_json, teaching

if TYPE_CHECKING:
    from reference_apps.decoding import Decodes
    from reference_apps.job_store import JobStore
    from stages.queue import Queue
    from stages.spec import Stage

jobs = typer.Typer(help="Put jobs into a queued stage, and see what becomes of them.", no_args_is_help=True)
app = typer.Typer()
app.add_typer(jobs, name="jobs")

POLL_S = 0.05
PriorityOption = Annotated[int | None, typer.Option(min=0, help="0 goes first; the stage says how many there are.")]
LettersArgument = Annotated[list[str] | None, typer.Argument(metavar="[JOB]...", help="Ids of dead letters.")]
AllOption = Annotated[bool, typer.Option("--all", help="All of them.")]


@jobs.command()
def put(
    stage: StageArgument,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="One input: .json, .png or .npy, anywhere that fsspec reaches.")
    ],
    priority: PriorityOption = None,
    key: Annotated[str | None, typer.Option(help="An idempotency key: the same key is the same job.")] = None,
    after_s: Annotated[float, typer.Option("--after", min=0.0, help="Seconds before which nobody begins it.")] = 0.0,
    json_: JsonOption = False,
) -> None:
    """Put one input into the stage's queue; prints the job's id."""
    from reference_apps.broker import NewJob
    from reference_apps.envelope import pack, sealed
    from reference_apps.job_items import ItemsError, item_of

    with _opened(stage) as (resolved, queue, store):
        try:
            item = item_of(file, _inputs(resolved))
        except ItemsError as error:
            fail(str(error), Exit.MISUSED)
        if item.wrong:
            fail(f"{file}: {item.wrong}", Exit.MISUSED)
        payload = pack(sealed(item.content_type, item.shape, item.body))
        try:
            (accepted,) = store.broker.put([NewJob(payload, _priority(priority, queue), key, after_s)])
        except ValueError as error:
            fail(str(error), Exit.MISUSED)
    if json_:
        print_json({"job": accepted.job, "duplicate": accepted.duplicate})
    else:
        out.print(accepted.job, highlight=False)


@jobs.command()
def status(
    stage: StageArgument,
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="A job's id; the whole queue without it.")] = None,
    json_: JsonOption = False,
) -> None:
    """Show how long the queue is, or where one job is."""
    from dataclasses import asdict

    with _opened(stage) as (_, _, store):
        if job is not None:
            told = _told(store, job)
        else:
            told = {"queue": asdict(store.broker.depth()), "results": store.results.counts()}
    if json_:
        print_json(told)
    elif job is not None:
        out.print(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode(), markup=False, highlight=False)
    else:
        depth, results = told["queue"], told["results"]
        out.print(
            ", ".join(f"{depth[name]} {name}" for name in ("waiting", "leased", "delayed", "dead")), highlight=False
        )
        out.print(f"The oldest has waited {depth['oldest_s']:.1f} s.", highlight=False)
        stored = ", ".join(f"{count} {outcome}" for outcome, count in sorted(results.items()))
        out.print(f"Results: {stored or 'none'}", highlight=False)


@jobs.command()
def wait(
    stage: StageArgument,
    job: Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")],
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.0, help="Seconds to wait for its end.")] = 300.0,
    json_: JsonOption = False,
) -> None:
    """Wait for a job's end and print its answer."""
    with _opened(stage) as (_, _, store), err.status(f"Waiting for {job} …"):
        deadline_s = time.monotonic() + timeout_s
        told = _told(store, job)
        while told["status"] not in ("done", "dead") and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
            told = _told(store, job)
    if told["status"] not in ("done", "dead"):
        fail(f"{job}: is {told['status']} still after {timeout_s:g} s. It goes on: ask again.")
    if json_:
        print_json(told)
    else:
        shown = told.get("answer", told.get("error"))
        out.print(orjson.dumps(shown).decode(), markup=False, highlight=False)
    if told["outcome"] != "ok":
        raise typer.Exit(int(Exit.FAILED))


@jobs.command()
def dead(
    stage: StageArgument,
    most: Annotated[int, typer.Option(min=1, max=1000, help="How many to show, the longest dead first.")] = 20,
    json_: JsonOption = False,
) -> None:
    """List the dead letters: jobs that nobody is given any more, each with its error."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    with _opened(stage) as (_, _, store):
        letters, count = store.broker.dead(most), store.broker.depth().dead
    rows = [
        {"job": each.job, "attempts": each.attempts, "died_at": each.died_s, "error": each.error} for each in letters
    ]
    if json_:
        print_json({"dead": count, "jobs": rows})
        return
    if not rows:
        out.print("No dead letters.")
        return
    table = Table("job", "attempts", "died", "error", box=SIMPLE_HEAD, pad_edge=False)
    table.columns[-1].overflow = "fold"
    for row in rows:
        died = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(cast(float, row["died_at"])))
        table.add_row(str(row["job"]), str(row["attempts"]), died, str(row["error"]))
    out.print(table)
    more = f" of {count}" if count > len(rows) else ""
    out.print(
        f"{len(rows)}{more}. Have them tried again with `rung jobs retry {stage} --all`, or throw them away with "
        f"`rung jobs forget {stage} --all`.",
        highlight=False,
    )


@jobs.command()
def retry(
    stage: StageArgument, job: LettersArgument = None, all_: AllOption = False, json_: JsonOption = False
) -> None:
    """Have dead letters tried again: they wait at the end of the line, with all their attempts."""
    _check_chosen("retry", job, all_)
    with _opened(stage) as (_, _, store):
        count = store.broker.retry(None if all_ else job)
    if json_:
        print_json({"retried": count})
    else:
        out.print(f"{count} wait again.", highlight=False)
    _tell_others(job, count)


@jobs.command()
def forget(
    stage: StageArgument, job: LettersArgument = None, all_: AllOption = False, json_: JsonOption = False
) -> None:
    """Throw dead letters away, with their inputs. Until then they count in queue.max_depth."""
    _check_chosen("forget", job, all_)
    with _opened(stage) as (_, _, store):
        count = store.broker.forget(None if all_ else job)
    if json_:
        print_json({"forgotten": count})
    else:
        out.print(f"{count} thrown away.", highlight=False)
    _tell_others(job, count)


@jobs.command()
def run(
    stage: StageArgument,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Inputs: .jsonl or .npy, anywhere that fsspec reaches.")],
    to: Annotated[
        str | None, typer.Option("--out", metavar="PATH", help="Where the results go; beside FILE without it.")
    ] = None,
    priority: PriorityOption = None,
    stall_s: Annotated[
        float, typer.Option("--stall", min=1.0, help="Give up when nothing went on for so many seconds.")
    ] = 600.0,
    json_: JsonOption = False,
) -> None:
    """Compute a file of inputs; started again, it goes on where it was. Results are JSON lines beside the file."""
    from reference_apps.batch_jobs import BatchError, BatchRun, Summary
    from reference_apps.job_items import ItemsError

    results = to or f"{file}.results.jsonl"
    with _opened(stage) as (resolved, queue, store), err.status(f"Computing {file} …") as shown:

        def told(summary: Summary) -> None:
            shown.update(f"Computing {file}: {summary.ok} done, {summary.failed} failed, {summary.before} before …")

        # After those that somebody waits for.
        first = queue.priorities - 1 if priority is None else _priority(priority, queue)
        try:
            summary = BatchRun(store, _inputs(resolved), file, results, first, stall_s, told).run()
        except ItemsError as error:
            fail(str(error), Exit.MISUSED)
        except (BatchError, OSError, ImportError) as error:
            fail(str(error))
    if json_:
        counts = {"ok": summary.ok, "failed": summary.failed, "before": summary.before}
        print_json({"items": summary.items, **counts, "results": summary.results})
    else:
        done = f"{summary.ok} done, {summary.failed} failed"
        before = f", {summary.before} by runs before" if summary.before else ""
        out.print(f"{summary.items} items: {done}{before}. Results: {summary.results}", highlight=False)


@contextmanager
def _opened(name: str) -> Iterator[tuple[Stage, Queue, JobStore]]:
    """The stage (as it is up, if it is), its queue and its store; ends the command in words where there is none."""
    from reference_apps.broker import BrokerDownError
    from reference_apps.job_store import open_store, server_of
    from reference_apps.results import ResultsDownError
    from reference_apps.up import list_up, queue_folder
    from stages.spec import load_stage

    with teaching():
        running = next((each for each in list_up() if each.stage == name), None)
        stage = load_stage(name if running is None else Path(running.folder) / "stage.toml")
    if (queue := stage.queue) is None:
        fail(f"{stage.name}: has no [queue]. Its requests are answered at once. Use `queued`.", Exit.MISUSED)
    folder = queue_folder(stage.name)
    try:
        with server_of(queue, folder), open_store(queue, folder) as store:
            yield stage, queue, store
    except (BrokerDownError, ResultsDownError) as error:
        fail(str(error))
    except OSError as error:
        fail(
            f"{folder}: must be a folder that can be written to, got '{error.strerror}'. There is no queue.",
            Exit.MISUSED,
        )


def _inputs(stage: Stage) -> Decodes:
    from reference_apps.models import load_inputs

    return cast("Decodes", load_inputs(stage.model))


def _check_chosen(verb: str, job: list[str] | None, all_: bool) -> None:
    if bool(job) == all_:
        fail(f"{verb}: needs either ids of dead letters or --all. See `rung jobs dead`.", Exit.MISUSED)


def _tell_others(job: list[str] | None, count: int) -> None:
    if job and count < len(set(job)):
        fail(f"{len(set(job)) - count} of the jobs are no dead letters.")


def _priority(given: int | None, queue: Queue) -> int:
    if given is None:
        return min(1, queue.priorities - 1)
    if given >= queue.priorities:
        fail(
            f"--priority: must be 0 to {queue.priorities - 1} (queue.priorities), got {given}. 0 goes first.",
            Exit.MISUSED,
        )
    return given


def _told(store: JobStore, job: str) -> dict[str, Any]:
    """What is known of a job; ends the command in words where nothing is."""
    from reference_apps.jobs_door import RefusedError, job_of, told
    from reference_apps.result_watch import Seen

    try:
        found = store.broker.look([job_of(job)]).get(job)
        content: dict[str, Any] = orjson.loads(told(job, Seen(store.results.find([job]).get(job), found))[2])
    except RefusedError as error:
        fail(str(error), Exit.MISUSED)
    return content
