"""The rule over the keys of [model] that say where its weights come from; asked by stages/rules.py, like its own."""

from __future__ import annotations

from collections.abc import Iterator

from stages.problems import Problem, shown
from stages.spec import Model


def weights_have_one_source(model: Model) -> Iterator[Problem]:
    """A version has its own weights in the registry."""
    if model.version is not None and model.weights is not None:
        yield Problem(
            "model.version",
            "cannot stand beside model.weights",
            shown(model.version),
            "The weights of a version are those of the registry, and no others.",
            "Remove one of the two; `rung models publish` makes a version of a file.",
        )


RULES = (weights_have_one_source,)
