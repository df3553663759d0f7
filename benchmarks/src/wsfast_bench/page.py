"""The report of a run: one HTML page that needs no network, no script and no other file.

It is made of what `--json` writes, so both have the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from wsfast import __version__

from .answers import answer
from .cases import WAYS, Case, Verdict, Weight
from .chart import Bar, draw_figure
from .comparison import CAVEAT, SINGLE, CaseChange, Comparison, SceneChange, tabulate_case, tabulate_scene
from .methods import METHODS
from .report import (
    MEMORY,
    Summary,
    describe_machine,
    explain,
    judge,
    judged,
    read_summaries,
    tabulate,
    tabulate_memory,
    tabulate_overview,
)
from .scenarios import SCENARIOS

__all__ = ["render"]

STYLE = """\
:root { color-scheme: light dark; --page: #fcfcfa; --ink: #1b1b19; --soft: #5e5d58; --line: #dcdbd5; --tint: #f2f1ec;
  --ours: #2a78d6; --theirs: #b0622a; --floor: #7f7e78; --alarm: #a32020; }
@media (prefers-color-scheme: dark) { :root { --page: #191918; --ink: #eeede8; --soft: #aeada7; --line: #3b3b38;
  --tint: #232321; --ours: #5b9df0; --theirs: #d98a4e; --floor: #8f8e88; --alarm: #ff8f85; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 68rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { margin: 0; font-size: 1.4rem; } h2 { margin: 2.5rem 0 .5rem; font-size: 1.25rem; }
h2.part { margin-top: 3.5rem; border-top: 1px solid var(--line); padding-top: 1.25rem; font-size: 1.1rem; }
h3 { margin-bottom: .25rem; font-size: 1rem; } .answer { margin: 0; max-width: 46rem; font-size: 1.1rem; }
p, li { max-width: 60rem; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); gap: 0 3rem; }
ul { padding-left: 1.25rem; }
.soft, figcaption { color: var(--soft); } .alarm { color: var(--alarm); font-weight: 600; }
.wide { overflow-x: auto; max-width: 100%; } .wide:focus-visible { outline: 2px solid var(--ours); }
code { font: .9em ui-monospace, monospace; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem; white-space: nowrap; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; } thead th { color: var(--soft); font-weight: 500; }
tbody th { position: sticky; left: 0; background: var(--page); font-weight: 500; }
tbody tr:hover > * { background: var(--tint); }
figure { margin: 1rem 0; max-width: 46rem; } figcaption { margin-bottom: .5rem; font-size: .87rem; }
svg { display: block; font: 13px system-ui, sans-serif; overflow: visible; }
svg text { fill: var(--ink); stroke: var(--page); stroke-width: 3px; paint-order: stroke; stroke-linejoin: round; }
  svg .tick { fill: var(--soft); font-size: 12px; } svg .grid { stroke: var(--line); }
svg .base { stroke: var(--soft); } svg .spread { stroke: var(--ink); stroke-width: 1.5; }
svg .mark { stroke: var(--ink); stroke-dasharray: 3 3; }
svg .ours { fill: var(--ours); } svg .theirs { fill: var(--theirs); } svg .floor { fill: var(--floor); }
.key { margin-left: .75em; white-space: nowrap; }
.key i { display: inline-block; width: .75em; height: .75em; border-radius: 2px; margin-right: .35em; }
.key .ours { background: var(--ours); } .key .theirs { background: var(--theirs); }
.key .floor { background: var(--floor); }
@media print { :root { color-scheme: light; --page: #fff; --ink: #000; --soft: #444; --line: #bbb; --tint: #fff;
  --ours: #2a78d6; --theirs: #b0622a; --floor: #7f7e78; --alarm: #a32020; }
  body { padding: 0; max-width: none; font-size: 10pt; } figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  table { font-size: 8pt; white-space: normal; } .wide { overflow: visible; }
  .key i, svg rect { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

CASES_METHOD = (
    "The server has a process of its own, and so do its clients, on another processor if there is one. The clients "
    "only read and answer pings, in C. They never sleep, unless --sleep or --tick was given or they have no processor "
    "of their own.",
    "All methods take turns in one run. In each round, every method has a turn, in shuffled order: if the machine is "
    "busy with something else, that affects all methods alike. The first call of a turn is not counted, so each method "
    "finds the caches as it leaves them itself.",
    "Between two calls, the server waits until the clients have read every message. Garbage is collected before each "
    "turn.",
    "With cold caches (--cold), the server walks through more memory than the caches hold before each call, and every "
    "call counts. With a tick (--tick), it sleeps after each call, and the compared figure is its processor time until "
    "the next one. In both cases each method has connections of its own; otherwise methods with the same server share "
    "connections.",
    "The floor is a bare loop of non-blocking send() in C over the same sockets, of a frame that is ready: the cost of "
    "the kernel alone. Efficiency is the time of the floor divided by the time of a method in the same round; the "
    "table shows the median of all rounds. The difference to 1 is the most that a better library could still gain.",
    "Bars and us/client are medians of all counted calls. The thin lines over bars are quartiles: half of all calls "
    "took a time between their ends. There are no means, because a few interruptions would decide them.",
    "The time of a call ends when it returns, or, for a coroutine, when all its sends are done. Work that the event "
    "loop does after that counts in drained: the time until the last byte has arrived.",
    "Before the rounds, a trial finds out whether the clients read faster than the server writes. The line above each "
    "table has the result. Where the clients were the bottleneck, drained is their time.",
)

SCENARIOS_METHOD = (
    "Most scenarios start a new process for each method, with its clients in another one, one method after the other. "
    "There are no rounds, so other work on the machine may have affected only one of them. In scenarios that say so, "
    "all methods take turns in one process.",
    "Each number is of one run, without a spread. Play the scenario again before you believe a small difference.",
)


def render(content: Mapping[str, Any], comparison: Comparison | None, *, command: str, when: str) -> str:
    """Return the page.

    Args:
        content: The content of the file that `--json` writes.
        comparison: With an earlier run, if there is one.
        command: The command line.
        when: When this was measured.
    """
    parts = [
        "<h1>wsfast bench</h1>",
        f'<p class="soft">{escape(when)}, wsfast {escape(__version__)}: <code>{escape(command)}</code></p>',
        *_alarm(content.get("cases", ())),
        *_answers(content),
        *_overview(content.get("cases", ())),
        *_machine(content),
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


def _alarm(entries: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Say how many cases have warnings."""
    told = sum(bool(_alarms(entry)) for entry in entries)
    if told:
        yield (
            f'<p class="alarm">{told} of {len(entries)} cases {"has" if told == 1 else "have"} warnings. '
            "Read them below before you believe the numbers.</p>"
        )


def _answers(content: Mapping[str, Any]) -> Iterable[str]:
    """Answer each question by one sentence and one chart."""
    yield '<div class="answers">'
    for one in answer(content):
        chart = draw_figure(one.quantity, one.bars, one.mark, "range")
        sentence = f'<p class="answer">{escape(one.sentence)}</p>'
        yield f"<section>\n<h2>{escape(one.question)}</h2>\n{sentence}\n{chart}\n</section>"
    yield "</div>"


def _machine(content: Mapping[str, Any]) -> Iterable[str]:
    bound = content["processors"]
    processors = None if bound is None else (bound["server"], bound["clients"])
    yield _head("Machine and versions")
    yield _lines(describe_machine(content["machine"], content["versions"], processors))
    yield (
        '<p class="soft">Times differ from machine to machine and from run to run. Ratios within one run differ '
        "less.</p>"
    )


def _overview(entries: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Show the most important number of all cases in one table."""
    if not entries:
        return
    summaries = [read_summaries(entry) for entry in entries]
    cases = [Case.from_json(entry["case"]) for entry in entries]
    yield _head("Overview")
    yield _table(tabulate_overview(cases, summaries), "Overview")
    yield _lines(
        ["In brackets: how many times as fast as websockets. With ticks: the processor time of the server."], "soft"
    )


def _alarms(entry: Mapping[str, Any]) -> list[str]:
    lines = [*judge(Case.from_json(entry["case"]), _verdict(entry)), *entry["warnings"]]
    return [line for line in lines if line.startswith("WARNING")]


def _head(title: str) -> str:
    return f'<h2 class="part">{escape(title)}</h2>'


def _verdict(entry: Mapping[str, Any]) -> Verdict:
    return Verdict(**{key: value for key, value in entry["verdict"].items() if key != "server_is_the_bottleneck"})


def _case(entry: Mapping[str, Any]) -> Iterable[str]:
    case, summaries = Case.from_json(entry["case"]), read_summaries(entry)
    yield _head(str(case))
    yield f'<p class="soft">{case.rounds} rounds of {case.calls} calls</p>'
    yield _lines([*judge(case, _verdict(entry)), *entry["warnings"], *_remarks(case, entry, summaries)])
    ordered = dict(sorted(summaries.items(), key=lambda item: judged(case, item[1])))
    times = [Bar(name, judged(case, one), METHODS[name].group, (one.lower, one.upper)) for name, one in ordered.items()]
    quantity = "Processor time of the server" if case.tick else "Time of a call"
    yield draw_figure(f"{quantity}, us per client and message: median, and quartiles. Shorter is better.", times)
    efficiencies = [
        Bar(name, one.efficiency, METHODS[name].group)
        for name, one in ordered.items()
        if one.efficiency is not None and METHODS[name].group != "floor"
    ]
    if efficiencies:
        caption = "Efficiency: the time of the floor divided by the time of the method. Longer is better."
        yield draw_figure(caption, efficiencies, 1)
    yield _table(tabulate(case, summaries, full=True), str(case))
    yield _lines(explain(case, summaries), "soft")


def _remarks(case: Case, entry: Mapping[str, Any], summaries: Mapping[str, Summary]) -> Iterable[str]:
    """Say whether the numbers of a case can be believed."""
    calls = case.clients * case.rounds * case.calls
    for name, method in entry["methods"].items():
        short = method["samples"]["short"]
        if name.startswith("floor") and not short:
            yield f"The kernel took all of {calls} sends of {name} at once: the sockets had room."
    if "floor" not in summaries:
        yield "There is no floor, and so no efficiency: the extension is absent, or the floor was not asked for."
    if "websockets" not in summaries:
        yield "websockets was not measured, so the table does not compare with it."


def _memory(entry: Mapping[str, Any]) -> Iterable[str]:
    case = Case.from_json(entry["case"])
    weights = {
        way: Weight(**{key: value for key, value in weight.items() if key != "bytes_per_client"})
        for way, weight in entry["servers"].items()
    }
    yield _head(f"memory: {case}")
    bars = [Bar(way, weight.each / 2**10, METHODS[WAYS[way].method].group) for way, weight in weights.items()]
    yield draw_figure(
        "Resident memory of the server, KiB per client. Shorter is better.", sorted(bars, key=lambda bar: bar.value)
    )
    yield _table(tabulate_memory(weights), f"memory: {case}")
    yield _lines([MEMORY, *(f"{way}: {WAYS[way].help}" for way in weights)], "soft")


def _scenario(entry: Mapping[str, Any]) -> Iterable[str]:
    name, rows = entry["scenario"], entry["rows"]
    results = SCENARIOS[name].results(rows)
    title = f"{name}: {entry['title']}, {entry['loop']}"
    yield _head(title)
    yield _lines(results.warnings)
    drawn = SCENARIOS[name].draw(rows)
    yield draw_figure(drawn.quantity, [Bar(label, value, group) for label, group, value in drawn.bars])
    yield _table(results.table, title)
    yield _lines([results.legend], "soft")


def _comparison(comparison: Comparison) -> Iterable[str]:
    yield _head(f"Compared with {comparison.name}")
    if comparison.differences:
        yield '<p class="alarm">These differ, and may be the reason for other differences:</p>'
        rows = [["what", "before", "now"], *map(list, comparison.differences)]
        yield _table(rows, "Differences of machine and versions")
    else:
        yield "<p>Machine, processors and versions are the same.</p>"
    for case in comparison.cases:
        yield f"<h3>{escape(case.title)}</h3>"
        yield _lines([f"before: {line}" for line in case.warnings])
        yield _table(tabulate_case(case), f"{case.title}, compared")
        yield _others(case)
    if comparison.cases:
        yield _lines([CAVEAT], "soft")
    for scene in comparison.scenes:
        yield f"<h3>{escape(scene.title)}</h3>"
        yield _table(tabulate_scene(scene), f"{scene.title}, compared")
        yield _others(scene)
    if comparison.scenes:
        yield _lines([SINGLE], "soft")
    if not comparison.cases and not comparison.scenes:
        yield "<p>The two runs have no case in common.</p>"
    yield _lines([f"only before: {title}" for title in comparison.only_before])
    yield _lines([f"only now: {title}" for title in comparison.only_after])


def _others(change: CaseChange | SceneChange) -> str:
    both = (("before", change.only_before), ("now", change.only_after))
    return _lines([f"only {which}: {', '.join(names)}" for which, names in both if names])


def _method(content: Mapping[str, Any]) -> Iterable[str]:
    yield _head("How it is measured")
    points = [*(CASES_METHOD if content.get("cases") else ()), *(SCENARIOS_METHOD if content.get("scenarios") else ())]
    yield "<ul>" + "".join(f"<li>{escape(point)}</li>" for point in points) + "</ul>"
    names = dict.fromkeys(name for entry in content.get("cases", ()) for name in entry["methods"])
    if names:
        yield _table([["method", "what it is"], *([name, METHODS[name].help] for name in names)], "Methods")


# ---- Elements


def _lines(lines: Iterable[str], kind: str = "") -> str:
    """Return a paragraph for each line. A warning stands out."""
    marked = []
    for line in lines:
        style = "alarm" if "WARNING" in line else kind
        marked.append(f'<p class="{style}">{escape(line)}</p>' if style else f"<p>{escape(line)}</p>")
    return "\n".join(marked)


def _table(rows: Sequence[Sequence[str]], title: str) -> str:
    """Return a table in a box of its own that scrolls sideways.

    Args:
        rows: Rows, the first of which are the heads.
        title: The subject of the table, for screen readers.
    """
    heads = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in rows[0])
    body = "\n".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows[1:]
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(title)}"><table>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )
