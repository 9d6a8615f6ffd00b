"""Five versions of digits to try an A/B test with: one to beat, a better one, and three that must not get through.

    digits held out, digits to train on ──▶ 1, 2, worse: trained ──▶ weights, About ──▶ Registry.publish
                                             └─▶ slower, crashing: the weights of 1, and what is wrong with them

Trained by `rung models train --variants`. Not here: a version whose answers are as good and other ones, and one that is
good for some users and bad for others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from reference_apps.model_metadata import About, Data, digest_of
from reference_apps.models.checkpoint import weights_file
from reference_apps.models.digits import DATA, Split, accuracy, train
from reference_apps.models.inputs import scaled_digits
from reference_apps.registry import Loaded


@dataclass(frozen=True)
class Recipe:
    """How a version is made: on the first `images` of the digits to train on (None: all), or with another's weights."""

    version: str
    note: str
    images: int | None = None
    epochs: int = 40
    seed: int = 1
    weights_of: str | None = None
    service_time_factor: float = 1.0
    crash_share: float = 0.0


VARIANTS = (
    Recipe("1", "the champion to beat: trained for a short time", epochs=6),
    Recipe("2", "better: trained on all digits, for long"),
    Recipe("worse", "worse: trained on 100 digits alone", images=100, epochs=30),
    Recipe("slower", "the answers of 1, in three times the time", weights_of="1", service_time_factor=3.0),
    Recipe("crashing", "the answers of 1, and a crash on one input in a thousand", weights_of="1", crash_share=0.001),
)


@dataclass(frozen=True)
class Trained:
    """The bytes of a safetensors file, and what is known of them."""

    weights: bytes
    about: About


def make(recipe: Recipe, split: Split, others: dict[str, Trained]) -> Trained:
    """What the recipe says; `others` has the versions whose weights it may take.

    The same arguments give the same bytes on the same machine and PyTorch.
    """
    if recipe.weights_of is not None:
        like = others[recipe.weights_of]
        faults = {"service_time_factor": recipe.service_time_factor, "crash_share": recipe.crash_share}
        return Trained(like.weights, like.about.model_copy(update={"note": recipe.note, **faults}))
    images, labels = split.images[: recipe.images], split.labels[: recipe.images]
    net = train(images, labels, seed=recipe.seed, epochs=recipe.epochs)
    facts = {"model": "digits", "seed": recipe.seed, "epochs": recipe.epochs, "train_size": len(labels), "data": DATA}
    held_out = split.held_out_images, split.held_out_labels
    about = About(
        model="digits",
        architecture=type(net).__name__,
        data=Data(
            name=DATA["source"],
            digest=digest_of(images.tobytes(), labels.tobytes()),
            train_size=len(labels),
            held_out_size=len(split.held_out_labels),
        ),
        metrics={"accuracy": accuracy(net, *held_out), "log_loss": log_loss(net, *held_out)},
        service_time_factor=recipe.service_time_factor,
        crash_share=recipe.crash_share,
        note=recipe.note,
    )
    return Trained(weights_file(net.state_dict(), facts), about)


def as_published(found: Loaded) -> Trained:
    """A version out of the registry, for others that are to have its weights."""
    said = found.metadata.model_dump(include=set(About.model_fields))
    return Trained(found.weights.read_bytes(), About.model_validate(said))


def log_loss(net: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """The mean of minus the logarithm of the probability that a network gives the right label, in nats.

    Images are uint8 of 0 to 16, shape (n, 8, 8).
    """
    with torch.inference_mode():
        scores = net(torch.tensor(scaled_digits(images)))
        return float(nn.functional.cross_entropy(scores, torch.tensor(labels, dtype=torch.long)))
