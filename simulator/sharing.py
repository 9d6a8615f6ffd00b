"""Room on a simulated GPU that several workers share: each waits for its turn instead of failing.

    worker ── enter ──▶ on the card, or in the line
           ── leave_if_due ──▶ somebody waits, and the turn is over: the model goes off the card

reference_apps/gpu_memory.py does the same for processes; who comes and who goes is decided in
stages/policies/sharing.py. Not modelled: the loading of a model, and memory that a batch takes for itself.
"""

from __future__ import annotations

from simpy import Environment, Event

from stages.policies.sharing import TURN_S, Tenant, may_enter, should_leave


class Gpu:
    """A card of `memory_gib` GiB, with nobody on it as yet."""

    def __init__(self, env: Environment, memory_gib: float) -> None:
        self.env, self.memory_gib = env, memory_gib
        self.tenants: dict[str, Tenant] = {}
        self._asked: Event | None = None

    @property
    def anybody_waits(self) -> bool:
        """Whether there is a line."""
        return any(not tenant.resident for tenant in self.tenants.values())

    def asked(self) -> Event:
        """An event that fires when the next one comes into the line."""
        if self._asked is None or self._asked.triggered:
            self._asked = self.env.event()
        return self._asked

    def tell(self, tenant: Tenant) -> None:
        """A worker is on the card or in the line from now on, as the tenant says."""
        new = tenant.owner not in self.tenants
        self.tenants[tenant.owner] = tenant
        if new and self._asked is not None and not self._asked.triggered:
            self._asked.succeed()


class Card:
    """One worker's place on a GPU, for a model of `memory_gib`; `owner` is its name there."""

    def __init__(self, gpu: Gpu, memory_gib: float, owner: str, turn_s: float = TURN_S) -> None:
        if memory_gib > gpu.memory_gib:
            raise ValueError(
                f"model.memory_gib: must be at most device.memory_gib ({gpu.memory_gib:g} GiB), got {memory_gib:g}. "
                "The model would wait for room for ever. Use a larger card, or a smaller model."
            )
        self.gpu, self.owner = gpu, owner
        self._memory_gib, self._turn_s = memory_gib, turn_s

    @property
    def resident(self) -> bool:
        """Whether the model is on the card."""
        return self.owner in self.gpu.tenants and self.gpu.tenants[self.owner].resident

    def enter(self) -> bool:
        """Asks for room; True once the model is on the card. Without it the worker stands in the line: ask again."""
        gpu, now_s = self.gpu, self.gpu.env.now
        if self.resident:
            return True
        if self.owner not in gpu.tenants:
            gpu.tell(Tenant(self.owner, self._memory_gib, now_s, False))
        if may_enter(gpu.memory_gib, list(gpu.tenants.values()), self.owner):
            gpu.tell(Tenant(self.owner, self._memory_gib, now_s, True))
        return self.resident

    def leave_if_due(self, idle: bool) -> bool:
        """Whether the model is to go off the card. `idle` says that there is nothing to compute."""
        gpu = self.gpu
        if not self.resident:
            return False
        gpu.tell(Tenant(self.owner, self._memory_gib, gpu.tenants[self.owner].since_s, True, idle))
        return should_leave(gpu.memory_gib, list(gpu.tenants.values()), self.owner, gpu.env.now, self._turn_s)

    def leave(self) -> None:
        """Gives the room back, or the place in the line."""
        self.gpu.tenants.pop(self.owner, None)
