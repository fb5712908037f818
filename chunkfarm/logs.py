"""Where this process's log goes, in which form, and how much of it.

twistd has no option for either form or level, but takes a maker of observers, which is what `Logs.observer` is. What
is written as JSON are the fields that a line of text is made of, one object a line, for those who collect logs.

Much of what is logged are words of others: of whoever answers at an address, even before it is known who that is. So
nothing goes out as it is that would move a terminal's cursor, or that cannot be written as UTF-8.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO, cast

from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    formatEvent,
    formatEventAsClassicLogText,
)
from twisted.python.logfile import LogFile
from zope.interface import implementer

_OWN = frozenset(("isError", "why", "failure", "format", "message", "time", "system"))
"""Fields that Twisted puts into an event for itself."""


_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""All but tab and line feed, behind which Twisted puts a tab, so that no line can pass for another event: control
characters, other ends of lines, what turns the direction of writing, halves of characters."""


def clean(text: str) -> str:
    """The same with such characters as `\\uXXXX`, which is also what they are in JSON."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def as_text(event: LogEvent) -> str | None:
    """The lines for an event as twistd writes them; None if there is nothing to tell."""
    text = formatEventAsClassicLogText(event)
    return None if text is None else clean(text)


def as_json(event: LogEvent) -> str:
    """One line for an event: time, level, where it comes from, its text, its plain fields, and a traceback if any."""
    level = event.get("log_level", LogLevel.info)
    told: dict[str, Any] = {
        "time": datetime.fromtimestamp(event.get("log_time", 0.0), UTC).isoformat(timespec="milliseconds"),
        "level": getattr(level, "name", str(level)),
        "namespace": event.get("log_namespace", ""),
        "text": formatEvent(event),
    }
    for name, value in event.items():
        if not name.startswith("log_") and name not in _OWN and isinstance(value, str | int | float | bool | None):
            told.setdefault(name, value)
    if (failure := event.get("log_failure")) is not None:
        told["traceback"] = failure.getTraceback()
    return clean(json.dumps(told, ensure_ascii=False))


@implementer(ILogObserver)
class JSONObserver:
    """Writes events as lines of JSON."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __call__(self, event: LogEvent) -> None:
        try:
            line = as_json(event)
        except Exception as error:
            # An event that cannot be told must not stop what it tells of.
            line = json.dumps({"level": "error", "text": f"an event could not be logged: {type(error).__name__}"})
        self._file.write(line + "\n")
        self._file.flush()


class Logs:
    """The log of one process."""

    def __init__(self) -> None:
        self._predicate = LogLevelFilterPredicate()
        self._form = "text"
        self._options: Mapping[str, Any] = {}

    def direct(self, level: str, form: str, options: Mapping[str, Any]) -> None:
        """Say what `observer` is to make. `options` are twistd's own."""
        self.set_level(level)
        self._form = form
        self._options = options

    def set_level(self, level: str) -> None:
        """Leave out what is less than that, from now on."""
        self._predicate.setLogLevelForNamespace("", LogLevel.levelWithName(level))

    def observer(self) -> ILogObserver:
        """What writes the log where twistd was told to; daemons get a file, which is changed on SIGUSR1."""
        name = self._options.get("logfile") or ""
        if name in ("", "-"):
            if not self._options.get("nodaemon"):
                raise SystemExit("chunkfarm: a server in the background cannot log to the standard output")
            file: Any = sys.stdout
        else:
            file = LogFile.fromFullPath(name)
            if not signal.getsignal(signal.SIGUSR1):
                signal.signal(signal.SIGUSR1, lambda *_: _rotate(file))
        return self.filtered(JSONObserver(file) if self._form == "json" else FileLogObserver(file, as_text))

    def filtered(self, observer: ILogObserver) -> ILogObserver:
        """The observer without what is less than the level."""
        return cast(ILogObserver, FilteringLogObserver(observer, [self._predicate]))


of_process = Logs()
"""The log of this process. twistd takes the maker of an observer by its name, so it has one."""
OBSERVER_NAME = f"{__name__}.of_process.observer"


def _rotate(file: LogFile) -> None:
    from twisted.internet import reactor

    cast(Any, reactor).callFromThread(file.rotate)
