"""The log as lines of JSON, and where it goes."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any, cast

from twisted.logger import FileLogObserver, LogLevel
from twisted.python.failure import Failure
from twisted.python.logfile import LogFile
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.logs import JSONObserver, Logs, as_json, as_text


def make_event(**fields: Any) -> dict[str, Any]:
    return {
        "log_level": LogLevel.warn,
        "log_namespace": "chunkfarm.farm",
        "log_format": "chunk {digest} is {what}",
        "log_time": 1_700_000_000.25,
        "digest": "ab",
        "what": "lost",
        **fields,
    }


class JSONTests(SynchronousTestCase):
    """One object a line, with the fields that the text is made of."""

    def test_fields(self) -> None:
        """Time, level, origin, text and the plain fields; nothing that is no plain value."""
        assert json.loads(as_json(make_event(count=3, log_source=self, links=object()))) == {
            "time": "2023-11-14T22:13:20.250+00:00",
            "level": "warn",
            "namespace": "chunkfarm.farm",
            "text": "chunk ab is lost",
            "digest": "ab",
            "what": "lost",
            "count": 3,
        }

    def test_failure(self) -> None:
        """A failure comes with its traceback, in the same line."""
        line = as_json(make_event(log_failure=Failure(ValueError("no"))))
        assert "ValueError: no" in json.loads(line)["traceback"]
        assert "\n" not in line

    def test_an_event_that_cannot_be_told(self) -> None:
        """A broken event gives a line that says so."""
        file = io.StringIO()
        JSONObserver(file)(make_event(log_time="yesterday"))
        assert json.loads(file.getvalue())["text"] == "an event could not be logged: TypeError"


ODD = "a\x1b[2J\r\x9b1mb\u2028\u202ec\ud800d\n2026 [-] e"
"""What somebody may answer who is asked who is there."""


class OddWordsTests(SynchronousTestCase):
    """What others say is shown, and does nothing to who reads it."""

    def test_text(self) -> None:
        """No escape sequence gets through, and no line passes for another event."""
        file = io.BytesIO()
        stream = io.TextIOWrapper(file, encoding="utf-8", write_through=True)
        FileLogObserver(stream, as_text)(make_event(what=ODD))
        first, second = file.getvalue().decode().splitlines()
        assert first.endswith(r"chunk ab is a\u001b[2J\u000d\u009b1mb\u2028\u202ec\ud800d")
        assert second == "\t2026 [-] e"

    def test_json(self) -> None:
        """It can be read, and is the same as was said."""
        file = io.BytesIO()
        stream = io.TextIOWrapper(file, encoding="utf-8", write_through=True)
        JSONObserver(stream)(make_event(what=ODD))
        line = file.getvalue().decode()
        assert line.removesuffix("\n").isprintable()
        assert json.loads(line)["what"] == ODD

    def test_what_writes_the_log(self) -> None:
        """Both forms are written so."""
        for form in ("text", "json"):
            stream = io.StringIO()
            self.patch(sys, "stdout", stream)
            logs = Logs()
            logs.direct("info", form, {"nodaemon": True})
            cast(Any, logs.observer())(make_event(what=ODD))
            assert r"\u001b[2J" in stream.getvalue() and "\x1b" not in stream.getvalue()


class LogsTests(SynchronousTestCase):
    """Where twistd was told to write."""

    def written(self, form: str, **options: Any) -> str:
        stream = io.StringIO()
        self.patch(sys, "stdout", stream)
        logs = Logs()
        logs.direct("info", form, {"logfile": None, "nodaemon": False, **options})
        observer = cast(Any, logs.observer())
        observer(make_event())
        observer(make_event(log_level=LogLevel.debug))
        return stream.getvalue()

    def test_standard_output(self) -> None:
        """In the foreground the log goes to the standard output, without what is below the level."""
        assert self.written("text", nodaemon=True).endswith("[chunkfarm.farm#warn] chunk ab is lost\n")
        assert json.loads(self.written("json", nodaemon=True))["level"] == "warn"

    def test_file(self) -> None:
        """In the background it goes to the file that was named."""
        path = Path(self.mktemp()).absolute()
        opened: list[Any] = []
        # It stays open as long as the process, which a test is not.
        self.patch(LogFile, "_openFile", _noting(LogFile._openFile, opened))
        assert self.written("json", logfile=str(path)) == ""
        assert json.loads(path.read_text())["text"] == "chunk ab is lost"
        opened[0].close()

    def test_no_place(self) -> None:
        """A server in the background that is to write to the standard output is refused in one sentence."""
        logs = Logs()
        logs.direct("info", "text", {"logfile": "-", "nodaemon": False})
        with self.assertRaises(SystemExit) as caught:
            logs.observer()
        assert "standard output" in str(caught.exception.code)


def _noting(method: Any, opened: list[Any]) -> Any:
    def call(file: Any) -> None:
        opened.append(file)
        method(file)

    return call
