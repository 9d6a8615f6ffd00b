"""The verbs of reference_apps."""

from __future__ import annotations

import typer

app = typer.Typer()
