"""What a client may send to `POST /predict`, decoded and checked: JSON, PNG bytes, or raw float32 with its shape."""

from __future__ import annotations

import io
from typing import Any, Protocol

import numpy as np
import orjson
from PIL import Image, UnidentifiedImageError

# Pixels of the largest picture that is decoded: a small file can unfold into gigabytes.
MAX_PIXELS = 50_000_000


class Decodes(Protocol):
    """What decoding needs to know of a model."""

    @property
    def input_shape(self) -> tuple[int, ...]: ...

    @property
    def png_mode(self) -> str | None: ...

    def from_image(self, image: Image.Image) -> np.ndarray: ...


class BadInputError(ValueError):
    """An input that cannot be answered; `status` is the HTTP status, the text is for the client."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


def decode(model: Decodes, content_type: str, shape: str, body: bytes) -> np.ndarray:
    """The input as float32 of `model.input_shape`. Raises BadInputError that says what to send instead."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/octet-stream":
        return _finite(_from_raw(model, shape, body))
    if kind == "application/json":
        return _finite(_from_json(model, body))
    if kind == "image/png":
        return _from_png(model, body)
    raise BadInputError(
        415,
        f'content-type: must be application/json, image/png or application/octet-stream, got "{kind}". '
        "The body cannot be decoded. Set the header to what you send.",
    )


def _from_raw(model: Decodes, shape: str, body: bytes) -> np.ndarray:
    wanted = "x".join(map(str, model.input_shape))
    if shape and shape.replace(",", "x").replace(" ", "") != wanted:
        raise BadInputError(
            422, f"x-rung-shape: must be {wanted}, got {shape}. The model reads no other. Resize the input."
        )
    if not shape:
        raise BadInputError(422, f"x-rung-shape: is required with raw float32. Send x-rung-shape: {wanted}.")
    size = 4 * int(np.prod(model.input_shape))
    if len(body) != size:
        raise BadInputError(
            422,
            f"body: must be {size} bytes of little-endian float32 ({wanted}), got {len(body)}. Send the whole array.",
        )
    return np.frombuffer(body, dtype="<f4").reshape(model.input_shape)


def _from_json(model: Decodes, body: bytes) -> np.ndarray:
    wanted = "x".join(map(str, model.input_shape))
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadInputError(400, f'body: must be JSON ({error}). Send {{"input": …}} with {wanted} numbers.') from None
    if not isinstance(document, dict) or set(document) != {"input"}:
        raise BadInputError(422, f'body: must be an object with the one key "input", an array of {wanted} numbers.')
    try:
        numbers = np.asarray(document["input"])
    except ValueError:
        raise BadInputError(422, f"input: must be an array of {wanted} numbers, all of one depth.") from None
    if numbers.dtype.kind not in "biuf":  # NumPy would read texts as numbers, and null as NaN
        raise BadInputError(422, f"input: must be an array of {wanted} numbers, got something else among them.")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        inputs = numbers.astype(np.float32)
    if inputs.shape != tuple(model.input_shape):
        got = "x".join(map(str, inputs.shape)) or "one value"
        raise BadInputError(
            422,
            f"input: must have the shape {wanted}, got {got}. The model reads no other. Resize the input.",
        )
    return inputs


def _from_png(model: Decodes, body: bytes) -> np.ndarray:
    if model.png_mode is None:
        raise BadInputError(415, "image/png: this model takes numbers, not pictures. Send application/json.")
    size = _png_size(body)
    if size is None:
        raise BadInputError(422, "body: must be a PNG picture, got something else. Send the bytes of a .png file.")
    _check_pixels(size)  # before Pillow sees it, which warns on its own terms
    try:
        with Image.open(io.BytesIO(body), formats=["PNG"]) as image:
            _check_pixels(image.size)  # a second header may have changed it
            return model.from_image(image)
    except BadInputError:
        raise
    except UnidentifiedImageError:
        why = "its first part is damaged"
    except Exception as error:  # Pillow raises a dozen kinds for what damaged bytes can do to it
        why = str(error)
    raise BadInputError(422, f"body: must be a whole PNG picture ({why}). Send the bytes of a .png file.")


def _check_pixels(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise BadInputError(
            413, f"body: must be a picture of at most {MAX_PIXELS} pixels, got {width}x{height}. Send a smaller one."
        )


def _png_size(body: bytes) -> tuple[int, int] | None:
    """Width and height as the file's first 24 bytes give them (https://www.w3.org/TR/png-3/, 5.2 and 11.2.1)."""
    if len(body) < 24 or not body.startswith(b"\x89PNG\r\n\x1a\n") or body[12:16] != b"IHDR":
        return None
    return int.from_bytes(body[16:20]), int.from_bytes(body[20:24])


def _finite(inputs: np.ndarray) -> np.ndarray:
    if not np.isfinite(inputs).all():
        raise BadInputError(422, "input: must be finite numbers, got NaN or infinity. No answer to it means anything.")
    return inputs


def input_bytes(decoded: np.ndarray) -> bytes:
    """The bytes of a decoded input, the same on every machine and in whichever form it was sent."""
    return np.ascontiguousarray(decoded, dtype="<f4").tobytes()
