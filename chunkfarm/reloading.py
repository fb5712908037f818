"""Reads `config.ini` anew while the server runs: what can change does, and what cannot is named.

The `[farm]` section belongs to the farm, and is not looked at here; `[server]` and `[limits]` are this machine's.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve, fields_dict, frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from chunkfarm.changes import set_server
from chunkfarm.config import Config, ServerOptions
from chunkfarm.errors import FarmError
from chunkfarm.limits import Limits
from chunkfarm.logs import Logs
from chunkfarm.parts import Parts
from chunkfarm.trust.contexts import Certificate

AT_ONCE = (
    "weight",
    "zone",
    "reserve",
    "repair_rate",
    "drain_timeout",
    "certificate",
    "names",
    "log_level",
)
"""Options of `[server]` that a running server takes up. The others are what it is known by, or stands on."""


@frozen
class Changes:
    """The options that another config has changed."""

    now: tuple[str, ...]
    at_next_start: tuple[str, ...]


def changes(before: ServerOptions, after: ServerOptions) -> Changes:
    """Which options differ, in the order in which they are listed."""
    changed = [name for name in fields_dict(ServerOptions) if getattr(before, name) != getattr(after, name)]
    return Changes(
        tuple(name for name in changed if name in AT_ONCE),
        tuple(name for name in changed if name not in AT_ONCE),
    )


class Reload:
    """One server's `config.ini`, to be read anew by `read`."""

    _log = Logger()

    def __init__(
        self,
        parts: Parts,
        read: Callable[[], Config],
        logs: Logs,
        take_limits: Callable[[Limits], None] = lambda limits: None,
    ) -> None:
        self._parts = parts
        self._read = read
        self._logs = logs
        self._take_limits = take_limits

    def run(self) -> Deferred[Changes]:
        """Take up what has changed, and say in the log what that was.

        The file with the own certificate is read again in any case: its name seldom changes. Fails with a `FarmError`
        that names what is wrong with the config or a file that it names; then nothing at all has changed.
        """
        return Deferred.fromCoroutine(self._run())

    async def _run(self) -> Changes:
        parts = self._parts
        config = await parts.run_in_thread(self._read)
        after = config.server
        certificate = None
        if after.certificate is not None:
            certificate = await parts.run_in_thread(Certificate.load, after.certificate)
        changed = changes(parts.config.server, after)
        limits = tuple(
            name for name in fields_dict(Limits) if getattr(config.limits, name) != getattr(parts.config.limits, name)
        )
        taken = {name: getattr(after, name) for name in changed.now}
        parts.take_options(evolve(parts.config.server, **taken), certificate, config.limits)
        self._take_limits(config.limits)
        changed = evolve(changed, now=changed.now + limits)
        self._logs.set_level(after.log_level)
        self._log.info(
            "{path} was read again; changed: {now}; takes effect at the next start: {later}",
            path=parts.config_file.path,
            now=", ".join(changed.now) or "nothing",
            later=", ".join(changed.at_next_start) or "nothing",
        )
        await self._tell_farm(changed)
        return changed

    async def _tell_farm(self, changed: Changes) -> None:
        """What stands in this server's row, or in its certificate, takes the farm's word; it may come later."""
        parts = self._parts
        own = parts.own_row()
        stands = {"weight": str(own.weight), "zone": own.zone}
        fields = {name: value for name, value in stands.items() if name in changed.now}
        if fields:
            try:
                await set_server(parts.registry, own.id, fields, parts.call_back)
            except FarmError as error:
                self._log.warn("The farm is told of {fields} at the next start: {error}", fields=fields, error=error)
        # A certificate that lacks a name is renewed; what goes wrong there is logged and tried again.
        await parts.renewal.look()
