"""Line charts as inline SVG, coloured by the page's own CSS so that they follow its theme."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

WIDTH, HEIGHT = 480, 230
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 26
TICKS = 4


@dataclass(frozen=True)
class Line:
    """One series: equally many x and y values, x ascending."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class _Frame:
    """Where a value lands on the canvas."""

    x_high: float
    y_ticks: list[float]

    def x(self, value: float) -> float:
        return LEFT + value / self.x_high * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        up = (value - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def line_chart(lines: Sequence[Line], title: str) -> Markup:
    """An SVG of the lines, x from zero, y from a round number below them to one above.

    Args:
        lines: At least one, each with at least one point; they share both axes.
        title: Read out by screen readers.
    """
    values = [value for line in lines for value in line.y]
    frame = _Frame(max(line.x[-1] for line in lines), round_ticks(min(values), max(values)))
    parts = [_grid(frame.y(tick), tick) for tick in frame.y_ticks]
    parts += [
        f'<text x="{frame.x(tick):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{tick:g}</text>'
        for tick in round_ticks(0.0, frame.x_high)
        if tick <= frame.x_high
    ]
    for number, line in enumerate(lines):
        points = " ".join(
            f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in zip(line.x, line.y, strict=True)
        )
        parts.append(f'<polyline class="line line-{number}" points="{points}"/>')
    return Markup(  # noqa: S704 - every text in it is escaped above
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def round_ticks(low: float, high: float) -> list[float]:
    """About four round numbers, the first at or below `low`, the last at or above `high`."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _grid(y: float, tick: float) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
    )
