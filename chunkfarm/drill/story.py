"""What happens in a drill, told while it happens: lines with times, figures, and whether all was as promised. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import define, field, frozen

from chunkfarm.errors import FarmError


class DrillFailed(FarmError):
    """Something did not come true, so the drill cannot go on."""


@frozen
class Line:
    """One thing that happened, `at` so many seconds after the drill began."""

    at: float
    text: str

    def __str__(self) -> str:
        return f"{self.at:7.1f} s  {self.text}"


@define
class Story:
    """One drill. `seconds` is a monotonic clock; `say` is given each line when it is told."""

    name: str
    title: str
    seconds: Callable[[], float]
    say: Callable[[str], None]
    lines: list[Line] = field(factory=list, init=False)
    figures: dict[str, float] = field(factory=dict, init=False)
    """Seconds, by name."""
    faults: list[str] = field(factory=list, init=False)
    is_over: bool = field(default=False, init=False)
    _began: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._began = self.seconds()
        self.say(f"{self.name}: {self.title}")

    def tell(self, text: str) -> None:
        """Something happened just now."""
        line = Line(self.seconds() - self._began, text)
        self.lines.append(line)
        self.say(str(line))

    def figure(self, name: str, seconds: float, text: str) -> None:
        """Something took so many seconds; `text` says what, with `{}` where they belong."""
        self.figures[name] = seconds
        self.tell(text.format(f"{seconds:.1f} s"))

    def check(self, holds: bool, text: str, otherwise: str) -> None:
        """Something that the farm promises: it holds, or it is a fault and the drill has failed."""
        if not holds:
            self.faults.append(otherwise)
        self.tell(text if holds else f"WRONG: {otherwise}")

    def end(self, error: FarmError | None = None) -> None:
        """It is over; with an error it could not go on."""
        if error is not None:
            self.check(False, "", error.sentence)
        self.is_over = True
        self.say(self.verdict())

    @property
    def passed(self) -> bool:
        """Whether it came to its end, and everything that was promised held."""
        return self.is_over and not self.faults

    def verdict(self) -> str:
        """The last line."""
        if not self.passed:
            return f"FAIL  {self.name}: {'; '.join(self.faults) or 'it was not brought to its end'}"
        figures = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.figures.items())
        return f"PASS  {self.name}" + (f": {figures}" if figures else "")

    def as_value(self) -> dict[str, Any]:
        """All of it, for JSON. Times are seconds from the beginning."""
        return {
            "drill": self.name,
            "passed": self.passed,
            "seconds": {name: round(seconds, 3) for name, seconds in self.figures.items()},
            "faults": list(self.faults),
            "story": [{"at": round(line.at, 3), "text": line.text} for line in self.lines],
        }


def differences(expected: Mapping[str, str], found: Mapping[str, str], whose: str) -> list[str]:
    """What is wrong with the files that were read, by name and digest; `found` has what was no file as its reason."""
    wrong = []
    for name, digest in expected.items():
        if name not in found:
            wrong.append(f"{name} was not read from {whose}")
        elif found[name] != digest:
            wrong.append(f"{name} from {whose}: {found[name]}, not {digest}")
    return wrong


def in_short(wrong: Sequence[str], most: int = 3) -> str:
    """Some of many faults, and how many more there are."""
    more = f" and {len(wrong) - most} more" if len(wrong) > most else ""
    return "; ".join(wrong[:most]) + more
