"""Which ways through the code an input takes: steps from line to line, and roughly how often each was taken.

On `sys.settrace`, which needs no compiler and no build of its own, and says the same again for the same input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType, FrameType, TracebackType
from typing import Any, Self

Trace = Callable[[FrameType, str, Any], Any]
STEPS_MAX = 3_000_000
"""Lines that one input may run: a hundred times what an honest one does. Beyond it the work grows out of proportion."""


class TooManySteps(Exception):
    """An input keeps the code busy for far longer than its length explains."""


class Arcs:
    """Watches modules whose names begin with one of `prefixes`, while it is entered."""

    def __init__(self, prefixes: tuple[str, ...], steps_max: int = STEPS_MAX) -> None:
        self._prefixes = prefixes
        self._steps_max = steps_max
        self._numbers: dict[CodeType, int] = {}
        """A number for each piece of code; -1 for what is not watched."""
        self._counts: dict[int, int] = {}
        self._before: Any = None
        self.steps = 0

    def __enter__(self) -> Self:
        self._counts = {}
        self.steps = 0
        self._before = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.settrace(self._before)

    def taken(self) -> set[int]:
        """The steps of the last input, each with the power of two of its count."""
        return {arc << 5 | min(count, 1 << 20).bit_length() for arc, count in self._counts.items()}

    def _number(self, frame: FrameType) -> int:
        name = frame.f_globals.get("__name__", "")
        watched = isinstance(name, str) and name.startswith(self._prefixes)
        number = 1 + max(self._numbers.values(), default=0) if watched else -1
        self._numbers[frame.f_code] = max(number, 1) if watched else -1
        return self._numbers[frame.f_code]

    def _called(self, frame: FrameType, event: str, argument: Any) -> Trace | None:
        number = self._numbers.get(frame.f_code) or self._number(frame)
        if number < 0:
            return None
        counts = self._counts
        base, last = number << 32, 0

        def step(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal last
            if event == "line":
                line = frame.f_lineno
                arc = base | last << 16 | line
                last = line
                counts[arc] = counts.get(arc, 0) + 1
                self.steps += 1
                if self.steps > self._steps_max:
                    raise TooManySteps(f"more than {self._steps_max} lines were run for one input")
            return step

        return step
