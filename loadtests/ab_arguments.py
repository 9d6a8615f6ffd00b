"""What the verbs of `rung ab` refuse before anything is drawn: numbers of no possible experiment, and no place."""

from __future__ import annotations

from pathlib import Path

from stages.terminal import Exit, fail


def check(baseline: float, effect: float, share: float, alpha: float, power: float) -> None:
    """Ends the command in words when there can be no such experiment."""
    within("--baseline", baseline, 0.0, 1.0, "Use 0.97 where 97 of 100 answers are right.", most_too=False)
    if effect == 0.0 or not 0.0 < baseline + effect <= 1.0:
        fail(
            f"--effect: must leave the challenger a share of right answers above 0 and at most 1, other than the "
            f"champion's {baseline:g}, got {effect:g}. There would be nothing to see. Use 0.01 for a point more, -0.01 "
            "for one less.",
            Exit.MISUSED,
        )
    within("--share", share, 0.0, 1.0, "Use 0.05 for one request in twenty.", most_too=False)
    within("--alpha", alpha, 0.0, 0.5, "Use 0.05.")
    within("--power", power, 0.0, 0.999, "Use 0.8.")


def within(option: str, value: float, above: float, most: float, remedy: str, most_too: bool = True) -> None:
    """Ends the command in words when the value is not above one bound and at most the other, or below it."""
    if not above < value <= most or (not most_too and value == most):
        bound = f"at most {most:g}" if most_too else f"below {most:g}"
        fail(
            f"{option}: must be above {above:g} and {bound}, got {value:g}. There can be no such experiment. {remedy}",
            Exit.MISUSED,
        )


def writable(plot: Path | None) -> None:
    """Ends the command in words before anything is drawn that could not be kept."""
    if plot is not None and (plot.is_dir() or not plot.absolute().parent.is_dir()):
        fail(
            f"--plot: must be a file in a folder that exists, got {plot}. The picture would have no place. Make the "
            "folder first.",
            Exit.MISUSED,
        )
