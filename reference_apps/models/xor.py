"""Exclusive or: the tiny net of the WebTorch benchmark, where handling a request costs more than answering it.

    2 bits ──▶ 20 tanh ──▶ 1 output: above 0 means 1

Layout, samples, loss and step size are those of https://github.com/elefthei/WebTorch (src/init.lua): pairs of
normal numbers, and whether their signs differ. A bit b goes in as 2b - 1, so that 0 and 1 have a sign each.
Trains with `python -m reference_apps.models.xor`. Not here: WebTorch's route that trains while it serves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn

from reference_apps.models.checkpoint import load_weights, save_weights
from reference_apps.models.inputs import WEIGHTS_DIR, XorInputs
from reference_apps.models.network import Network, repeatable
from stages.spec import Model as ModelSpec
from stages.terminal import out

WEIGHTS = WEIGHTS_DIR / "xor.safetensors"
HIDDEN_UNITS = 20
LEARNING_RATE = 0.01
STEPS = 20_000  # WebTorch takes 2,500; eight times as many bring the outputs closer to 1 and -1
REMEDY = "Train some with `python -m reference_apps.models.xor`, or leave model.weights out for the own ones."


class XorNet(nn.Module):
    """(n, 2) numbers to (n, 1): near 1 where one is below a half and the other above, near -1 elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, HIDDEN_UNITS)
        self.output = nn.Linear(HIDDEN_UNITS, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.output(torch.tanh(self.hidden(2 * inputs - 1)))
        return outputs


class Xor(XorInputs):
    """Answers `{"output", "label"}`: the net's number, and 1 where it is above 0."""

    def __init__(self, spec: ModelSpec, device: str) -> None:
        self.version = spec.answers_as
        net = XorNet()
        load_weights(net, Path(spec.weights or WEIGHTS), self.name, REMEDY)
        self._network = Network(net, device, self.input_shape)

    def predict(self, inputs: np.ndarray) -> list[dict[str, Any]]:
        """The exclusive or of each pair."""
        outputs = self._network(inputs)[:, 0].tolist()
        return [{"output": round(output, 6), "label": int(output > 0)} for output in outputs]


def train(*, seed: int, steps: int) -> XorNet:
    """A net after `steps` samples, one a step. The same arguments give the same bits on the same machine."""
    with repeatable(seed):
        net = XorNet()
        optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)
        for signs in torch.randn(steps, 1, 2):
            wanted = torch.where(signs.prod(dim=1, keepdim=True) > 0, -1.0, 1.0)
            loss = nn.functional.mse_loss(net((signs + 1) / 2), wanted)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return net


def main(
    version: Annotated[str, typer.Option(help="Recorded in the file.")] = "1",
    seed: Annotated[int, typer.Option(help="Of the initial weights and of the samples.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Samples to learn from.")] = STEPS,
    output: Annotated[Path, typer.Option(help="Where the weights go.")] = WEIGHTS,
) -> None:
    """Trains the net for exclusive or and writes its weights."""
    net = train(seed=seed, steps=steps)
    with torch.inference_mode():
        outputs = net(torch.tensor(XorInputs.corners))[:, 0].tolist()
    wanted = XorInputs.corners[:, 0] != XorInputs.corners[:, 1]
    correct = int((wanted == (np.array(outputs) > 0)).sum())
    facts = {
        "model": "xor",
        "version": version,
        "accuracy": correct / len(outputs),
        "seed": seed,
        "steps": steps,
        "torch": torch.__version__,
        "source": "layout and samples after https://github.com/elefthei/WebTorch, src/init.lua",
        "licence": "Apache-2.0",
    }
    save_weights(output, net.state_dict(), facts)
    shown = ", ".join(f"{number:.3f}" for number in outputs)
    out.print(f"{correct} of 4 corners right, outputs {shown}: {output}")


if __name__ == "__main__":
    typer.run(main)
