"""What goes into each model: shapes, pictures and examples, with NumPy and Pillow alone.

    PNG, JPEG ──▶ Pillow image ──▶ from_image ──▶ float32 input
    seed ──▶ example_images ───────────┘

A picture sent as PNG and the same picture sent as raw float32 are the same input: formats can be compared.
Not modelled: pictures of different sizes. Examples of resnet50 are noise, which decodes and computes like any
picture but compresses badly.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from safetensors.numpy import load_file

from stages.streams import stream

WEIGHTS_DIR = Path(__file__).parent / "weights"
DIGIT_LEVELS = 16  # a pixel of the bundled digits counts the inked pixels of a 4 x 4 block of the scan


@cache
def held_out_digits() -> tuple[np.ndarray, np.ndarray]:
    """The digits that training never saw: images, uint8 of 0 to 16, shape (n, 8, 8); labels, uint8, shape (n,)."""
    tensors = load_file(WEIGHTS_DIR / "digits-heldout.safetensors")
    return tensors["images"], tensors["labels"]


def scaled_digits(levels: np.ndarray) -> np.ndarray:
    """Levels of 0 to 16, shape (n, 8, 8), as the network takes them: float32 of 0 to 1, (n, 1, 8, 8)."""
    scaled: np.ndarray = levels.astype(np.float32) / DIGIT_LEVELS
    return scaled[:, np.newaxis]


def _drawn(among: int, count: int, seed: int, name: str) -> np.ndarray:
    """`count` indices below `among`: all of them in a seeded order, then all again."""
    order = stream(seed, f"examples.{name}").permutation(among)
    return order[np.arange(count) % among]


def _eight_bits(image: Image.Image) -> Image.Image:
    """The picture with 8 bits a channel: Pillow's own conversion of 16-bit grey turns all but black to white."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


class DigitInputs:
    """Handwritten digits of 8 x 8 pixels, light ink on dark ground."""

    name = "digits"
    input_shape: tuple[int, ...] = (1, 8, 8)
    png_mode: str | None = "L"

    def from_image(self, image: Image.Image) -> np.ndarray:
        """A picture in grey, shrunk to 8 x 8 by area and rounded to the 17 levels of the data set, which was
        made in this way: https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits
        """
        small = _eight_bits(image).convert("L").resize((8, 8), Image.Resampling.BOX)
        levels = np.rint(np.asarray(small, dtype=np.float32) * (DIGIT_LEVELS / 255))
        return scaled_digits(levels[np.newaxis, ...])[0, ...]

    def examples(self, count: int, seed: int) -> np.ndarray:
        """Held-out digits in a seeded order, from the start again where `count` exceeds them."""
        images, _ = held_out_digits()
        return scaled_digits(images[_drawn(len(images), count, seed, self.name)])

    def example_labels(self, count: int, seed: int) -> list[int]:
        """Which digit each of them is."""
        _, labels = held_out_digits()
        drawn: list[int] = labels[_drawn(len(labels), count, seed, self.name)].tolist()
        return drawn

    def example_images(self, count: int, seed: int) -> list[Image.Image]:
        """The same digits as greyscale pictures."""
        images, _ = held_out_digits()
        drawn = images[_drawn(len(images), count, seed, self.name)]
        grey = np.rint(drawn * (255 / DIGIT_LEVELS)).astype(np.uint8)
        return [Image.fromarray(picture) for picture in grey]


class ImageInputs:
    """Colour pictures, normalised with the mean and deviation of ImageNet."""

    name = "resnet50"
    png_mode: str | None = "RGB"
    # Red, green and blue of pixels from 0 to 1, and the border below: torchvision/transforms/_presets.py,
    # ImageClassification, in https://github.com/pytorch/vision
    mean = np.array([0.485, 0.456, 0.406], dtype=np.float32)
    deviation = np.array([0.229, 0.224, 0.225], dtype=np.float32)
    # It shrinks the short side to 256 pixels and keeps the middle 224.
    border = (1 - 224 / 256) / 2

    def __init__(self, image_size_px: int | None = None) -> None:
        self.image_size_px = image_size_px or 224
        self.input_shape: tuple[int, ...] = (3, self.image_size_px, self.image_size_px)

    def from_image(self, image: Image.Image) -> np.ndarray:
        """The middle of a picture, scaled and normalised; one of exactly the model's size is taken whole."""
        size = (self.image_size_px, self.image_size_px)
        colour = _eight_bits(image).convert("RGB")
        if colour.size != size:
            colour = ImageOps.fit(colour, size, Image.Resampling.BILINEAR, bleed=self.border)
        return self._normalised(np.asarray(colour))

    def examples(self, count: int, seed: int) -> np.ndarray:
        """Noise of the seed, normalised as a picture is."""
        return self._normalised(self._noise(count, seed))

    def example_labels(self, count: int, seed: int) -> list[int]:
        """None: nobody knows what noise shows."""
        del count, seed
        return []

    def example_images(self, count: int, seed: int) -> list[Image.Image]:
        """The same noise as pictures of the model's size."""
        return [Image.fromarray(picture) for picture in self._noise(count, seed)]

    def _noise(self, count: int, seed: int) -> np.ndarray:
        shape = (count, self.image_size_px, self.image_size_px, 3)
        return stream(seed, f"examples.{self.name}").integers(0, 256, size=shape, dtype=np.uint8)

    def _normalised(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (..., height, width, 3) as float32 (..., 3, height, width)."""
        values = (pixels.astype(np.float32) / 255 - self.mean) / self.deviation
        return np.ascontiguousarray(np.moveaxis(values, -1, -3))


class XorInputs:
    """Two numbers, each read as a bit: 0 or 1."""

    name = "xor"
    input_shape: tuple[int, ...] = (2,)
    png_mode: str | None = None
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.float32)

    def from_image(self, image: Image.Image) -> np.ndarray:
        """Always raises ValueError: two bits are no picture."""
        raise ValueError(self._no_picture())

    def examples(self, count: int, seed: int) -> np.ndarray:
        """The four corners in a seeded order, over and over."""
        drawn: np.ndarray = self.corners[_drawn(len(self.corners), count, seed, self.name)]
        return drawn

    def example_labels(self, count: int, seed: int) -> list[int]:
        """The exclusive or of each."""
        return [int(a != b) for a, b in self.examples(count, seed).tolist()]

    def example_images(self, count: int, seed: int) -> list[Image.Image]:
        """Always raises ValueError: two bits are no picture."""
        raise ValueError(self._no_picture())

    def _no_picture(self) -> str:
        return "xor takes two numbers, not a picture. Send them as JSON or as raw float32."
