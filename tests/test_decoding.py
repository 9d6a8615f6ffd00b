"""What a client may send, and what it is told when it sends something else."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from reference_apps.decoding import MAX_PIXELS, BadInputError, decode
from reference_apps.models.inputs import DigitInputs, ImageInputs, XorInputs

DIGITS, XOR = DigitInputs(), XorInputs()
EXAMPLE = DIGITS.examples(1, seed=1)[0]
RAW, JSON, PNG = "application/octet-stream", "application/json", "image/png"


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


EXAMPLE_PNG = png(DIGITS.example_images(1, seed=1)[0])


def header_chunk(width: int, height: int) -> bytes:
    """A PNG's IHDR chunk that claims this size, in grey with 8 bits."""
    data = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return struct.pack(">I", 13) + data + struct.pack(">I", zlib.crc32(data))


def claiming(width: int, height: int) -> bytes:
    """The example's bytes with another size in its header."""
    return EXAMPLE_PNG[:8] + header_chunk(width, height) + EXAMPLE_PNG[33:]


# ---- good inputs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "shape", "body"),
    [
        (RAW, "1x8x8", EXAMPLE.astype("<f4").tobytes()),
        (RAW, "1, 8, 8", EXAMPLE.astype("<f4").tobytes()),
        (JSON, "", orjson.dumps({"input": EXAMPLE.tolist()})),
        ("Application/JSON; charset=utf-8", "", orjson.dumps({"input": EXAMPLE.tolist()})),
        (PNG, "", EXAMPLE_PNG),
    ],
)
def test_one_picture_in_every_form(content_type: str, shape: str, body: bytes) -> None:
    inputs = decode(DIGITS, content_type, shape, body)
    assert inputs.dtype == np.float32
    np.testing.assert_array_equal(inputs, EXAMPLE)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b'{"input": [1, 0]}', [1, 0]),
        (b'{"input": [0.5, -3]}', [0.5, -3]),
        (b'{"input": [true, false]}', [1, 0]),
        (b'{"input": [18446744073709551616, 1e-300]}', [2.0**64, 0]),
    ],
)
def test_numbers_of_every_kind(body: bytes, wanted: list[float]) -> None:
    inputs = decode(XOR, JSON, "", body)
    assert inputs.dtype == np.float32
    assert inputs.tolist() == wanted


def test_a_picture_is_turned_into_the_models_colours_and_size() -> None:
    inputs = decode(ImageInputs(32), PNG, "", png(Image.new("L", (50, 40), 200)))
    assert inputs.shape == (3, 32, 32)


# ---- bad inputs ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    name: str
    content_type: str
    shape: str
    body: bytes
    status: int
    text: str  # (*) stands for the words of a library
    model: DigitInputs | XorInputs = DIGITS


def raw(values: list[float]) -> bytes:
    return np.array(values, dtype="<f4").tobytes()


SIXTY_FOUR = [0.0] * 64
BAD = [
    Bad(
        "no content type", "", "", b"x", 415,
        'content-type: must be application/json, image/png or application/octet-stream, got "". The body cannot be '
        "decoded. Set the header to what you send.",
    ),
    Bad(
        "wrong content type", "text/html; charset=utf-8", "", b"x", 415,
        'content-type: must be application/json, image/png or application/octet-stream, got "text/html". The body '
        "cannot be decoded. Set the header to what you send.",
    ),
    Bad(
        "raw, no shape", RAW, "", raw(SIXTY_FOUR), 422,
        "x-rung-shape: is required with raw float32. Send x-rung-shape: 1x8x8.",
    ),
    Bad(
        "raw, wrong shape", RAW, "8x8", raw(SIXTY_FOUR), 422,
        "x-rung-shape: must be 1x8x8, got 8x8. The model reads no other. Resize the input.",
    ),
    Bad(
        "raw, too short", RAW, "1x8x8", raw(SIXTY_FOUR[1:]), 422,
        "body: must be 256 bytes of little-endian float32 (1x8x8), got 252. Send the whole array.",
    ),
    Bad(
        "raw, empty", RAW, "1x8x8", b"", 422,
        "body: must be 256 bytes of little-endian float32 (1x8x8), got 0. Send the whole array.",
    ),
    Bad(
        "raw, NaN", RAW, "2", raw([float("nan"), 0]), 422,
        "input: must be finite numbers, got NaN or infinity. No answer to it means anything.", XOR,
    ),
    Bad(
        "raw, infinity", RAW, "2", raw([float("-inf"), 0]), 422,
        "input: must be finite numbers, got NaN or infinity. No answer to it means anything.", XOR,
    ),
    Bad(
        "JSON, empty", JSON, "", b"", 400,
        'body: must be JSON (*). Send {"input": …} with 1x8x8 numbers.',
    ),
    Bad(
        "JSON, half", JSON, "", b'{"input": [1,', 400,
        'body: must be JSON (*). Send {"input": …} with 2 numbers.', XOR,
    ),
    Bad(
        "JSON, NaN", JSON, "", b'{"input": [NaN, 0]}', 400,
        'body: must be JSON (*). Send {"input": …} with 2 numbers.', XOR,
    ),
    Bad(
        "JSON, no object", JSON, "", b"[1, 0]", 422,
        'body: must be an object with the one key "input", an array of 2 numbers.', XOR,
    ),
    Bad(
        "JSON, another key", JSON, "", b'{"inputs": [1, 0]}', 422,
        'body: must be an object with the one key "input", an array of 2 numbers.', XOR,
    ),
    Bad(
        "JSON, one key too many", JSON, "", b'{"input": [1, 0], "model": "xor"}', 422,
        'body: must be an object with the one key "input", an array of 2 numbers.', XOR,
    ),
    Bad(
        "JSON, nested unevenly", JSON, "", b'{"input": [[1], [0, 1]]}', 422,
        "input: must be an array of 2 numbers, all of one depth.", XOR,
    ),
    Bad(
        "JSON, numbers and arrays", JSON, "", b'{"input": [1, [0]]}', 422,
        "input: must be an array of 2 numbers, all of one depth.", XOR,
    ),
    Bad(
        "JSON, nested deeper than an array can be", JSON, "", b'{"input": ' + b"[" * 70 + b"]" * 70 + b"}", 422,
        "input: must be an array of 2 numbers, all of one depth.", XOR,
    ),
    Bad(
        "JSON, texts", JSON, "", b'{"input": ["1", "0"]}', 422,
        "input: must be an array of 2 numbers, got something else among them.", XOR,
    ),
    Bad(
        "JSON, null", JSON, "", b'{"input": [1, null]}', 422,
        "input: must be an array of 2 numbers, got something else among them.", XOR,
    ),
    Bad(
        "JSON, objects", JSON, "", b'{"input": [{"a": 1}, {}]}', 422,
        "input: must be an array of 2 numbers, got something else among them.", XOR,
    ),
    Bad(
        "JSON, wrong shape", JSON, "", b'{"input": [1, 0, 1]}', 422,
        "input: must have the shape 2, got 3. The model reads no other. Resize the input.", XOR,
    ),
    Bad(
        "JSON, one number", JSON, "", b'{"input": 1}', 422,
        "input: must have the shape 2, got one value. The model reads no other. Resize the input.", XOR,
    ),
    Bad(
        "JSON, nothing in it", JSON, "", b'{"input": []}', 422,
        "input: must have the shape 2, got 0. The model reads no other. Resize the input.", XOR,
    ),
    Bad(
        "JSON, more than float32 holds", JSON, "", b'{"input": [1e39, 0]}', 422,
        "input: must be finite numbers, got NaN or infinity. No answer to it means anything.", XOR,
    ),
    Bad(
        "PNG to a model of numbers", PNG, "", EXAMPLE_PNG, 415,
        "image/png: this model takes numbers, not pictures. Send application/json.", XOR,
    ),
    Bad(
        "PNG, empty", PNG, "", b"", 422,
        "body: must be a PNG picture, got something else. Send the bytes of a .png file.",
    ),
    Bad(
        "PNG, a JPEG", PNG, "", b"\xff\xd8\xff\xe0" + b"\x00" * 100, 422,
        "body: must be a PNG picture, got something else. Send the bytes of a .png file.",
    ),
    Bad(
        "PNG, cut off in its header", PNG, "", EXAMPLE_PNG[:30], 422,
        "body: must be a whole PNG picture (its first part is damaged). Send the bytes of a .png file.",
    ),
    Bad(
        "PNG, cut off", PNG, "", EXAMPLE_PNG[:60], 422,
        "body: must be a whole PNG picture (*). Send the bytes of a .png file.",
    ),
    Bad(
        "PNG, larger than its bytes", PNG, "", claiming(9, 9), 422,
        "body: must be a whole PNG picture (*). Send the bytes of a .png file.",
    ),
    Bad(
        "PNG bomb", PNG, "", claiming(10_000, 5_001), 413,
        "body: must be a picture of at most 50000000 pixels, got 10000x5001. Send a smaller one.",
    ),
    Bad(
        "PNG bomb beyond what Pillow opens", PNG, "", claiming(2**31 - 1, 2**31 - 1), 413,
        "body: must be a picture of at most 50000000 pixels, got 2147483647x2147483647. Send a smaller one.",
    ),
    Bad(
        "PNG bomb in a second header", PNG, "", EXAMPLE_PNG[:33] + header_chunk(10_000, 8_000) + EXAMPLE_PNG[33:], 413,
        "body: must be a picture of at most 50000000 pixels, got 10000x8000. Send a smaller one.",
    ),
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_a_bad_input_is_told_what_to_send_instead(bad: Bad) -> None:
    with pytest.raises(BadInputError) as caught:
        decode(bad.model, bad.content_type, bad.shape, bad.body)
    assert caught.value.status == bad.status
    assert re.fullmatch(re.escape(bad.text).replace(re.escape("(*)"), r"\(.+\)"), str(caught.value))


def test_the_largest_picture_is_still_decoded() -> None:
    side = int(MAX_PIXELS**0.5)
    assert decode(DIGITS, PNG, "", png(Image.new("1", (side, side)))).shape == (1, 8, 8)


# ---- whatever else -------------------------------------------------------------------------------------------


def never_fails(decoded: Callable[[], np.ndarray]) -> None:
    """Either an input that the model can read or a refusal; anything else is a bug."""
    try:
        inputs = decoded()
    except BadInputError as error:
        assert 400 <= error.status < 500
        assert " 0x" not in str(error)  # no address of an object of ours
    else:
        assert inputs.dtype == np.float32
        assert np.isfinite(inputs).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(EXAMPLE_PNG) - 1), st.integers(0, 255)), max_size=4), st.integers(0, 200))
def test_damaged_pictures_are_refused_in_words(changes: list[tuple[int, int]], length: int) -> None:
    damaged = bytearray(EXAMPLE_PNG)
    for place, value in changes:
        damaged[place] = value
    never_fails(lambda: decode(DIGITS, PNG, "", bytes(damaged[:length])))


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["input", "a"]), inner, max_size=2),
)


@settings(max_examples=100, deadline=None)
@given(json_values.map(lambda value: {"input": value}) | json_values)
def test_any_json_is_read_or_refused_in_words(document: object) -> None:
    body = orjson.dumps(document) if not _too_large(document) else str(document).encode()
    never_fails(lambda: decode(XOR, JSON, "", body))


def _too_large(document: object) -> bool:
    """orjson writes no integer of more than 64 bits; Python's way of writing it is JSON too."""
    try:
        orjson.dumps(document)
    except TypeError:
        return True
    return False
