"""The verbs of simulator."""

from __future__ import annotations

import typer

app = typer.Typer()
