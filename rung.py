"""The command `rung`: every package's verbs, side by side."""

from __future__ import annotations

import typer

from loadtests.ab_cli import app as ab_app
from loadtests.cli import app as loadtests_app
from loadtests.drill_cli import app as drill_app
from loadtests.night_cli import app as night_app
from loadtests.plan_cli import app as plan_app
from loadtests.spike_cli import app as spike_app
from reference_apps.cli import app as reference_apps_app
from reference_apps.jobs_cli import app as jobs_app
from reference_apps.models_cli import app as models_app
from reference_apps.watch_cli import app as watch_app
from simulator.cli import app as simulator_app
from simulator.ladder_cli import app as ladder_app
from simulator.sweep_cli import app as sweep_app
from stages.cli import app as stages_app

app = typer.Typer(
    name="rung",
    help="From the first user to millions, one measured rung at a time.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for part in (
    stages_app,
    simulator_app,
    sweep_app,
    ladder_app,
    reference_apps_app,
    jobs_app,
    models_app,
    watch_app,
    loadtests_app,
    spike_app,
    drill_app,
    night_app,
    plan_app,
    ab_app,
):
    app.add_typer(part)


def main() -> None:
    """Runs the command line."""
    app()


if __name__ == "__main__":
    main()
