"""Versions for tests, without training: weights of random numbers, which answer something and fit the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from reference_apps.model_metadata import About, Metadata
from reference_apps.models.checkpoint import weights_file
from reference_apps.models.digits import DigitsNet
from reference_apps.models.network import repeatable
from reference_apps.registry import Registry


def digits_weights(seed: int = 0) -> bytes:
    """A safetensors file that fits digits; another seed gives other answers."""
    with repeatable(seed), torch.no_grad():
        net = DigitsNet()
        net.fc2.bias.copy_(10.0 * torch.eye(10)[seed % 10])  # so that nearly every answer is the digit `seed`
        return weights_file(net.state_dict(), {"seed": seed})


def published(root: Path, count: int = 2, **facts: Any) -> Registry:
    """A registry with the versions 1, 2, … of digits, of which champion is the first; `facts` are of the last."""
    registry = Registry(root)
    for number in range(1, count + 1):
        about = About(model="digits", **(facts if number == count else {}))
        registry.publish(about, digits_weights(number))
    registry.set_alias("digits", "champion", "1")
    return registry


def publish(registry: Registry, version: str, **facts: Any) -> Metadata:
    """One more version of digits."""
    return registry.publish(About(model="digits", **facts), digits_weights(7), version)
