"""Imports run one way, and twins look alike: the two rules that keep the two worlds comparable.

stages ◀── simulator ◀───────┐
stages ◀── reference_apps ◀──┴── loadtests
"""

from __future__ import annotations

import ast
import importlib
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"stages", "simulator", "reference_apps", "loadtests"}
MAY_IMPORT = {
    "stages": set[str](),
    "simulator": {"stages"},
    "reference_apps": {"stages"},
    "loadtests": {"stages", "simulator", "reference_apps"},
}
FORBIDDEN = {
    "stages": {"torch", "simpy", "fastapi", "locust"},
    "simulator": {"torch", "fastapi", "locust", "uvicorn"},
    "reference_apps": {"simpy", "locust"},
    "loadtests": {"torch", "simpy"},
}
TWINS = (
    "alerts",
    "autoscaler",
    "batcher",
    "broker",
    "cache",
    "device",
    "gateway",
    "replica",
    "shadowing",
    "splitter",
    "worker",
)
MODULES = [path for package in sorted(OURS) for path in sorted((ROOT / package).rglob("*.py"))]


def _imported(path: Path) -> Iterator[str]:
    """The full names of the modules that a file imports anywhere, inside functions and for typing too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full, as `from {path.parent.name} import ...`"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _public_names(path: Path) -> list[str]:
    """`__all__` where a module has one; otherwise the classes and functions without an underscore, in order."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for node in body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    defined = (node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef))
    return [name for name in defined if not name.startswith("_")]


def test_there_are_modules_in_every_package() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == OURS


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    tops = {name.split(".")[0] for name in _imported(path)}
    assert tops & OURS <= MAY_IMPORT[package] | {package}
    assert not tops & FORBIDDEN[package]


@pytest.mark.parametrize("name", TWINS)
def test_twins_have_the_same_public_names_in_the_same_order(name: str) -> None:
    simulated, running = (_public_names(ROOT / world / f"{name}.py") for world in ("simulator", "reference_apps"))
    assert simulated == running
    assert simulated


@pytest.mark.parametrize("name", TWINS)
def test_twins_name_each_other(name: str) -> None:
    for world, other in (("simulator", "reference_apps"), ("reference_apps", "simulator")):
        text = ast.get_docstring(ast.parse((ROOT / world / f"{name}.py").read_text(encoding="utf-8"))) or ""
        assert f"{other}/{name}.py" in text, f"{world}/{name}.py does not say who its twin is"


def test_every_package_is_in_the_distribution() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in MODULES if path.name == "__init__.py"}
    assert sorted(listed) == sorted(found)


def test_the_commands_of_all_packages_are_side_by_side() -> None:
    rung = importlib.import_module("rung")
    verbs = {
        command.callback.__name__
        for group in rung.app.registered_groups
        for command in group.typer_instance.registered_commands
    }
    assert {"stages", "show", "devices", "simulate", "up", "down", "status"} <= verbs
