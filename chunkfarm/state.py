"""What this server is doing, and what it waits for. Ports and logs read it; startup and farm write it."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field, frozen

from chunkfarm.model import MIB, Address

PHASES = ("starting", "founding", "waiting", "serving", "readonly", "leaving")


@frozen
class Wait:
    """An address that is waited for: what happened at the last try, since when, and how often."""

    address: Address
    error: str
    since: int
    """Milliseconds since 1970."""
    tries: int


@define
class ServerState:
    """The state of one server process; whoever wants to know of a change subscribes."""

    server_id: str
    name: str
    stamp: int
    """Wall clock at process start, ms."""
    incarnation: str
    phase: str = "starting"
    farm_id: str = ""
    revision: int = 0
    chunksize: int = 8 * MIB
    waits: tuple[Wait, ...] = ()
    cures: tuple[str, ...] = ()
    halted: str = ""
    """Why this server takes part in nothing any more, and only shows what it has; empty if it does take part."""
    halted_cures: tuple[str, ...] = ()
    _watchers: list[Callable[[], None]] = field(factory=list, init=False)

    def change(
        self, phase: str, *, waits: tuple[Wait, ...] | None = None, cures: tuple[str, ...] | None = None
    ) -> None:
        """Enter a phase and tell the subscribers, unless nothing is different."""
        assert phase in PHASES
        before = (self.phase, self.waits, self.cures)
        self.phase = phase
        self.waits = waits if waits is not None else ()
        self.cures = cures if cures is not None else ()
        if before != (self.phase, self.waits, self.cures):
            for watcher in list(self._watchers):
                watcher()

    def because(self, sentence: str) -> str:
        """The sentence, with why this server takes part no more or whom it waits for, and what a person can do."""
        if self.halted:
            sentence = f"{sentence}: {self.halted}"
        if self.waits:
            waits = "; ".join(f"{wait.address} ({wait.error})" for wait in self.waits)
            sentence = f"{sentence}; it waits for {waits}"
        return f"{sentence}. Cure: {', or '.join(self.cures)}" if self.cures else sentence

    def subscribe(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call `watcher` after each change; returns what ends the subscription."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)
