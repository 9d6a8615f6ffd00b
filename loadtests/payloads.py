"""The bodies that a load test sends: real inputs of the stage's model, in the form that the stage's clients use."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from PIL import Image

from stages.spec import Stage

# Distinct inputs that are kept; item i sends input i modulo this many.
DISTINCT_MAX = 256


@dataclass(frozen=True)
class Payloads:
    """Bodies with the headers that go with each of them."""

    headers: dict[str, str]
    bodies: list[bytes]

    def body(self, item: int) -> bytes:
        """What a request for `item` sends."""
        return self.bodies[item % len(self.bodies)]


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
            return Payloads(headers, [x.astype("<f4").tobytes() for x in inputs.examples(count, seed)])
        case "json":
            bodies = [orjson.dumps({"input": x.tolist()}) for x in inputs.examples(count, seed)]
            return Payloads({"content-type": "application/json"}, bodies)
        case "png":
            return Payloads({"content-type": "image/png"}, [_png(x) for x in inputs.example_images(count, seed)])


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def write(payloads: Payloads, path: Path) -> None:
    """Keeps payloads for a load generator that should not import a model."""
    names, values = list(payloads.headers), list(payloads.headers.values())
    sizes = np.array([len(body) for body in payloads.bodies])
    everything = np.frombuffer(b"".join(payloads.bodies), dtype=np.uint8)
    np.savez(path, names=names, values=values, sizes=sizes, bodies=everything)


def read(path: Path) -> Payloads:
    """Payloads as `write` kept them."""
    with np.load(path, allow_pickle=False) as kept:
        headers = dict(zip(kept["names"].tolist(), kept["values"].tolist(), strict=True))
        ends = np.cumsum(kept["sizes"])[:-1]
        bodies = [part.tobytes() for part in np.split(kept["bodies"], ends)]
    return Payloads(headers, bodies)
