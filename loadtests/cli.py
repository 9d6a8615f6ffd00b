"""The verbs of loadtests."""

from __future__ import annotations

import typer

app = typer.Typer()
