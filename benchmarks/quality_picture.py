"""The picture of docs/quality.svg: how much perplexity each row of the quality benchmark costs, and at how many bits.

    python -m benchmarks.quality_picture

Drawn from `results/quality.json`; the colours follow the reader's light or dark theme.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

from benchmarks.publish import read
from benchmarks.quality import JOBS

PICTURE = Path(__file__).parents[1] / "docs" / "quality.svg"
WIDTH, ROW, LEFT, RIGHT, TOP = 860, 30, 330, 150, 64

STYLE = """
text { font: 14px system-ui, sans-serif; fill: #1f2328 }
.dim { fill: #636c76 } .title { font-size: 17px; font-weight: 600 }
.ours { fill: #0a7d6c } .theirs { fill: #9aa4af } .rule { stroke: #9aa4af; stroke-opacity: .35 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .dim { fill: #9198a1 } .ours { fill: #35b8a3 } }
"""


@dataclass(frozen=True)
class Bar:
    """One row: the share by which perplexity grew, at so many bits per weight."""

    name: str
    ours: bool
    bits: float
    growth: float


#: Of woqfx's rows, those of two dtypes; without those that lack a part of an algorithm or have one more. The table has
#: all.
_DTYPES, _LEFT_OUT = ("int4_fullrange ", "nf4 "), (" no-", "tuned")


def bars() -> list[Bar]:
    """What was measured of peers and of some dtypes, best first."""
    found = read("quality")
    shown = [
        job
        for job in JOBS
        if "perplexity" in found.get(job.name, {})
        and (job.out != "out" or job.name.startswith(_DTYPES))
        and not any(part in job.name for part in _LEFT_OUT)
    ]
    growth = {job.name: found[job.name]["perplexity"] / found[job.name]["float"] - 1 for job in shown}
    made = [Bar(job.name, job.out == "out", job.bits, growth[job.name]) for job in shown]
    return sorted(made, key=lambda bar: bar.growth)


def draw(rows: list[Bar]) -> str:
    """The picture of these rows."""
    most, room = max(bar.growth for bar in rows), WIDTH - LEFT - RIGHT
    height = TOP + ROW * len(rows) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>How much perplexity grows by quantizing</title>",
        f"<style>{STYLE}</style>",
        '<text x="12" y="26" class="title">How much perplexity grows by quantizing</text>',
        '<text x="12" y="47" class="dim">SmolLM2-135M, its channels rescaled; English prose; less is better</text>',
        f'<line x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{height - 12}" class="rule"/>',
    ]
    for number, bar in enumerate(rows):
        y = TOP + number * ROW
        width = max(2.0, bar.growth / most * room)
        name = f"woqfx: {bar.name}" if bar.ours else bar.name
        parts += [
            f'<text x="{LEFT - 10}" y="{y + 19}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{LEFT}" y="{y + 5}" width="{width:.1f}" height="{ROW - 10}" rx="3" '
            f'class="{"ours" if bar.ours else "theirs"}"/>',
            f'<text x="{LEFT + width + 8:.1f}" y="{y + 19}">{bar.growth:+.1%}'
            f'<tspan class="dim">  {bar.bits:g} bits</tspan></text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Write the picture."""
    PICTURE.write_text(draw(bars()))


if __name__ == "__main__":
    main()
