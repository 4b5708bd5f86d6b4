"""How a report looks: light or dark as the reader's system is, and light on paper."""

from __future__ import annotations

_LIGHT = """
  --page: #fbfaf8; --card: #ffffff; --ink: #1d2430; --dim: #667085; --rule: #e4e2dd; --on-strong: #ffffff;
  --series-0: #9aa3b2; --series-1: #2f6fde; --series-2: #d97706; --series-3: #0f9d76;
  --good: #1668c7; --bad: #cf5a10; --plain: #4456a6; color-scheme: light;
"""
_DARK = """
  --page: #14171c; --card: #1c2027; --ink: #e7e9ee; --dim: #98a2b3; --rule: #2e343e; --on-strong: #0d1014;
  --series-0: #7b8596; --series-1: #6ea3ff; --series-2: #f0a13a; --series-3: #3ecf9f;
  --good: #63a4ff; --bad: #f58b4c; --plain: #97a6f5; color-scheme: dark;
"""

STYLE = f"""
:root {{ {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
@media print {{ :root {{ {_LIGHT} --page: #ffffff; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 system-ui, "Segoe UI", sans-serif; }}
main {{ max-width: 1040px; margin: 0 auto; padding: 40px 28px 64px; }}
h1 {{ font-size: 26px; margin: 0 0 4px; letter-spacing: -.01em; overflow-wrap: anywhere; }}
h2 {{ font-size: 17px; margin: 0 0 2px; }}
p {{ margin: 4px 0 14px; color: var(--dim); max-width: 82ch; }}
code {{ font: 13px ui-monospace, "SF Mono", Menlo, monospace; overflow-wrap: anywhere; }}
section {{ background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 20px 24px;
  margin-top: 18px; break-inside: avoid; }}
svg {{ display: block; width: 100%; height: auto; font-family: inherit; overflow: visible; }}
.rule {{ stroke: var(--rule); stroke-width: 1; }}
.cell {{ fill: var(--card); }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(168px, 1fr)); gap: 12px; margin-top: 22px; }}
.figures div {{ background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 14px 18px; }}
.figures b {{ display: block; font-size: 22px; font-weight: 600; letter-spacing: -.01em; }}
.figures span {{ color: var(--dim); font-size: 13px; }}
.legend {{ margin: 0 0 6px; font-size: 13px; }}
.legend span {{ margin-right: 18px; white-space: nowrap; }}
.legend i {{ display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; }}
.key {{ font-size: 12px; margin: 0 0 6px; }}
.key i {{ display: inline-block; width: 18px; height: 10px; border-radius: 2px; margin-left: 2px; }}
h3 {{ font-size: 13.5px; font-weight: 600; margin: 18px 0 6px; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }}
th {{ text-align: left; color: var(--dim); font-weight: 500; white-space: nowrap; }}
th, td {{ padding: 4px 12px 4px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }}
td.n, th.n {{ text-align: right; white-space: nowrap; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: 3px 20px; margin: 8px 0 0; font-size: 14px; }}
dt {{ color: var(--dim); }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
summary {{ cursor: pointer; color: var(--dim); }}
footer {{ color: var(--dim); font-size: 13px; margin-top: 28px; }}
"""
