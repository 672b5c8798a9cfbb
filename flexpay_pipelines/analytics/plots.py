"""Small charts as inline SVG: no script, no font, no colour of their own; the page's CSS variables paint them.

What belongs here: geometry. What does not: what is drawn (`report`). Floats are pixels here, never money.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

WIDTH = 1040
HALF_WIDTH = 520
PHONE_WIDTH = 330
HEIGHT = 230
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 14, 26
TICKS = 4


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its name, its CSS class, its values; None leaves a gap."""

    name: str
    style: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Step:
    """One bar of a waterfall: `total` stands on the ground, the others hang where the one before ended."""

    name: str
    amount: float
    shown: str
    total: bool = False


def short(value: float) -> str:
    """A number as an axis shows it: 1.2k, 3.4M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`."""
    reach = high - low or abs(high) or 1.0
    raw = reach / TICKS
    power: float = 10.0 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    ticks = [floor(low / step) * step]
    while ticks[-1] < high - step * 1e-9:
        ticks.append(ticks[-1] + step)
    return ticks if len(ticks) > 1 else [ticks[0], ticks[0] + step]


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where a value lands on the picture."""

    ticks: list[float]
    percent: bool
    width: int
    height: int

    def y(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return round(TOP + (high - value) / (high - low) * (self.height - TOP - BOTTOM), 1)

    def x(self, position: float) -> float:
        """A share of the width, 0 to 1."""
        return round(LEFT + position * (self.width - LEFT - RIGHT), 1)

    def grid(self) -> str:
        parts = []
        for tick in self.ticks:
            label = f"{tick * 100:.3g}%" if self.percent else short(tick)
            parts.append(
                f'<line class="grid" x1="{LEFT}" x2="{self.width - RIGHT}" y1="{self.y(tick)}" y2="{self.y(tick)}"/>'
                f'<text class="axis" x="{LEFT - 8}" y="{self.y(tick) + 4}" text-anchor="end">{label}</text>'
            )
        return "".join(parts)


def _wanted(width: int) -> int:
    """How many labels there is room for."""
    return max(3, min(6, width // 120))


def _labels(frame: _Frame, labels: Sequence[str], wanted: int = 6, *, bars: bool = False) -> str:
    count = len(labels)
    every = max(1, -(-count // wanted))
    parts = []
    for n in range(count - 1, -1, -every):
        place = (n + 0.5) / count if bars else n / max(count - 1, 1)
        anchor = "middle" if 0 < n < count - 1 or (bars and count < wanted) else ("end" if n else "start")
        parts.append(
            f'<text class="axis" x="{frame.x(place)}" y="{frame.height - 7}" text-anchor="{anchor}">'
            f"{escape(labels[n])}</text>"
        )
    return "".join(parts)


def _svg(frame: _Frame, title: str, body: str) -> str:
    box = f'viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{escape(title)}"'
    return f"<svg {box}>{frame.grid()}{body}</svg>"


def line_chart(
    title: str,
    labels: Sequence[str],
    series: Sequence[Line],
    *,
    percent: bool = False,
    from_zero: bool = False,
    area: bool = False,
    width: int = WIDTH,
    height: int = HEIGHT,
) -> str:
    """Lines over the same labels; the newest value of each is marked."""
    known = [v for line in series for v in line.values if v is not None] or [0.0]
    low = min([0.0, *known] if from_zero else known)
    frame = _Frame(_ticks(low, max(known)), percent, width, height)
    parts = []
    for line in series:
        points = [
            (frame.x(n / max(len(labels) - 1, 1)), frame.y(v)) for n, v in enumerate(line.values) if v is not None
        ]
        if not points:
            continue
        path = " ".join(f"{x},{y}" for x, y in points)
        if area:
            base = frame.height - BOTTOM
            parts.append(f'<polygon class="area" points="{points[0][0]},{base} {path} {points[-1][0]},{base}"/>')
        parts.append(
            f'<polyline class="line {line.style}" points="{path}"><title>{escape(line.name)}</title></polyline>'
        )
        parts.append(f'<circle class="dot {line.style}" cx="{points[-1][0]}" cy="{points[-1][1]}" r="3.5"/>')
    return _svg(frame, title, "".join(parts) + _labels(frame, labels, _wanted(width)))


def stacked_bars(
    title: str, labels: Sequence[str], series: Sequence[Line], *, width: int = WIDTH, height: int = HEIGHT
) -> str:
    """A bar for each label; what is above 0 is piled upwards, what is below downwards."""
    count = len(labels)
    ups = [sum(max(s.values[n] or 0.0, 0.0) for s in series) for n in range(count)]
    downs = [sum(min(s.values[n] or 0.0, 0.0) for s in series) for n in range(count)]
    frame = _Frame(_ticks(min([*downs, 0.0]), max([*ups, 0.0])), False, width, height)
    parts = []
    for n in range(count):
        up = down = 0.0
        left, right = frame.x((n + 0.14) / count), frame.x((n + 0.86) / count)
        for one in series:
            value = one.values[n] or 0.0
            if not value:
                continue
            start = up if value > 0 else down
            top, bottom = sorted((frame.y(start), frame.y(start + value)))
            parts.append(
                f'<rect class="bar {one.style}" x="{left}" y="{top}" width="{right - left:.1f}"'
                f' height="{bottom - top:.1f}">'
                f"<title>{escape(labels[n])}: {escape(one.name)} {short(value)}</title></rect>"
            )
            if value > 0:
                up += value
            else:
                down += value
    zero = f'<line class="zero" x1="{LEFT}" x2="{frame.width - RIGHT}" y1="{frame.y(0)}" y2="{frame.y(0)}"/>'
    return _svg(frame, title, "".join(parts) + zero + _labels(frame, labels, _wanted(width), bars=True))


def waterfall(title: str, steps: Sequence[Step], *, height: int = 260) -> str:
    """How one total becomes another. The ground is cut off where the steps would not be seen above it."""
    spans = _spans(steps)
    inner = [v for (a, b), step in zip(spans, steps, strict=True) for v in ((b,) if step.total else (a, b))] or [0.0]
    reach = max(inner) - min(inner) or max(abs(v) for v in inner) or 1.0
    ground = max(0.0, min(inner) - reach * 0.6) if min(inner) >= 0 else min(inner) - reach * 0.1
    frame = _Frame(_ticks(ground, max(inner) + reach * 0.12), False, WIDTH, height)
    floor_y = frame.height - BOTTOM
    count, parts = len(steps), []
    for n, (step, (start, end)) in enumerate(zip(steps, spans, strict=True)):
        top = frame.y(max(start, end))
        bottom = floor_y if step.total else frame.y(min(start, end))
        style = "neutral" if step.total else "up" if step.amount >= 0 else "down"
        left, right = frame.x((n + 0.12) / count), frame.x((n + 0.88) / count)
        parts.append(
            f'<rect class="bar {style}" rx="2" x="{left}" y="{top}" width="{right - left:.1f}"'
            f' height="{max(bottom - top, 1.5):.1f}"><title>{escape(step.name)}: {escape(step.shown)}</title></rect>'
            f'<text class="value" x="{(left + right) / 2:.1f}" y="{top - 5}" text-anchor="middle">'
            f"{escape(step.shown)}</text>"
        )
        if n + 1 < count:
            y = frame.y(end)
            parts.append(f'<line class="link" x1="{right}" x2="{frame.x((n + 1.12) / count)}" y1="{y}" y2="{y}"/>')
    names = "".join(
        f'<text class="axis" x="{frame.x((n + 0.5) / count)}" y="{frame.height - 7}" text-anchor="middle">'
        f"{escape(step.name)}</text>"
        for n, step in enumerate(steps)
    )
    return _svg(frame, title, "".join(parts) + names)


def _spans(steps: Sequence[Step]) -> list[tuple[float, float]]:
    """Where each bar of a waterfall begins and ends."""
    level, spans = 0.0, []
    for step in steps:
        start = 0.0 if step.total else level
        level = step.amount if step.total else level + step.amount
        spans.append((start, level))
    return spans


def waterfall_rows(steps: Sequence[Step]) -> list[dict[str, str]]:
    """The same lying on its side, for a narrow page: `name, shown, style`, and `left` and `width` in per cent.

    Totals have no bar: beside them the steps would not be seen.
    """
    spans = _spans(steps)
    inner = [v for pair, step in zip(spans, steps, strict=True) for v in ((pair[1],) if step.total else pair)] or [0.0]
    low, reach = min(inner), max(inner) - min(inner) or 1.0
    return [
        {
            "name": step.name,
            "shown": step.shown,
            "style": "total" if step.total else "up" if step.amount >= 0 else "down",
            "left": f"{(min(pair) - low) / reach * 100:.1f}",
            "width": f"{abs(pair[1] - pair[0]) / reach * 100:.1f}",
        }
        for pair, step in zip(spans, steps, strict=True)
    ]


def sparkline(values: Sequence[float | None], style: str = "accent") -> str:
    """A line without axes, 120 by 30."""
    known = [(n, v) for n, v in enumerate(values) if v is not None]
    if len(known) < 2:  # noqa: PLR2004 - a line needs two points
        return ""
    low, high = min(v for _, v in known), max(v for _, v in known)
    points = " ".join(
        f"{n / (len(values) - 1) * 116 + 2:.1f},{26 - ((v - low) / (high - low) if high > low else 0.5) * 22:.1f}"
        for n, v in known
    )
    line = f'<polyline class="line {style}" points="{points}"/>'
    return f'<svg class="spark" viewBox="0 0 120 30" aria-hidden="true">{line}</svg>'
