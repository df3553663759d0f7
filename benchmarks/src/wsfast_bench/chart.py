"""Charts of horizontal bars as SVG. They need no script, and their text has one size on a phone and on a desktop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Bar", "draw_bars", "draw_figure"]

GROUPS = {"ours": "wsfast", "theirs": "others", "floor": "bare loop in C"}
"""Groups of bars, each with what the key calls it."""

ROW, BAR, FOOT = 40, 14, 22
"""Pixels: height of a row with its label and its bar, of the bar, and of the scale below all rows."""

REACH = 80
"""Where the scale ends, in per cent of the width: the number of the longest bar stands after it."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a chart."""

    label: str
    value: float
    group: str
    """`ours`, `theirs` or `floor`."""
    spread: tuple[float, float] | None = None


def draw_figure(caption: str, bars: Sequence[Bar], mark: float | None = None, spread: str = "quartiles") -> str:
    """Return a chart with its caption and a key of its colors, as HTML.

    Args:
        caption: The meaning of the numbers.
        bars: Bars, from top to bottom.
        mark: Where to draw a line across all bars.
        spread: The meaning of the thin lines over bars.
    """
    groups = [group for group in GROUPS if any(bar.group == group for bar in bars)]
    keys = "".join(f' <span class="key"><i class="{group}"></i>{GROUPS[group]}</span>' for group in groups)
    chart = draw_bars(bars, caption, mark, spread)
    return f"<figure>\n<figcaption>{escape(caption)}{keys if len(groups) > 1 else ''}</figcaption>\n{chart}\n</figure>"


def draw_bars(bars: Sequence[Bar], title: str, mark: float | None = None, spread: str = "quartiles") -> str:
    """Return a chart of horizontal bars that begin at 0, as SVG.

    Args:
        bars: Bars, from top to bottom.
        title: The subject of the chart. A screen reader reads it with the numbers.
        mark: Where to draw a line across all bars.
        spread: The meaning of the thin lines over bars.
    """
    most = max((max(bar.value, *(bar.spread or ())) if bar.spread else bar.value for bar in bars), default=0)
    step, most = _ticks(max(most, mark or 0))
    scale = REACH / most
    bottom = ROW * len(bars)
    numbers = "; ".join(f"{bar.label}: {_short(bar.value)}" for bar in bars)
    label = f"{title.removesuffix('.')}. {numbers}"
    parts = [f'<svg width="100%" height="{bottom + FOOT}" role="img" aria-label="{escape(label)}">']
    for tick in range(round(most / step) + 1):
        x, anchor = tick * step * scale, "middle" if tick else "start"
        parts.append(_line("grid" if tick else "base", x, x, 0, bottom))
        parts.append(
            f'<text class="tick" x="{x:.2f}%" y="{bottom + 16}" text-anchor="{anchor}">{tick * step:.10g}</text>'
        )
    if mark is not None:
        parts.append(_line("mark", mark * scale, mark * scale, 0, bottom))
    for index, bar in enumerate(bars):
        top = ROW * index + ROW - BAR - 4
        length = max(bar.value, 0) * scale
        parts.append(f"<g><title>{escape(f'{bar.label}: {bar.value:.2f}' + _spread(bar, spread))}</title>")
        parts.append(f'<text x="0" y="{top - 5}">{escape(bar.label)}</text>')
        parts.append(f'<rect class="{bar.group}" x="0" y="{top}" width="{length:.2f}%" height="{BAR}" rx="2"/>')
        end = length
        if bar.spread is not None:
            low, high = (value * scale for value in bar.spread)
            middle = top + BAR / 2
            parts.append(_line("spread", low, high, middle, middle))
            parts += (_line("spread", x, x, middle - 3, middle + 3) for x in (low, high))
            end = max(end, high)
        parts.append(f'<text x="{end:.2f}%" dx="6" y="{top + BAR - 3}">{_short(bar.value)}</text></g>')
    parts.append("</svg>")
    return "\n".join(parts)


def _line(kind: str, left: float, right: float, top: float, bottom: float) -> str:
    return f'<line class="{kind}" x1="{left:.2f}%" x2="{right:.2f}%" y1="{top:g}" y2="{bottom:g}"/>'


def _spread(bar: Bar, what: str) -> str:
    return "" if bar.spread is None else f", {what} {bar.spread[0]:.2f} to {bar.spread[1]:.2f}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def _ticks(most: float) -> tuple[float, float]:
    """Return a round distance between ticks, and the first of them at or after the largest value."""
    if most <= 0:
        return 1, 1
    rough = most / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return step, math.ceil(most / step - 1e-9) * step
