"""A bar chart as SVG, written by hand: one bar an operation, how long ours took where git took 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 960
_LABEL_WIDTH = 300
_NOTE_WIDTH = 190
_ROW = 24
_TOP = 56
_BAR = 15
_LEAST_SCALE = 2.0
_MOST_SCALE = 8.0
"""A longer bar is cut there; its figure says how long it is."""
_FASTER, _SLOWER, _CUT = "#3b7dd8", "#d8843b", "#b5533c"


@dataclass(frozen=True, slots=True)
class Bar:
    """One operation."""

    label: str
    ours_s: float
    git_s: float
    wanted: float | None
    """The ratio that is to be reached."""

    @property
    def ratio(self) -> float:
        """Ours by git's."""
        return self.ours_s / self.git_s


def draw(title: str, bars: Sequence[Bar]) -> str:
    """Give the chart; needs at least one bar."""
    most = max([_LEAST_SCALE, *(bar.ratio for bar in bars), *(bar.wanted or 0 for bar in bars)])
    scale = min(_MOST_SCALE, most)
    room = WIDTH - _LABEL_WIDTH - _NOTE_WIDTH
    height = _TOP + _ROW * len(bars) + 28

    def x(ratio: float) -> float:
        return round(_LABEL_WIDTH + room * min(ratio, scale) / scale, 1)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="12" y="22" font-size="15">{escape(title)}</text>',
        '<text x="12" y="40" fill="#666">median wall seconds by git\'s in the same run; '
        "line: as fast as git; black mark: target</text>",
    ]
    for number, bar in enumerate(bars):
        y = _TOP + _ROW * number
        colour = _FASTER if bar.ratio <= 1 else _CUT if bar.ratio > scale else _SLOWER
        out.append(f'<text x="{_LABEL_WIDTH - 8}" y="{y + 12}" text-anchor="end">{escape(bar.label)}</text>')
        out.append(
            f'<rect x="{_LABEL_WIDTH}" y="{y}" width="{round(x(bar.ratio) - _LABEL_WIDTH, 1)}" height="{_BAR}" '
            f'fill="{colour}"/>'
        )
        if bar.wanted is not None:
            out.append(f'<rect x="{x(bar.wanted) - 1}" y="{y - 3}" width="2" height="{_BAR + 6}" fill="black"/>')
        note = f"{bar.ratio:.2f} ({bar.ours_s:.3f} s, git {bar.git_s:.3f} s)"
        out.append(f'<text x="{x(bar.ratio) + 6}" y="{y + 12}" fill="#333">{note}</text>')
    bottom = _TOP + _ROW * len(bars)
    out.append(f'<line x1="{x(1)}" y1="{_TOP - 8}" x2="{x(1)}" y2="{bottom}" stroke="#444" stroke-dasharray="4 3"/>')
    out.extend(
        f'<text x="{x(tick)}" y="{bottom + 16}" text-anchor="middle" fill="#666">{tick}</text>'
        for tick in range(int(scale) + 1)
    )
    out.append("</svg>")
    return "\n".join(out) + "\n"
