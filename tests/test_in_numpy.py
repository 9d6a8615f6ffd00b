"""What stands in for PyTorch in many tests answers as PyTorch does, and stands in for nothing else."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reference_apps.models import load_model
from stages.spec import Model
from tests.conftest import PATIENCE_S, ROOT
from tests.versions import published

FOLDER = ROOT / "tests/in_numpy"
WHOSE = """
import sys
from reference_apps.models import load_model
from stages.spec import Model
for text in sys.argv[1:]:
    model = load_model(Model.model_validate_json(text), "cpu", cpu_threads=1)
    print(type(model).__name__, model.version, "torch" in sys.modules)
"""


@pytest.mark.parametrize("count", [1, 8, 60])
def test_it_answers_as_pytorch_does(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    digits = importlib.import_module("digits_in_numpy").Digits("1", None)
    model = load_model(Model(name="digits"), "cpu")
    inputs = model.examples(count, seed=3)
    for own, wanted in zip(digits.predict(inputs), model.predict(inputs), strict=True):
        assert own["label"] == wanted["label"]
        assert own["probability"] == pytest.approx(wanted["probability"], abs=1e-5)


def test_weights_that_a_stage_names_are_left_to_pytorch(tmp_path: Path) -> None:
    weights = published(tmp_path).load("digits", "1").weights
    models = {
        '{"name": "digits"}': "Digits 1 False",
        '{"name": "digits", "facts": {"crash_share": 0.5}}': "Crashing 1 False",
        Model(name="digits", version="2", registry=str(tmp_path)).model_dump_json(): "Digits 2 False",
        Model(name="digits", weights=str(weights)).model_dump_json(): "Digits 1 True",
    }
    done = subprocess.run(
        [sys.executable, "-c", WHOSE, *models],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=PATIENCE_S,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(FOLDER), str(ROOT)])},
    )
    assert done.stdout.splitlines() == list(models.values()), done.stderr
