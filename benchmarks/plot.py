"""Lines in a plot with two logarithmic axes, as SVG. Nothing to install for a picture of a few points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from attrs import frozen

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 70, 230, 50, 60
COLOURS = ("#888888", "#1b6ca8", "#c2571a", "#2e8540", "#7b3fa0", "#b01030")


@frozen
class Line:
    """One line: its name, and its points from left to right."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@frozen
class _Scale:
    """From values to places, by whole powers of ten."""

    low: int
    high: int
    begin: float
    end: float

    @classmethod
    def of(cls, values: Sequence[float], begin: float, end: float) -> _Scale:
        low, high = math.floor(math.log10(min(values)) + 1e-9), math.ceil(math.log10(max(values)) - 1e-9)
        return cls(low, max(high, low + 1), begin, end)

    def place(self, value: float) -> float:
        return self.begin + (math.log10(value) - self.low) / (self.high - self.low) * (self.end - self.begin)

    def marks(self) -> Iterator[tuple[float, str]]:
        for power in range(self.low, self.high + 1):
            yield self.place(10.0**power), f"{10.0**power:,g}"


def plot(title: str, across: str, up: str, lines: Sequence[Line]) -> str:
    """The whole SVG. All values must be above zero."""
    xs = _Scale.of([x for line in lines for x, _ in line.points], LEFT, WIDTH - RIGHT)
    ys = _Scale.of([y for line in lines for _, y in line.points], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 28, title, size=16),
        _text((xs.begin + xs.end) / 2, HEIGHT - 15, across, anchor="middle"),
        _text(LEFT - 10, TOP - 8, up, anchor="end"),
    ]
    for x, mark in xs.marks():
        parts += [_rule(x, ys.begin, x, ys.end), _text(x, ys.begin + 20, mark, anchor="middle")]
    for y, mark in ys.marks():
        parts += [_rule(xs.begin, y, xs.end, y), _text(LEFT - 10, y + 4, mark, anchor="end")]
    below = -math.inf
    for colour, line in sorted(zip(COLOURS, lines, strict=False), key=lambda one: ys.place(one[1].points[-1][1])):
        places = [(xs.place(x), ys.place(y)) for x, y in line.points]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        # Names stand beside the last points, one below the other where those meet.
        below = max(below + 17, places[-1][1] + 4)
        parts.append(_text(places[-1][0] + 10, below, line.name, colour=colour))
    return "\n".join([*parts, "</svg>", ""])


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#dddddd"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 13, colour: str = "black") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{escape(text)}</text>'
    )
