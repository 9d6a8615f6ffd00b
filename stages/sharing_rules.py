"""Rules over a GPU that workers of several models share, and over what a queue leaves to nobody.

Asked by stages/rules.py, like the rules there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from stages import unread
from stages.problems import Problem
from stages.queue import Queue
from stages.spec import Admission, Device, Model


def no_unread_gpu_keys(model: Model, device: Device, queue: Queue | None) -> Iterator[Problem]:
    """A key that nothing reads would look like a choice."""
    return (key.problem() for key in unread.of_shared_gpu(model, device, queue) if key.given)


def no_unread_admission_keys(admission: Admission, queue: Queue | None) -> Iterator[Problem]:
    """A key that nothing reads would look like a choice."""
    return (key.problem() for key in unread.of_admission(admission, queue) if key.given)


def model_fits_its_gpu(model: Model, device: Device) -> Iterator[Problem]:
    """A turn on a GPU is of use to a model that fits there."""
    sizes = {"model.memory_gib": model.memory_gib, "device.memory_gib": device.memory_gib}
    for (key, size_gib), other in zip(sizes.items(), reversed(sizes), strict=True):
        if size_gib is None and sizes[other] is not None:
            yield Problem(
                key,
                f"is required when {other} is given",
                None,
                "Whether two models fit on the GPU at once is a question of both.",
                "Give it in GiB, or remove the other.",
            )
    if model.memory_gib is not None and device.memory_gib is not None and model.memory_gib > device.memory_gib:
        yield Problem(
            "model.memory_gib",
            f"must be at most device.memory_gib ({device.memory_gib:g} GiB)",
            f"{model.memory_gib:g}",
            "The model would wait for room for ever.",
            "Use a larger GPU, or a smaller model.",
        )


RULES: tuple[Callable[..., Iterator[Problem]], ...] = (
    no_unread_gpu_keys,
    no_unread_admission_keys,
    model_fits_its_gpu,
)
