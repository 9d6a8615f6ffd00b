"""A PyTorch network: one batch to the device and back, and training that repeats.

    host: float32 array ──▶ device ──▶ forward ──▶ host: tensor     the call returns when the device is done

Not here: half precision, compiled graphs, streams that overlap copy and computation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from stages.problems import Problem, StageError


def prepare(device: str, cpu_threads: int) -> None:
    """Sets the number of CPU threads of this process. Raises StageError for a device that is not there."""
    torch.set_num_threads(cpu_threads)
    if device not in ("cpu", "cuda"):
        raise _no_device(
            'must be "cpu" or "cuda" for a model to run on', device, 'An emulated device computes on "cpu".'
        )
    if device == "cuda" and not torch.cuda.is_available():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"
        raise _no_device(
            "needs an NVIDIA GPU that PyTorch can see",
            device,
            f'Use kind = "cpu" or "emulated"; PyTorch {torch.__version__} here is built for {build}.',
        )


def _no_device(rule: str, got: str, remedy: str) -> StageError:
    problem = Problem("device.kind", rule, f'"{got}"', "The model would have nowhere to run.", remedy)
    return StageError("model", [problem])


class Network:
    """A network in evaluation mode on a device, called with host arrays."""

    def __init__(self, net: nn.Module, device: str, input_shape: tuple[int, ...]) -> None:
        self.net = net.eval().requires_grad_(False).to(device)
        self.device = device
        self.input_shape = input_shape

    def __call__(self, inputs: np.ndarray) -> torch.Tensor:
        """The outputs for float32 (n, *input_shape), on the host; copying them back waits for the device."""
        if inputs.ndim == 0 or inputs.shape[1:] != self.input_shape or len(inputs) == 0:
            wanted = ", ".join(map(str, self.input_shape))
            raise ValueError(f"inputs must have the shape (n, {wanted}) with n >= 1, got {inputs.shape}.")
        if inputs.dtype != np.float32:
            raise ValueError(f"inputs must be float32, got {inputs.dtype}. Use inputs.astype(np.float32).")
        with torch.inference_mode():
            # torch.tensor copies, so that a read-only array, as a request's body is, may come in too.
            outputs: torch.Tensor = self.net(torch.tensor(inputs, device=self.device))
            return outputs.cpu()


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """Inside, PyTorch computes the same bits for the same seed, on one machine and version.

    It uses one thread, deterministic algorithms and a random state of its own, and restores what was set before.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.set_num_threads(1)
            torch.use_deterministic_algorithms(True)
            torch.manual_seed(seed)
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
            torch.set_num_threads(threads)
