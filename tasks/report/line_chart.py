"""Line charts as inline SVG, coloured by the page's own CSS so that they follow its theme."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

WIDTH, HEIGHT = 480, 230
LEFT, RIGHT, TOP, BOTTOM = 44, 18, 12, 26
TICKS = 4
TREND_PARTS = 20


@dataclass(frozen=True)
class Line:
    """One series: equally many x and y values, x ascending."""

    name: str
    x: Sequence[float]
    y: Sequence[float]

    @property
    def trend(self) -> list[float]:
        """Each value's mean with its neighbours, a twentieth of the line to either side.

        A training changes its source from step to step, and a loss of one is no loss of another.
        """
        reach = len(self.y) // TREND_PARTS
        if not reach:
            return list(self.y)
        sums = [0.0, *itertools.accumulate(self.y)]
        spans = [
            (max(0, at - reach), min(len(self.y), at + reach + 1)) for at in range(len(self.y))
        ]
        return [(sums[end] - sums[start]) / (end - start) for start, end in spans]


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
    """An SVG of the lines, faint, and of their trends; x from zero, y between round numbers.

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
        trend = line.trend
        if trend != list(line.y):
            parts.append(_polyline(frame, line.x, line.y, f"line faint line-{number}"))
        parts.append(_polyline(frame, line.x, trend, f"line line-{number}"))
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


def _polyline(frame: _Frame, xs: Sequence[float], ys: Sequence[float], kind: str) -> str:
    points = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in zip(xs, ys, strict=True))
    return f'<polyline class="{kind}" points="{points}"/>'


def _grid(y: float, tick: float) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
    )
