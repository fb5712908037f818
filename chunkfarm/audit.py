"""Who changed what: one line in the log for each change that somebody asked for, under a namespace of its own.

What admins do is logged as `info`, changes of files as `debug`, for a busy farm has hundreds of those a second.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger, LogLevel

from chunkfarm.model import Principal

_log = Logger(namespace="chunkfarm.audit")


def admin(principal: Principal | None, address: str, change: str) -> None:
    """Somebody changed the farm. `change` is what was asked for, with nothing secret in it."""
    _emit(LogLevel.info, principal, address, change)


def files(principal: Principal | None, address: str, change: str) -> None:
    """Somebody stored or removed a file."""
    _emit(LogLevel.debug, principal, address, change)


def _emit(level: Any, principal: Principal | None, address: str, change: str) -> None:
    _log.emit(
        level,
        "{principal} ({role}) at {address}: {change}",
        principal=principal.id if principal is not None else "-",
        role=principal.role if principal is not None else "-",
        address=address,
        change=change,
    )
