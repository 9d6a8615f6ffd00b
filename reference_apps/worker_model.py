"""Where a worker's model is: on its device from the start, or on a GPU that it shares, when it is its turn there.

no card: load ──▶ on the device
a card:  something to do? ──▶ enter ──▶ loaded ──▶ somebody waits, turn over or idle ──▶ unloaded, leave
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable

from reference_apps.device import Device, open_device
from reference_apps.gpu_memory import Card
from reference_apps.replica import WARM_BATCH_SIZE_MAX
from stages.spec import Stage

log = logging.getLogger("rung.worker")


class PlacedModel:
    """The model of a stage and its device; `device` is None while it is not loaded."""

    def __init__(self, stage: Stage, card: Card | None, entered: Callable[[], None] = lambda: None) -> None:
        self.device: Device | None = None
        self._stage, self._card, self._entered = stage, card, entered
        self._factor = 1.0

    @property
    def on_card(self) -> bool:
        """Whether it may be in the GPU's memory."""
        return self._card is None or self._card.resident

    @property
    def overruns(self) -> int:
        """Emulated batches whose real answer took longer than their pace."""
        return self.device.overruns if self.device is not None else 0

    def slow(self, factor: float) -> None:
        """From the next batch on, each takes `factor` times as long as it would by itself."""
        self._factor = factor
        if self.device is not None:
            self.device.slow(factor)

    def prepare(self) -> None:
        """Loads what can be loaded before anybody has a turn. Raises ValueError for weights that do not fit."""
        if self._card is None or self._stage.device.kind != "cuda":
            self._load()

    def may_compute(self, idle: bool, waiting: Callable[[], bool]) -> bool:
        """Whether it is where it computes now. `idle`: it had nothing to do; `waiting` tells whether there is any.

        Asked before every batch: it comes onto the card here, and makes room. Raises what loading raises.
        """
        card = self._card
        if card is None:
            return True
        if card.resident:
            if not card.leave_if_due(idle):
                return True
            self._unload()
            card.leave()
            log.info("made room on the GPU")
            return False
        if not waiting():
            card.leave()  # no place in a line for nothing
            return False
        if not card.enter():
            return False
        try:
            if self.device is None:
                self._load()
        except BaseException:
            self._unload()
            card.leave()
            raise
        self._entered()
        log.info("came onto the GPU")
        return True

    def close(self) -> None:
        """Gives its room back."""
        if self._card is not None:
            self._card.close()

    def _load(self) -> None:
        from reference_apps.models import load_model

        kind = "cuda" if self._stage.device.kind == "cuda" else "cpu"
        sizes = range(1, min(self._stage.batching.max_batch_size, WARM_BATCH_SIZE_MAX) + 1)
        threads = self._stage.device.cpu_threads
        model = load_model(self._stage.model, kind, cpu_threads=threads, warm_batch_sizes=sizes)
        device = open_device(self._stage, model)
        device.slow(self._factor)
        self.device = device

    def _unload(self) -> None:
        """Gives the GPU's memory back. An emulated one has none of ours."""
        if self._stage.device.kind != "cuda":
            return
        import torch

        self.device = None
        gc.collect()
        torch.cuda.empty_cache()
