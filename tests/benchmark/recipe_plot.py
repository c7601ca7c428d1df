"""The scores of compare_recipe.py as a picture: python tests/benchmark/recipe_plot.py JSON SVG.

A line per change: a dot for each seed, a bar at their mean; behind all of them the mean of the
unchanged stage and, where it has several seeds, a standard deviation to either side.
"""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from tasks.report.line_chart import round_ticks

WIDTH, LEFT, RIGHT, ROW, TOP, BOTTOM = 760, 230, 70, 24, 16, 44
INK, MUTED, RULE, ACCENT, BAND = "#23201c", "#736c63", "#e6e1d9", "#b4561f", "#f3e3d8"


def recipe_plot(scores: Mapping[str, Sequence[float]], unchanged: str) -> str:
    """An SVG of points of 0-100 by change, the best first.

    Args:
        scores: One score per seed of each change.
        unchanged: The row that all others are compared with.
    """
    every = [value for values in scores.values() for value in values]
    ticks = round_ticks(min(every), max(every))
    plot_width = WIDTH - LEFT - RIGHT
    bottom = TOP + ROW * len(scores)

    def x(value: float) -> float:
        return LEFT + plot_width * (value - ticks[0]) / (ticks[-1] - ticks[0])

    base = scores[unchanged]
    mean, spread = statistics.mean(base), statistics.stdev(base) if len(base) > 1 else 0.0
    left, right = x(max(ticks[0], mean - spread)), x(min(ticks[-1], mean + spread))
    parts = [
        f'<rect x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" height="{bottom - TOP}" '
        f'fill="{BAND}"/>'
    ]
    for tick in ticks:
        parts.append(_line(x(tick), TOP, x(tick), bottom, RULE))
        parts.append(_text(x(tick), bottom + 18, f"{tick:g}", "middle"))
    parts.append(_line(x(mean), TOP, x(mean), bottom, ACCENT))
    label = "mean over the tasks, points of 100"
    parts.append(_text(LEFT + plot_width / 2, bottom + 36, label, "middle"))
    ordered = sorted(scores, key=lambda name: -statistics.mean(scores[name]))
    for number, name in enumerate(ordered):
        middle = TOP + ROW * (number + 0.5)
        own = statistics.mean(scores[name])
        weight = ' font-weight="600"' if name == unchanged else ""
        parts.append(_text(LEFT - 12, middle + 4, name, "end", f'fill="{INK}"{weight}'))
        parts += [
            f'<circle cx="{x(value):.1f}" cy="{middle:.1f}" r="3.5" fill="{ACCENT}" '
            'fill-opacity="0.55"/>'
            for value in scores[name]
        ]
        parts.append(_line(x(own), middle - 7, x(own), middle + 7, INK, 2))
        change = f"{own:.1f}" if name == unchanged else f"{own - mean:+.1f}"
        parts.append(_text(WIDTH - 8, middle + 4, change.replace("-", "−"), "end"))
    height = bottom + BOTTOM
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'font-family="system-ui, sans-serif" font-size="13" role="img">'
        f'<rect width="{WIDTH}" height="{height}" fill="#fcfbf9"/>{"".join(parts)}</svg>\n'
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: int = 1) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, anchor: str, look: str = f'fill="{MUTED}"') -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f"<text {place} {look}>{escape(text)}</text>"


def main() -> None:
    """Draw the file of compare_recipe.py's --out."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    scores = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(recipe_plot(scores, next(iter(scores))), encoding="utf-8")


if __name__ == "__main__":
    main()
