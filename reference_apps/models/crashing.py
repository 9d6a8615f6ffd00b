"""A model that fails on a share of all inputs, always on the same ones: what a bad release looks like in production.

    batch ──▶ the model itself ──▶ is an input among those that it fails on? ── no ──▶ its answers
                                                                            └─ yes ─▶ raises, for the whole batch

Which inputs those are is in stages/policies/crashing.py. The failure shows when the batch has been computed, as an
error of a GPU does. Not here: a process that dies, and failures by chance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from reference_apps.decoding import input_bytes
from reference_apps.models import Model
from stages.policies.crashing import crashes, position


class CrashError(RuntimeError):
    """The model failed on an input."""


class Crashing:
    """`model`, but for the inputs that it fails on: `share` of all that there can be."""

    def __init__(self, model: Model, share: float) -> None:
        self._model = model
        self._share = share
        self.name: str = model.name
        self.version: str = model.version
        self.input_shape: tuple[int, ...] = model.input_shape
        self.png_mode: str | None = model.png_mode

    def from_image(self, image: Image.Image) -> np.ndarray:
        """As the model's own."""
        return self._model.from_image(image)

    def examples(self, count: int, seed: int) -> np.ndarray:
        """As the model's own: some may be among those that it fails on."""
        return self._model.examples(count, seed)

    def example_labels(self, count: int, seed: int) -> list[int]:
        """What each of them shows."""
        return self._model.example_labels(count, seed)

    def example_images(self, count: int, seed: int) -> list[Image.Image]:
        """As the model's own."""
        return self._model.example_images(count, seed)

    def predict(self, inputs: np.ndarray) -> list[dict[str, Any]]:
        """The model's answers. Raises CrashError where it fails on any of the inputs."""
        answers = self._model.predict(inputs)
        failed = sum(crashes(position(input_bytes(each)), self._share) for each in inputs)
        if failed:
            raise CrashError(f"version {self.version} of {self.name} fails on {failed} of these {len(inputs)} inputs")
        return answers
