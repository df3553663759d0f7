"""One page of HTML with all that was measured: it needs no network, no script, and nothing else to draw its charts.

It is made of what `--json` writes, so that the same numbers are in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from wsfast import __version__

from .cases import WAYS, Case, Verdict, Weight
from .comparison import CAVEAT, SINGLE, CaseChange, Comparison, SceneChange, tabulate_case, tabulate_scene
from .methods import METHODS
from .report import (
    MEMORY,
    Summary,
    describe_machine,
    explain,
    judge,
    judged,
    tabulate,
    tabulate_memory,
    tabulate_overview,
)
from .scenarios import SCENARIOS

__all__ = ["Bar", "draw_bars", "render"]

STYLE = """\
:root { color-scheme: light dark; --page: #fcfcfa; --ink: #1b1b19; --soft: #63625d; --line: #dcdbd5; --tint: #f2f1ec;
  --ours: #2a78d6; --theirs: #b0622a; --floor: #9b9a94; --alarm: #a32020; }
@media (prefers-color-scheme: dark) { :root { --page: #191918; --ink: #eeede8; --soft: #a5a49e; --line: #3b3b38;
  --tint: #232321; --ours: #5b9df0; --theirs: #d98a4e; --floor: #83827c; --alarm: #ff8f85; } }
body { margin: 2rem auto; padding: 0 1.25rem; max-width: 68rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { margin-bottom: .25rem; font-size: 1rem; }
.soft, figcaption { color: var(--soft); } .alarm { color: var(--alarm); font-weight: 600; }
.wide { overflow-x: auto; } code { font: .9em ui-monospace, monospace; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem; white-space: nowrap; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; } thead th { color: var(--soft); font-weight: 500; }
tbody th { font-weight: 500; } tbody tr:hover { background: var(--tint); }
figure { margin: 1rem 0; } figcaption { font-size: .87rem; }
svg { display: block; width: 100%; max-width: 760px; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: var(--ink); } svg .tick { fill: var(--soft); } svg .grid { stroke: var(--line); }
svg .base { stroke: var(--soft); } svg .spread { stroke: var(--ink); stroke-width: 1.5; }
svg .mark { stroke: var(--ink); stroke-dasharray: 3 3; }
svg .ours { fill: var(--ours); } svg .theirs { fill: var(--theirs); } svg .floor { fill: var(--floor); }
.key { display: inline-block; width: .75em; height: .75em; border-radius: 2px; margin: 0 .35em 0 1em; }
.key.ours { background: var(--ours); } .key.theirs { background: var(--theirs); }
.key.floor { background: var(--floor); }
@media print { :root { color-scheme: light; --page: #fff; --ink: #000; --soft: #444; --line: #bbb; --tint: #fff;
  --ours: #2a78d6; --theirs: #b0622a; --floor: #9b9a94; --alarm: #a32020; }
  body { margin: 0; max-width: none; font-size: 10pt; } figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  table { font-size: 8pt; white-space: normal; } .wide { overflow: visible; }
  .key, svg rect { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

CASES_METHOD = (
    "The server is alone in a process, with connections that have shaken hands; its clients are in another process, on "
    "another processor if there is one, and do nothing but read and answer pings, in C. They never sleep, unless "
    "--sleep or --tick was given or there is no processor for them alone.",
    "All methods take turns in one run: in rounds, each of which has a turn of every method, in shuffled order. What "
    "else the machine does meets all of them alike. The first call of a turn is not counted, so that each method finds "
    "the caches as it leaves them itself.",
    "Between two calls, the server waits until the clients have read every message; garbage is collected before a "
    "turn.",
    "With cold caches, the server walks through more memory than they hold before each call, and every call counts. "
    "With a tick, it sleeps after each call, and its processor time until the next one is compared. In both cases each "
    "method has connections of its own; otherwise methods share those of their server.",
    "The floor is a bare loop of non-blocking send() in C over the same sockets, of a frame that was made before: what "
    "the kernel takes for itself. Efficiency is its time divided by that of a method in the same round; the median of "
    "all rounds is shown. What is missing to 1 is what could be gained at most without another kernel interface.",
    "Bars and us/client are medians over all counted calls; lines over the bars are quartiles: half of all calls took "
    "something between their ends. Means are not shown, since a few interruptions would decide them.",
    "A call is measured from its beginning until it returns, or, of a coroutine, until all its sends are done. What is "
    "left to the event loop after that is not in it, but in drained: until the last byte has arrived.",
    "Before the rounds, it is tried whether the clients read faster than the server writes: the line above each table "
    "says who was the bottleneck. Where it was the clients, drained times are theirs.",
)

SCENARIOS_METHOD = (
    "Each way is played in a fresh process, with its clients in another one, one way after the other: no rounds, so "
    "what else the machine did may have met one of them only. Frameworks are the exception: there, the loop, wsfast "
    "and the floor take turns within one process.",
    "Each number is of one run, without a spread. Play it again before you believe a small difference.",
)


def render(content: Mapping[str, Any], comparison: Comparison | None, *, command: str, when: str) -> str:
    """Return the page.

    Args:
        content: What `--json` writes.
        comparison: With an earlier run, if there is one.
        command: The command line.
        when: When this was measured.
    """
    parts = [
        "<h1>wsfast bench</h1>",
        f'<p class="soft">{escape(when)}, wsfast {escape(__version__)}: <code>{escape(command)}</code></p>',
        *_machine(content),
        *_overview(content.get("cases", ())),
    ]
    if comparison is not None:
        parts += _comparison(comparison)
    for entry in content.get("cases", ()):
        parts += _case(entry)
    for entry in content.get("memory", ()):
        parts += _memory(entry)
    for entry in content.get("scenarios", ()):
        parts += _scenario(entry)
    parts += _method(content)
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>wsfast bench, {escape(when)}</title>\n<style>\n{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


# ---- Sections


def _machine(content: Mapping[str, Any]) -> Iterable[str]:
    bound = content["processors"]
    processors = None if bound is None else (bound["server"], bound["clients"])
    yield "<h2>Machine and versions</h2>"
    yield _lines(describe_machine(content["machine"], content["versions"], processors))
    yield (
        '<p class="soft">Times are of this machine, and of what else ran on it: from run to run they change, and '
        "ratios within one run less.</p>"
    )


def _summaries(entry: Mapping[str, Any]) -> dict[str, Summary]:
    return {name: Summary(**method["summary"]) for name, method in entry["methods"].items()}


def _overview(entries: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Tell the most important number of all cases in one table."""
    if not entries:
        return
    summaries = [_summaries(entry) for entry in entries]
    cases = [Case.from_json(entry["case"]) for entry in entries]
    yield "<h2>Overview</h2>"
    yield _table(tabulate_overview(cases, summaries))
    yield _lines(
        ["In brackets: how many times as fast as websockets. With ticks: the server's processor time."], "soft"
    )
    told = sum(bool(_alarms(entry)) for entry in entries)
    if told:
        yield (
            f'<p class="alarm">{told} of {len(entries)} cases {"has" if told == 1 else "have"} warnings; '
            "read them below before you believe the numbers.</p>"
        )


def _alarms(entry: Mapping[str, Any]) -> list[str]:
    lines = [*judge(Case.from_json(entry["case"]), _verdict(entry)), *entry["warnings"]]
    return [line for line in lines if line.startswith("WARNING")]


def _verdict(entry: Mapping[str, Any]) -> Verdict:
    return Verdict(**{key: value for key, value in entry["verdict"].items() if key != "server_is_the_bottleneck"})


def _case(entry: Mapping[str, Any]) -> Iterable[str]:
    case, summaries = Case.from_json(entry["case"]), _summaries(entry)
    yield f"<h2>{escape(str(case))}</h2>"
    yield f'<p class="soft">{case.rounds} rounds of {case.calls} calls</p>'
    yield _lines([*judge(case, _verdict(entry)), *entry["warnings"], *_remarks(case, entry, summaries)])
    times = [
        Bar(name, judged(case, one), METHODS[name].group, (one.lower, one.upper)) for name, one in summaries.items()
    ]
    what = "Processor time of the server" if case.tick else "Time of a call"
    yield _figure(f"{what}, us per client and message: median, and quartiles", times)
    efficiencies = [
        Bar(name, one.efficiency, METHODS[name].group) for name, one in summaries.items() if one.efficiency is not None
    ]
    if efficiencies:
        yield _figure(
            "Efficiency: the floor's time divided by that of the method; 1 is the floor", efficiencies, mark=1
        )
    yield _table(tabulate(case, summaries, quartiles=True))
    yield _lines(explain(case, summaries), "soft")


def _remarks(case: Case, entry: Mapping[str, Any], summaries: Mapping[str, Summary]) -> Iterable[str]:
    """Say what else tells whether to believe the numbers of a case."""
    calls = case.clients * case.rounds * case.calls
    for name, method in entry["methods"].items():
        short = method["samples"]["short"]
        if name.startswith("floor") and not short:
            yield f"the kernel took all of {calls} sends of {name} at once: the sockets had room"
    if "floor" not in summaries:
        yield "there is no floor, and so no efficiency: the extension is absent, or it was not asked for"
    if "websockets" not in summaries:
        yield "websockets was not measured: nothing is told of how many times as fast as it the others are"


def _memory(entry: Mapping[str, Any]) -> Iterable[str]:
    case = Case.from_json(entry["case"])
    weights = {
        way: Weight(**{key: value for key, value in weight.items() if key != "bytes_per_client"})
        for way, weight in entry["servers"].items()
    }
    yield f"<h2>{escape(f'memory: {case}')}</h2>"
    bars = [Bar(way, weight.each / 2**10, METHODS[WAYS[way].method].group) for way, weight in weights.items()]
    yield _figure("Resident memory of the server, KiB per client", bars)
    yield _table(tabulate_memory(weights))
    yield _lines([MEMORY, *(f"{way}: {WAYS[way].help}" for way in weights)], "soft")


def _scenario(entry: Mapping[str, Any]) -> Iterable[str]:
    name, rows = entry["scenario"], entry["rows"]
    told = SCENARIOS[name].tell(rows)
    title = f"{name}: {entry['title']}, {entry['loop']}"
    yield f"<h2>{escape(title)}</h2>"
    yield _lines(told.warnings)
    drawn = SCENARIOS[name].draw(rows)
    yield _figure(drawn.quantity, [Bar(label, value, group) for label, group, value in drawn.bars])
    yield _table(told.table)
    yield _lines([told.legend], "soft")


def _comparison(comparison: Comparison) -> Iterable[str]:
    yield f"<h2>Compared with {escape(comparison.name)}</h2>"
    if comparison.differences:
        yield '<p class="alarm">These differ, and may explain whatever else does:</p>'
        yield _table([["what", "before", "now"], *map(list, comparison.differences)])
    else:
        yield "<p>Machine, processors and versions are the same.</p>"
    for case in comparison.cases:
        yield f"<h3>{escape(case.title)}</h3>"
        yield _lines([f"before: {line}" for line in case.warnings])
        yield _table(tabulate_case(case))
        yield _others(case)
    if comparison.cases:
        yield _lines([CAVEAT], "soft")
    for scene in comparison.scenes:
        yield f"<h3>{escape(scene.title)}</h3>"
        yield _table(tabulate_scene(scene))
        yield _others(scene)
    if comparison.scenes:
        yield _lines([SINGLE], "soft")
    if not comparison.cases and not comparison.scenes:
        yield "<p>No case is in both runs.</p>"
    yield _lines([f"only before: {title}" for title in comparison.only_before])
    yield _lines([f"only now: {title}" for title in comparison.only_after])


def _others(change: CaseChange | SceneChange) -> str:
    both = (("before", change.only_before), ("now", change.only_after))
    return _lines([f"only {which}: {', '.join(names)}" for which, names in both if names])


def _method(content: Mapping[str, Any]) -> Iterable[str]:
    yield "<h2>How it is measured</h2>"
    points = [*(CASES_METHOD if content.get("cases") else ()), *(SCENARIOS_METHOD if content.get("scenarios") else ())]
    yield "<ul>" + "".join(f"<li>{escape(point)}</li>" for point in points) + "</ul>"
    names = dict.fromkeys(name for entry in content.get("cases", ()) for name in entry["methods"])
    if names:
        yield _table([["method", "what it is"], *([name, METHODS[name].help] for name in names)])


# ---- Elements


def _lines(lines: Iterable[str], kind: str = "") -> str:
    """Return a paragraph for each line; a warning is to be seen as one."""
    marked = []
    for line in lines:
        style = "alarm" if "WARNING" in line else kind
        marked.append(f'<p class="{style}">{escape(line)}</p>' if style else f"<p>{escape(line)}</p>")
    return "\n".join(marked)


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table of rows of which the first are the heads."""
    heads = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in rows[0])
    body = "\n".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows[1:]
    )
    return f'<div class="wide"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a chart."""

    label: str
    value: float
    group: str
    """`ours`, `theirs` or `floor`."""
    spread: tuple[float, float] | None = None


def _figure(caption: str, bars: Sequence[Bar], mark: float | None = None) -> str:
    names = {"ours": "wsfast", "theirs": "others", "floor": "floor in C"}
    groups = [group for group in names if any(bar.group == group for bar in bars)]
    key = "".join(f'<span class="key {group}"></span>{names[group]}' for group in groups) if len(groups) > 1 else ""
    return f"<figure>\n<figcaption>{escape(caption)}{key}</figcaption>\n{draw_bars(bars, caption, mark)}\n</figure>"


WIDTH, ROW, THICKNESS, FOOT = 760, 24, 14, 26
"""Of a chart, in units of its own: width, height of a row, of a bar, and of what is below the rows."""


def draw_bars(bars: Sequence[Bar], title: str, mark: float | None = None) -> str:
    """Return a chart of horizontal bars that begin at 0, as SVG.

    Args:
        bars: Bars, from top to bottom.
        title: What is shown, for those who cannot see it.
        mark: Where to draw a line across all bars.
    """
    left = 16 + 6.6 * max((len(bar.label) for bar in bars), default=0)
    right = 76  # for the numbers
    most = max((max(bar.value, *(bar.spread or ())) if bar.spread else bar.value for bar in bars), default=0)
    step, most = _ticks(max(most, mark or 0))
    scale = (WIDTH - left - right) / most
    bottom = ROW * len(bars)
    parts = [f'<svg viewBox="0 0 {WIDTH} {bottom + FOOT}" role="img" aria-label="{escape(title)}">']
    for tick in range(round(most / step) + 1):
        x = left + tick * step * scale
        parts.append(f'<line class="{"grid" if tick else "base"}" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick * step:.10g}</text>')
    for index, bar in enumerate(bars):
        middle = ROW * index + ROW / 2
        length = max(bar.value, 0) * scale
        end = left + length
        told = f"{bar.label}: {bar.value:.2f}"
        parts.append(f"<g><title>{escape(told + _spread(bar))}</title>")
        parts.append(f'<text x="{left - 8:.1f}" y="{middle + 4:.1f}" text-anchor="end">{escape(bar.label)}</text>')
        parts.append(
            f'<rect class="{bar.group}" x="{left:.1f}" y="{middle - THICKNESS / 2:.1f}" width="{length:.1f}" '
            f'height="{THICKNESS}" rx="2"/>'
        )
        if bar.spread is not None:
            low, high = (left + value * scale for value in bar.spread)
            parts.append(
                f'<path class="spread" fill="none" d="M{low:.1f} {middle:.1f}H{high:.1f}'
                f'M{low:.1f} {middle - 3:.1f}v6M{high:.1f} {middle - 3:.1f}v6"/>'
            )
            end = max(end, high)
        parts.append(f'<text x="{end + 6:.1f}" y="{middle + 4:.1f}">{_short(bar.value)}</text></g>')
    if mark is not None:
        x = left + mark * scale
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom}"/>')
    parts.append("</svg>")
    return "\n".join(parts)


def _spread(bar: Bar) -> str:
    return "" if bar.spread is None else f", quartiles {bar.spread[0]:.2f} to {bar.spread[1]:.2f}"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.2f}"


def _ticks(most: float) -> tuple[float, float]:
    """Return a round distance between ticks, and the first of them at or after the largest value."""
    if most <= 0:
        return 1, 1
    rough = most / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return step, math.ceil(most / step - 1e-9) * step
