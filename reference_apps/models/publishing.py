"""Weights that somebody else has trained, before they become a version: read, tried on the model, judged.

    folder ──▶ read_source ──▶ About, bytes ──▶ checked: do they fit the network? how often is it right? ──▶ About

Not here: whether the data that the metadata name are those that it was trained on.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from pydantic import ValidationError

from reference_apps.model_metadata import About, Metadata, digest_of
from reference_apps.models import load_model
from reference_apps.models.inputs import held_out_digits, scaled_digits
from reference_apps.registry import METADATA, WEIGHTS
from stages.problems import Problem, StageError, shown
from stages.spec import Model

_NAMES = get_args(Model.model_fields["name"].annotation)


def read_source(source: Path, model: str | None) -> tuple[About, bytes]:
    """What is said of the weights in a folder, or of a file of weights, and their bytes.

    `model` names the model where no metadata do. Raises StageError.
    """
    folder = source if source.is_dir() else None
    weights = source if folder is None else folder / WEIGHTS
    try:
        content = weights.read_bytes()
    except OSError as error:
        remedy = f"Give a folder that holds {WEIGHTS}, or such a file."
        raise _wrong(source, weights.name, "must be readable", str(error.strerror), remedy) from None
    said: dict[str, Any] = {}
    if folder is not None and (folder / METADATA).exists():
        said = _metadata(folder)
    if model is not None and said.setdefault("model", model) != model:
        raise _wrong(source, "model", f"must be {model}, as --model says", shown(said["model"]), "Leave --model out.")
    if "model" not in said:
        raise _wrong(source, "model", "must be given", None, f"Name it with --model: {', '.join(_NAMES)}.")
    digest = digest_of(content)
    if said.get("digest", digest) != digest:
        remedy = "Copy both again, or remove the digest."
        raise _wrong(source, "digest", f"must be that of {WEIGHTS}, {digest[:12]}…", shown(said["digest"]), remedy)
    try:
        return About.model_validate({key: said[key] for key in About.model_fields if key in said}), content
    except ValidationError as error:
        first = error.errors()[0]
        key, got = ".".join(map(str, first["loc"])), shown(first["input"])
        raise _wrong(source, key, f"is not valid ({first['msg']})", got, f"Correct it in {METADATA}.") from None


def checked(about: About, weights: bytes) -> About:
    """The same, with what could be found out. Raises StageError where the weights do not fit the model."""
    if about.model not in _NAMES:
        raise _wrong(Path(about.model), "model", "must be a model of ours", shown(about.model), f"Use {_NAMES[0]}.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / WEIGHTS
        path.write_bytes(weights)
        spec = Model(name=cast(Any, about.model), weights=str(path))
        model = load_model(spec, "cpu", warm_batch_sizes=(1,))
    if about.model != "digits" or "accuracy" in about.metrics:
        return about
    images, labels = held_out_digits()
    answers = [answer["label"] for answer in model.predict(scaled_digits(images))]
    found = {"accuracy": float(np.mean(np.array(answers) == labels))}
    return about.model_copy(update={"metrics": {**about.metrics, **found}})


def _metadata(folder: Path) -> dict[str, Any]:
    try:
        said = json.loads((folder / METADATA).read_bytes())
    except (OSError, ValueError) as error:
        raise _wrong(folder, METADATA, "must be JSON", str(error), "Correct it, or remove it.") from None
    if not isinstance(said, dict):
        raise _wrong(folder, METADATA, "must be a JSON object", shown(said), "Correct it, or remove it.")
    unknown = said.keys() - Metadata.model_fields.keys()
    if unknown:
        remedy = f"The keys are {', '.join(About.model_fields)}."
        raise _wrong(folder, METADATA, "has keys that nothing reads", ", ".join(sorted(unknown)), remedy)
    return said


def _wrong(source: Path, key: str, rule: str, got: str | None, remedy: str) -> StageError:
    return StageError(str(source), [Problem(key, rule, got, "Nothing was published.", remedy)])
