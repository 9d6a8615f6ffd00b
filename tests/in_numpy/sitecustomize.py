"""What the processes import first that a test of their comings and goings starts: their `digits` is NumPy's.

    the fixture in_numpy ── PYTHONPATH ──▶ this module ──▶ reference_apps.models.load_model, once it is imported

PyTorch takes longer to import than all the rest of a replica together. Weights that a stage names, other models and
real GPUs are left to it.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

PACKAGE = "reference_apps.models"


class Instead(MetaPathFinder):
    """Changes the package when it is imported."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != PACKAGE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(PACKAGE)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def and_change(module: ModuleType) -> None:
            execute(module)
            change(module)

        spec.loader.exec_module = and_change  # type: ignore[method-assign]
        return spec


def change(models: Any) -> None:
    """From now on `load_model` of the package gives NumPy's `digits` where it can."""
    in_pytorch = models.load_model

    def load_model(spec: Any, device: str, **how: Any) -> Any:
        if spec.name != "digits" or spec.weights is not None or device != "cpu":
            return in_pytorch(spec, device, **how)
        from digits_in_numpy import Digits

        from reference_apps.models.crashing import Crashing
        from reference_apps.registry import with_weights

        spec = with_weights(spec)
        model = Digits(spec.answers_as, spec.weights)
        return Crashing(model, spec.known.crash_share) if spec.known.crash_share else model

    models.load_model = load_model


sys.meta_path.insert(0, Instead())
