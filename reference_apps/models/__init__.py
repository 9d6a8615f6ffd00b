"""Models: a batch of decoded inputs in, answers out; three of them behind one interface.

    picture ──▶ from_image ──▶ input ─┐
                           examples ──┴─▶ batch (n, *input_shape) ──▶ predict ──▶ n answers

A load generator needs the left half alone: `load_inputs` neither imports PyTorch nor reads weights.
The simulator has no twin of a model: to it a model is the time that a batch takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from stages.spec import Model as ModelSpec

WARM_BATCH_SIZES = (1, 8)


class Inputs(Protocol):
    """What a model is asked with: the shape of an item, how a picture becomes one, and examples of both."""

    @property
    def name(self) -> str:
        """The model's name in a stage file."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input, without the batch axis."""

    @property
    def png_mode(self) -> str | None:
        """Pillow's mode of a picture for this model, "L" or "RGB"; None for one that takes no pictures."""

    def from_image(self, image: Image.Image) -> np.ndarray:
        """A picture of any size and mode as one float32 input of `input_shape`.

        Raises ValueError where `png_mode` is None.
        """

    def examples(self, count: int, seed: int) -> np.ndarray:
        """Real inputs for load tests, float32 of shape (count, *input_shape).

        The same seed gives the same items, and item i does not depend on `count`.
        """

    def example_labels(self, count: int, seed: int) -> list[int]:
        """What each of them shows, as the model's answers name it; empty where nobody knows."""

    def example_images(self, count: int, seed: int) -> list[Image.Image]:
        """The same examples as pictures in `png_mode`: `from_image` of picture i is example i, to the bit.

        Raises ValueError where `png_mode` is None.
        """


class Model(Inputs, Protocol):
    """A model on its device. One call is one batch, and it ends when the device has ended."""

    @property
    def version(self) -> str:
        """The version that this model is; every answer names it."""

    def predict(self, inputs: np.ndarray) -> list[dict[str, Any]]:
        """One answer per input, as JSON can hold it; `inputs` is float32 of shape (n, *input_shape), n >= 1.

        Raises ValueError for another shape or type.
        """


def load_inputs(spec: ModelSpec) -> Inputs:
    """What the model of a stage is asked with, without the model."""
    from reference_apps.models import inputs

    match spec.name:
        case "digits":
            return inputs.DigitInputs()
        case "resnet50":
            return inputs.ImageInputs(spec.image_size_px)
        case "xor":
            return inputs.XorInputs()


def load_model(
    spec: ModelSpec, device: str, *, cpu_threads: int = 1, warm_batch_sizes: Sequence[int] = WARM_BATCH_SIZES
) -> Model:
    """The model of a stage on "cpu" or "cuda", with its weights checked and loaded, warmed up.

    A version comes out of the registry, with its digest checked. `cpu_threads` holds for the whole process, as PyTorch
    has one pool of threads. Raises StageError, which is a ValueError, when there is no such version, when the weights
    do not fit the model or are not those that were published, or the device is not there.
    """
    # Imported here so that `load_inputs` stays free of PyTorch, and so that `python -m` of one of them does not
    # find itself imported already.
    from reference_apps.models import crashing, digits, network, resnet50, xor
    from reference_apps.registry import with_weights

    network.prepare(device, cpu_threads)
    spec = with_weights(spec)
    model: Model
    match spec.name:
        case "digits":
            model = digits.Digits(spec, device)
        case "resnet50":
            model = resnet50.ResNet50(spec, device)
        case "xor":
            model = xor.Xor(spec, device)
    # PyTorch picks and compiles its kernels at the first call, and prepares itself for each new shape: no request
    # should wait for that.
    for batch_size in warm_batch_sizes:
        model.predict(model.examples(batch_size, seed=0))
    share = spec.known.crash_share
    if share:
        return crashing.Crashing(model, share)
    return model
