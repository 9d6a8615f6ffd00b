"""The bodies that a load test sends: real inputs of the stage's model, in the form that the stage's clients use.

    examples ──▶ up to 256 distinct bodies ── item ──▶ one of them, with what is left of the item's number in it

Every item is an input of its own, so that a cache which has one item's answer does not have another's. The number goes
into the first numbers of an array, too faintly to change an answer, and into a comment of a picture.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import orjson
from PIL import Image

from reference_apps.decoding import Decodes, decode, input_bytes
from stages.arms import arms_of, model_of
from stages.policies.crashing import item_position, position
from stages.spec import Stage

# Examples of the model that are kept; an item beyond them is one of them with a number in it.
DISTINCT_MAX = 256
# How far one number of an array is moved for 1, and how many of its first row carry the digits. Arrays are float32
# below 4, whose neighbours are nearer than that.
STEP = 2.0**-20
PLACES = 8
_IEND_BYTES = 12  # the last part of a PNG: nothing, and its length and checksum


@dataclass(frozen=True)
class Payloads:
    """Bodies with the headers that go with each of them. No two bodies are alike."""

    headers: dict[str, str]
    bodies: list[bytes]
    labels: tuple[int, ...] = ()  # what each body shows; none where nobody knows

    def label(self, item: int) -> int:
        """What the body of `item` shows. Raises IndexError where nobody knows."""
        return self.labels[item % len(self.bodies)]

    def body(self, item: int) -> bytes:
        """What a request for `item` sends: the same bytes each time, and others than for every other item."""
        number, which = divmod(item, len(self.bodies))
        example = self.bodies[which]
        if not number:
            return example
        match self.headers["content-type"]:
            case "image/png":
                return _commented(example, number)
            case "application/json":
                begins, ends = _first_row(example)
                row = np.array(orjson.loads(example[begins:ends]), dtype=np.float32)
                return example[:begins] + orjson.dumps(_marked(row, number).tolist()) + example[ends:]
            case _:
                row = np.frombuffer(example, "<f4", int(self.headers["x-rung-shape"].rsplit("x", 1)[-1]))
                return _marked(row, number).tobytes() + example[row.nbytes :]


def make_payloads(stage: Stage) -> Payloads:
    """Payloads of a stage's model and input format, without loading the model itself."""
    from reference_apps.models import load_inputs

    inputs = load_inputs(stage.model)
    count, seed = min(DISTINCT_MAX, stage.traffic.items.count), stage.traffic.seed
    match stage.traffic.input_format:
        case "raw":
            headers = {
                "content-type": "application/octet-stream",
                "x-rung-shape": "x".join(map(str, inputs.input_shape)),
            }
            bodies = [x.astype("<f4").tobytes() for x in inputs.examples(count, seed)]
        case "json":
            headers = {"content-type": "application/json"}
            bodies = [orjson.dumps({"input": x.tolist()}) for x in inputs.examples(count, seed)]
        case "png":
            headers = {"content-type": "image/png"}
            bodies = [_png(x) for x in inputs.example_images(count, seed)]
    labels = dict(zip(bodies, inputs.example_labels(count, seed), strict=False))
    return Payloads(headers, list(dict.fromkeys(bodies)), tuple(labels.values()))  # some are given again: once will do


def crash_positions(stage: Stage) -> Callable[[int | str], float]:
    """Where the input that a request for an item really sends stands among those that a version may crash on.

    With it a prediction has the same items crash as the running version. A comment in a PNG is no part of its input.
    """
    from reference_apps.models import load_inputs

    if not any(model_of(stage, arm).known.crash_share for arm in arms_of(stage)):
        return item_position
    model, made = cast(Decodes, load_inputs(stage.model)), make_payloads(stage)
    content_type, shape = made.headers["content-type"], made.headers.get("x-rung-shape", "")

    @cache
    def found(item: int | str) -> float:
        return position(input_bytes(decode(model, content_type, shape, made.body(int(item)))))

    return found


def write(payloads: Payloads, path: Path) -> None:
    """Keeps payloads for a load generator that should not import a model."""
    names, values = list(payloads.headers), list(payloads.headers.values())
    sizes = np.array([len(body) for body in payloads.bodies])
    everything = np.frombuffer(b"".join(payloads.bodies), dtype=np.uint8)
    labels = np.array(payloads.labels, dtype=np.int64)
    np.savez(path, names=names, values=values, sizes=sizes, bodies=everything, labels=labels)


def read(path: Path) -> Payloads:
    """Payloads as `write` kept them."""
    with np.load(path, allow_pickle=False) as kept:
        headers = dict(zip(kept["names"].tolist(), kept["values"].tolist(), strict=True))
        ends = np.cumsum(kept["sizes"])[:-1]
        bodies = [part.tobytes() for part in np.split(kept["bodies"], ends)]
        labels = tuple(kept["labels"].tolist())
    return Payloads(headers, bodies, labels)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _first_row(body: bytes) -> tuple[int, int]:
    """Where the first innermost array of a JSON text begins and ends, brackets included."""
    ends = body.index(b"]") + 1
    return body.rindex(b"[", 0, ends), ends


def _marked(row: np.ndarray, number: int) -> np.ndarray:
    """The row with the digits of `number` in its first places; float32, little-endian.

    There are about as many numbers as 8 ** PLACES, however few places a row has.
    """
    places = min(PLACES, row.size)
    base = round(8 ** (PLACES / places))
    if number >= base**places:
        raise ValueError(f"no more than {base**places} inputs can be made of one example, got number {number}")
    marked = row.astype("<f4")
    for place in range(places):
        number, digit = divmod(number, base)
        marked[place] += np.float32(digit * STEP)
    return marked


def _commented(picture: bytes, number: int) -> bytes:
    """The PNG with a text of its own before its last part (https://www.w3.org/TR/png-3/, 5.3 and 11.3.3.2)."""
    said = b"tEXtComment\0item %d" % number
    part = struct.pack(">I", len(said) - 4) + said + struct.pack(">I", zlib.crc32(said))
    return picture[:-_IEND_BYTES] + part + picture[-_IEND_BYTES:]
