"""`rung ab`: is the new version better, and how soon may we know? plan, simulate, status.

plan ──▶ how many labelled requests, how long        before
simulate ──▶ how often each test is wrong            in 10,000 experiments that are drawn
status ──▶ the verdict so far, whenever one looks    of a real one
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loadtests.ab_arguments import check, within, writable
from loadtests.ab_split_cli import app as split_app
from stages.terminal import Exit, JsonOption, SetOption, StageArgument, err, fail, out, print_json, teaching

if TYPE_CHECKING:
    from loadtests.ab_status import Asked, Status
    from simulator.experiments import Design, Stops
    from stages.feedback import Feedback
    from stages.spec import Stage

ab = typer.Typer(help="Split traffic between two versions, and see which is better.", no_args_is_help=True)
app = typer.Typer()
app.add_typer(ab, name="ab")
ab.add_typer(split_app)  # share, rehearse

EXPERIMENTS, PLAN_EXPERIMENTS = 10_000, 500
REQUESTS_MAX = 5_000_000

EffectOption = Annotated[float, typer.Option(help="The difference of right answers that one wants to see: 0.01.")]
BaselineOption = Annotated[float, typer.Option(help="The champion's share of right answers.")]
ShareOption = Annotated[float, typer.Option(help="The challenger's share of the requests.")]
AlphaOption = Annotated[float, typer.Option(help="How often a difference may be found where there is none.")]
PowerOption = Annotated[float, typer.Option(help="How often the effect is to be found where there is one.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the simulated experiments.")]


@ab.command()
def plan(
    stage: Annotated[
        str | None, typer.Argument(metavar="[STAGE]", help="Rate, share and labels of this stage, instead of options.")
    ] = None,
    effect: EffectOption = 0.01,
    baseline: BaselineOption = 0.97,
    rate: Annotated[float | None, typer.Option(help="Requests per second of both arms; 50 without it.")] = None,
    share: Annotated[float | None, typer.Option(help="Share of the challenger; else a ramp's last, or 0.05.")] = None,
    labelled: Annotated[float | None, typer.Option(help="The share of answers that get a label; 1 without it.")] = None,
    delay: Annotated[float | None, typer.Option(help="Seconds from an answer to its label; 0 without it.")] = None,
    alpha: AlphaOption = 0.05,
    power: PowerOption = 0.8,
    experiments: Annotated[
        int, typer.Option(min=100, max=100_000, help="Simulated, to tell how long most of them take.")
    ] = PLAN_EXPERIMENTS,
    seed: SeedOption = 1,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """How many labelled requests an experiment takes, and how long: with one look, and with looks all the time.

    A ramp's time before its last step is not counted.
    """
    from loadtests.ab_report import plan_document, print_plan
    from loadtests.verbs import stage_of
    from simulator.experiments import plan as made

    if stage is not None:
        defaults = _of_stage(stage_of(stage, set_, pin=False))  # one plans before anything is published
    elif set_:
        fail("--set: changes a stage, got none. Nothing would read it. Name a stage, or leave it out.", Exit.MISUSED)
    else:
        defaults = (50.0, 0.05, 1.0, 0.0)
    given = (rate, share, labelled, delay)
    rate_rps, share_b, labelled_share, delay_s = (
        default if value is None else value for value, default in zip(given, defaults, strict=True)
    )
    within("--rate", rate_rps, 0.0, 1e6, "Use what arrives in a second.")
    within("--labelled", labelled_share, 0.0, 1.0, "Use 1 where every answer gets a label.")
    if not 0.0 <= delay_s <= 1e7:
        fail(f"--delay: must be 0 to 10000000 seconds, got {delay_s:g}. No label comes first. Use 0.", Exit.MISUSED)
    check(baseline, effect, share_b, alpha, power)
    with _drawing("Simulating experiments") as on_progress:
        found = made(baseline, effect, share_b, alpha, power, experiments, seed, on_progress)
    told = plan_document(found, (rate_rps, share_b, labelled_share, delay_s), (baseline, effect, alpha, power))
    if json_:
        print_json(told)
    else:
        print_plan(told, out)


@ab.command()
def simulate(
    effect: EffectOption = 0.01,
    baseline: BaselineOption = 0.97,
    share: ShareOption = 0.5,
    requests: Annotated[
        int | None,
        typer.Option(min=10, max=REQUESTS_MAX, help="Labelled ones of an experiment; as planned without it."),
    ] = None,
    experiments: Annotated[int, typer.Option(min=100, max=1_000_000, help="How many.")] = EXPERIMENTS,
    alpha: AlphaOption = 0.05,
    power: PowerOption = 0.8,
    seed: SeedOption = 1,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a picture of it here, as PNG.")] = None,
    json_: JsonOption = False,
) -> None:
    """Draw thousands of experiments, look after every request, and count how often each test is wrong."""
    from dataclasses import replace

    from loadtests.ab_report import print_simulated, simulated_document
    from simulator.experiments import Design, look_once, peek
    from stages.policies.fixed_horizon import sample_size
    from stages.policies.sequential import requests_needed, tuned_for

    check(baseline, effect, share, alpha, power)
    writable(plot)
    size = requests or sample_size(baseline, effect, share, alpha, power)
    tuned_at = tuned_for(baseline, effect, share, alpha, power)
    longest = max(size, requests_needed(baseline, effect, share, alpha, power, tuned_at))
    if longest > REQUESTS_MAX:
        fail(
            f"--effect: must be seen within {REQUESTS_MAX:,} labelled requests, got {effect:g}, which takes "
            f"{longest:,}. So many would take hours to draw. Use a larger effect, or a share nearer to 0.5.",
            Exit.MISUSED,
        )
    with_effect = Design(baseline, effect, share, longest, alpha, tuned_at)
    without = replace(with_effect, effect=0.0, requests=size)
    with _drawing("Experiments without a difference") as on_progress:
        null = peek(without, experiments, seed, on_progress)
    with _drawing("Experiments with one") as on_progress:
        there = peek(with_effect, experiments, seed, on_progress)
    looked = look_once(without, experiments, seed), look_once(replace(with_effect, requests=size), experiments, seed)
    told = simulated_document(with_effect, size, null, there, looked)
    if plot is not None:
        _plot_simulated(plot, with_effect, size, null, there)
    if json_:
        print_json(told)
        return
    print_simulated(told, out)
    if plot is not None:
        out.print(f"Picture: {plot}")


@ab.command()
def status(
    stage: StageArgument,
    folder: Annotated[
        Path | None, typer.Option("--in", metavar="FOLDER", help="The folder of a run, instead of the stage's own.")
    ] = None,
    last: Annotated[str | None, typer.Option(metavar="TIME", help="Only answers of the last 8h, 30m, 45s.")] = None,
    effect: EffectOption = 0.01,
    baseline: Annotated[float, typer.Option(help="About the champion's share of right answers.")] = 0.95,
    alpha: AlphaOption = 0.05,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the effect over time here, as PNG.")] = None,
    json_: JsonOption = False,
) -> None:
    """Accuracy, latency and cost by arm, and the verdict so far; look as often as you like."""
    from loadtests.ab_report import print_status
    from loadtests.ab_status import Asked, document
    from loadtests.ab_status import status as so_far
    from reference_apps import split_file
    from reference_apps.feedback_errors import FeedbackDownError
    from reference_apps.feedback_reading import FeedbackReader
    from reference_apps.launchers.launcher import SPLIT_FOLDER
    from reference_apps.launchers.member import FEEDBACK
    from reference_apps.up import feedback_folder, split_folder

    check(baseline, effect if baseline + effect <= 1.0 else -effect, 0.5, alpha, 0.8)
    writable(plot)
    resolved, feedback = _with_feedback(stage, folder)
    asked = Asked(alpha, effect, baseline, _since(last))
    kept = feedback_folder(resolved.name) if folder is None else folder / FEEDBACK
    told = split_file.seen(split_folder(resolved.name) if folder is None else folder / SPLIT_FOLDER)
    try:
        with FeedbackReader(feedback, kept) as reader:
            found = so_far(resolved, reader, asked)
    except FeedbackDownError as error:
        fail(str(error))
    if found is None:
        fail(f"{resolved.name}: nothing was answered yet that was kept. Send requests, with `rung load {stage}`.")
    drawn = plot is not None and _plot_status(plot, found, asked)
    if json_:
        print_json({**document(found), "split": None if told is None else told._asdict()})
        return
    print_status(found, out)
    if resolved.split is not None and (stopped := split_file.in_words(told, resolved.name, resolved.split)):
        out.print(stopped, markup=False, highlight=False)
    if plot is not None:
        out.print(f"Picture: {plot}" if drawn else "No picture: one arm has no labels yet.")


def _with_feedback(name: str, folder: Path | None) -> tuple[Stage, Feedback]:
    """The stage as it is up, as the run in `folder` had it, or by its file. Without [feedback] it ends in words."""
    from reference_apps.up import list_up
    from stages.spec import load_stage

    with teaching():
        kept = None if folder is None else folder / "stage.toml"
        running = next((each for each in list_up() if each.stage == name), None) if kept is None else None
        if kept is not None and kept.is_file():
            stage = load_stage(kept)
        else:
            stage = load_stage(name if running is None else Path(running.folder) / "stage.toml")
    if stage.feedback is None:
        fail(
            f"{stage.name}: has no [feedback]. Nothing of its answers is kept, and no labels are taken. Use ab-test, "
            "or write [feedback].",
            Exit.MISUSED,
        )
    return stage, stage.feedback


def _of_stage(stage: Stage) -> tuple[float, float, float, float]:
    """Rate, the challenger's share, the share of labels and their delay, as a stage has them."""
    from stages.spec import mean_rate_rps

    rate_rps = mean_rate_rps(stage.traffic)
    if rate_rps is None:
        fail(f'{stage.name}: traffic.loop is "closed", and has no rate of its own. Give --rate instead.', Exit.MISUSED)
    share = 0.05
    if stage.split is not None:  # labels before the last step of a ramp are few
        share = stage.split.challenger_share if stage.split.ramp is None else stage.split.ramp.shares[-1]
    if stage.feedback is None:
        return rate_rps, share, 1.0, 0.0
    return rate_rps, share, stage.feedback.share, stage.feedback.delay_s


def _since(last: str | None) -> float | None:
    """The time, in seconds since the epoch, so long ago."""
    from stages.night import seconds_of

    try:
        return None if last is None else time.time() - seconds_of(last)
    except ValueError:
        fail(
            f"--last: must be a time of more than 0 seconds, got {last!r}. Nothing was answered in it. Use 8h, 30m or "
            "45s.",
            Exit.MISUSED,
        )


def _plot_simulated(plot: Path, design: Design, size: int, null: Stops, there: Stops) -> None:
    from loadtests.ab_plots import stopped_by
    from simulator.plot_frame import png

    about = (
        f"{null.naive.size:,} simulated experiments, {100 * design.baseline:g} % right, {100 * design.share:g} % for "
        f"the challenger; a difference is of {100 * design.effect:+g} points"
    )
    plot.write_bytes(png(stopped_by(null, there, size, design.alpha, "What peeking does", about)))


def _plot_status(plot: Path, found: Status, asked: Asked) -> bool:
    """Whether there was anything to draw."""
    from loadtests.ab_plots import effect_over_time
    from simulator.plot_frame import png

    if found.over_time is None or not found.over_time.at.size:
        return False
    labels, level = found.over_time.labelled[-1], 100 * (1 - asked.alpha)
    about = f"{labels:,} labels in time; the interval holds with {level:g} % at all looks"
    plot.write_bytes(png(effect_over_time(found.over_time, f"{found.stage}: challenger against champion", about)))
    return True


@contextmanager
def _drawing(what: str) -> Iterator[Callable[[float], None]]:
    """A bar on stderr of the share that is done; silent where stderr is no terminal."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda done: bar.update(task, completed=done)
