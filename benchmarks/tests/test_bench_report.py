"""The page and the comparison of `wsfast bench`: of hand-made files with known ratios, and of small real runs."""

from __future__ import annotations

import copy
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from wsfast.cli import UnfitError, main
from wsfast_bench import chart, report
from wsfast_bench._library import extension_present
from wsfast_bench.answers import answer
from wsfast_bench.cases import Case, Result, Samples, Verdict, Weight
from wsfast_bench.chart import Bar, draw_bars
from wsfast_bench.comparison import compare, tabulate_case, tabulate_scene
from wsfast_bench.methods import METHODS
from wsfast_bench.page import render
from wsfast_bench.runs import load, parse
from wsfast_bench.scenarios import SCENARIOS

VOID = {"meta", "br", "hr", "img", "input", "link"}
MACHINE = {"processor": "Z80", "processors": 2, "system": "CP/M 2", "architecture": "z80", "implementation": "cpython"}
VERSIONS = {"python": "3.11.7", "wsfast": "0.1.0", "websockets": "17.4"}


class Page(HTMLParser):
    """Reads a page: its elements must be closed in order; tables are lists of lists of the text of their cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute of {tag} is there twice"
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def table(self, *heads: str) -> dict[str, dict[str, str]]:
        """Return the first table with these heads: its cells by the first cell of their row and their head."""
        for head, *rows in self.tables:
            if set(heads) <= set(head):
                return {row[0]: dict(zip(head, row, strict=True)) for row in rows}
        raise AssertionError(f"there is no table with {heads}")


def check(text: str) -> Page:
    """Read a page, and see to it that it needs nothing from elsewhere."""
    found = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert not found.tags & {"script", "link", "img", "iframe", "object", "embed", "use", "image", "base"}
    names = {name for name, _ in found.attributes}
    assert not names & {"src", "href", "srcset", "xlink:href", "style", "data", "action"}
    assert not any(name.startswith("on") for name in names)
    assert not re.search(r"https?:|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    return found


def content_of(
    methods: dict[str, list[list[int]]], *, clients: int = 10, short: int = 0, behind: int = 1000
) -> dict[str, Any]:
    """Return what `--json` writes of one case in which calls of the methods took so many nanoseconds."""
    rounds = len(next(iter(methods.values())))
    case = Case(clients, 64, "asyncio", "text", tuple(methods), rounds, 1, "list")
    samples = {
        name: Samples(call=calls, cpu=calls, drained=calls, short=short if name == "floor" else 0)
        for name, calls in methods.items()
    }
    verdict = Verdict(sender="floor", clients=clients, drained=1e6, size=66, behind=behind, call=1_000_000)
    weights = {case: {"websockets": Weight(clients, 1 << 20, 2 << 20)}}
    content = report.collect(MACHINE, VERSIONS, (1, 0), [Result(case, samples, verdict)], weights)
    loaded: dict[str, Any] = json.loads(json.dumps(content))
    return loaded


def even(nanoseconds: int, rounds: int = 8) -> list[list[int]]:
    """Return rounds of one call each, in which the machine is the slower the later it is."""
    return [[nanoseconds * (100 + number) // 100] for number in range(rounds)]


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


# ---- The page


@pytest.mark.parametrize("loop", ["asyncio"])
def test_report_of_a_run(loop: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers of the page are those of the file, and both are those of the terminal."""
    path, file = tmp_path / "bench.html", tmp_path / "bench.json"
    argv = ["bench", "--clients", "5", "--rounds", "2", "--calls", "2", "--loops", loop, "--methods"]
    argv += ["floor,wsfast,wsfast-pure,websockets", "--json", str(file), "--report", str(path)]
    if sys.platform == "linux":
        argv += ["--compression", "none,deflate"]
    assert main(argv) == 0
    output = capsys.readouterr().out
    found = check(path.read_text())
    content = json.loads(file.read_text())
    overview = found.tables[0]
    assert overview[0][1:] == [str(Case.from_json(entry["case"])) for entry in content["cases"]]
    tables = [table for table in found.tables if "quartiles" in table[0]]
    for column, (entry, (head, *rows)) in enumerate(zip(content["cases"], tables, strict=True), start=1):
        methods = entry["methods"]
        assert [row[0] for row in rows] == sorted(methods, key=lambda name: methods[name]["summary"]["call"])
        for row in rows:
            summary = entry["methods"][row[0]]["summary"]
            cells = dict(zip(head, row, strict=True))
            assert cells["us/client"] == f"{summary['call']:.2f}"
            assert cells["quartiles"] == f"{summary['lower']:.2f} to {summary['upper']:.2f}"
            assert cells["p50 ms"] == f"{summary['p50']:.2f}"
            assert cells["p99 ms"] == f"{summary['p99']:.2f}"
            assert cells["CPU us"] == f"{summary['cpu']:.2f}"
            assert cells["drained ms"] == f"{summary['drained']:.2f}"
            assert cells["x websockets"] == f"{summary['faster']:.2f}"
            times = "" if row[0] == "websockets" else f" ({summary['faster']:.2f})"
            assert next(line for line in overview if line[0] == row[0])[column] == cells["us/client"] + times
            # In the chart, for the mouse.
            assert f"{row[0]}: {summary['call']:.2f}, quartiles {summary['lower']:.2f} to" in found.text
            assert summary["lower"] <= summary["call"] <= summary["upper"]
        for line in entry["warnings"]:
            assert line in found.text
    for name, version in content["versions"].items():
        assert f"{name} {version}" in found.text
    for line in output.splitlines():
        if "clients drain at" in line:
            assert line in found.text
    assert "All methods take turns" in found.text
    assert f"--report {path}" in found.text


def test_report_of_threads() -> None:
    """The overview has a column for each number of threads, with times as fast and efficiencies."""
    one, four = (
        content_of({"floor": even(1000), "channel": even(own), "websockets": even(4000)}) for own in (1250, 400)
    )
    four["cases"][0]["case"]["threads"] = 4
    text = render(one | {"cases": one["cases"] + four["cases"]}, None, command="", when="")
    (head, *rows), *_ = check(text).tables
    assert head == ["us/client", *(f"10 clients, 64 B text, asyncio{how}, no keepalive" for how in ("", ", 4 threads"))]
    assert rows == [
        ["floor", "0.10 (4.00)", "0.10 (4.00)"],
        ["channel", "0.13 (3.20)", "0.04 (10.00)"],
        ["websockets", "0.41", "0.41"],
        ["efficiency of channel", "0.80", "2.50"],
    ]
    assert "Methods of wsfast send with 4 threads, all others and the floors with one." in text


def test_report_of_ticks() -> None:
    """With ticks it is the processor time that is compared, and nothing is said of how late the clients are."""
    content = content_of({"floor": even(1000), "websockets": even(4000)}, behind=9_000_000)
    case = Case.from_json(content["cases"][0]["case"] | {"tick": 20})
    methods = {
        name: Samples(call=[[7_000]] * 8, cpu=method["samples"]["cpu"], drained=[[7_000]] * 8)
        for name, method in content["cases"][0]["methods"].items()
    }
    verdict = Verdict(sender="floor", clients=10, drained=1e6, size=66, behind=9_000_000, call=1_000_000)
    content = report.collect(MACHINE, VERSIONS, None, [Result(case, methods, verdict)], {})
    text = render(json.loads(json.dumps(content)), None, command="", when="")
    found = check(text)
    row = found.table("CPU us", "quartiles")["websockets"]
    assert (row["CPU us"], row["us/client"], row["efficiency"]) == ("0.41", "0.70", "0.25")
    assert "drained ms" not in row
    assert found.table("us/client")["websockets"][str(case)] == "0.41"
    assert "bottleneck" not in found.text.partition("How it is measured")[0]
    assert parse(content).cases.popitem()[1].methods["websockets"][0] == [pytest.approx(0.4)]


def test_report_of_memory() -> None:
    """It has a table and a chart."""
    text = render(content_of({"floor": even(1000)}), None, command="", when="")
    found = check(text)
    assert found.table("KiB/client")["websockets"]["KiB/client"] == "102.4"
    assert "websockets: 102.40" in found.text


def test_report_escapes_odd_names() -> None:
    """Whatever a name has in it is text on the page."""
    content = content_of({"floor": even(1000), "websockets": even(2000)})
    odd = "<script>alert(1)</script> & \"x\" 'y' ü"
    content["machine"]["processor"] = odd
    content["versions"]["web<b>sockets"] = odd
    content["cases"][0]["warnings"] = [f"WARNING: {odd}"]
    content["cases"][0]["case"]["collection"] = odd
    other = parse(content_of({"floor": even(1000)}), odd)
    comparison = compare(other, parse(content))
    found = check(render(content, comparison, command=f"wsfast {odd}", when=odd))
    assert found.text.count(odd) >= 6


def test_report_tells_who_was_the_bottleneck() -> None:
    """A server that waits for its clients, and a floor that is none, are told of, first of all."""
    content = content_of({"floor": even(1000), "wsfast": even(1000)}, short=3, behind=9_000_000)
    text = check(render(content, None, command="", when="")).text
    assert "1 of 1 cases has warnings" in text
    assert "the clients may be the bottleneck; then drained is their time" in text
    assert "WARNING: the kernel did not take all of 3 of 80 sends of floor, so it did less work than the others" in text
    assert "websockets was not measured" in text
    content = content_of({"floor": even(1000), "websockets": even(1000)})
    text = check(render(content, None, command="", when="")).text
    assert "have warnings" not in text
    assert "has warnings" not in text
    assert "the server is the bottleneck" in text
    assert "The kernel took all of 80 sends of floor at once" in text
    assert "There is no floor" not in text
    text = check(render(content_of({"websockets": even(1000)}), None, command="", when="")).text
    assert "There is no floor" in text
    assert "Efficiency: the time of the floor" not in text


# ---- The answers at its top


def told(content: dict[str, Any]) -> dict[str, str]:
    """Return the questions that a page answers, with the sentences, in their order."""
    return {one.question: one.sentence for one in answer(content)}


def test_answers() -> None:
    """They tell the ratios of a run, from the least to the most of all settings, and stand first on the page."""
    one, two = (
        content_of({"floor": even(1000), "wsfast": even(own), "channel": even(1000)} | others)
        for own, others in (
            (1250, {"websockets": even(4000), "picows": even(2500)}),
            (2000, {"websockets": even(3000), "picows": even(2000)}),
        )
    )
    two["cases"][0]["case"]["clients"] = 20
    both = one | {"cases": one["cases"] + two["cases"]}
    assert told(both) == {
        "How much faster is it?": "wsfast.broadcast() is 1.5 to 3.2 times as fast as websockets.broadcast() and 1.0 to "
        "2.0 times as fast as picows; a Channel is 3.0 to 4.0 times as fast as websockets.broadcast().",
        "How far is it from the kernel?": "A bare loop of send() in C takes 50 to 80 % of the time of "
        "wsfast.broadcast(): a library that makes one system call for each client can be at most 2.00 times as fast.",
    }
    text = render(both, None, command="", when="")
    found = check(text)
    heads = re.findall(r"<h2[^>]*>(.*?)</h2>", text)
    assert heads[:3] == ["How much faster is it?", "How far is it from the kernel?", "Overview"]
    assert "wsfast.broadcast(): 2.35, range 1.50 to 3.20" in found.text
    shown = [label for name, label in found.attributes if name == "aria-label" and label.startswith("Times as fast")]
    assert shown[0].partition("range. ")[2] == (
        "bare loop of send() in C: 3.50; wsfast.Channel: 3.50; wsfast.broadcast(): 2.35; "
        "broadcast() of picows.websockets: 1.55; websockets.broadcast(): 1.00"
    )


def test_answers_of_compression_and_ticks() -> None:
    """Settings that cannot be compared with each other have questions of their own."""
    content = content_of({"wsfast": even(1000), "websockets": even(4000)})
    for settings in ({"compression": "deflate"}, {"tick": 20}):
        again = copy.deepcopy(content["cases"][0])
        again["case"] |= settings
        content["cases"].append(again)
    assert told(content) == {
        "How much faster is it?": "wsfast.broadcast() is 4.0 times as fast as websockets.broadcast().",
        "How much processor time does it save?": "wsfast.broadcast() takes 0.25 times the processor time of "
        "websockets.broadcast().",
        "How much faster is it with compression?": "wsfast.broadcast() is 4.0 times as fast as websockets.broadcast().",
    }


def test_answer_of_slow_clients() -> None:
    """It tells the memory, whether the others got everything, and how long calls take."""
    question = "What does a slow client do to the others?"
    content = scenes("stalled")
    rows = content["scenarios"][0]["rows"]
    for row, (grown, p99) in zip(rows, ((2, 1.0), (8, 1.5), (3, 1.0), (90, 9.0)), strict=True):
        row |= {"grown": grown << 20, "p99": p99, "clients": row["clients"] | {"complete": 5}}
    assert told(content)[question] == (
        "When 1 of 6 clients stop reading, the memory of websockets.broadcast() grows by 90 MiB, and that of a Channel "
        "grows by 8 MiB; all others get every message. The slowest calls of a Channel (99th percentile) take 1.5 times "
        "as long as without them."
    )
    rows.append(rows[1] | {"way": "DropOldest", "grown": 4 << 20, "clients": rows[1]["clients"] | {"complete": 4}})
    sentence = told(content)[question]
    assert "that of a Channel grows by 4 to 8 MiB, depending on its policy; with DropOldest, other clients" in sentence
    assert told(scenes("conflate")) == {}
    assert told(content_of({"websockets": even(1000), "picows": even(1000)})) == {}


# ---- Charts


def rectangles(svg: str) -> list[float]:
    return [float(width) for width in re.findall(r'<rect class="\w+" [^>]*? width="([0-9.]+)%"', svg)]


def test_bars() -> None:
    """Bars begin at 0, and are as long as their numbers."""
    svg = draw_bars([Bar("one", 1, "ours"), Bar("<two>", 2, "theirs", (1, 3)), Bar("none", 0, "floor")], 'a "title"', 1)
    one, two, none = rectangles(svg)
    assert one > 0
    assert two == pytest.approx(2 * one, abs=0.02)
    assert none == 0
    found = Page(svg)
    assert ("aria-label", 'a "title". one: 1.00; <two>: 2.00; none: 0.00') in found.attributes
    assert "<two>: 2.00, quartiles 1.00 to 3.00" in found.text
    start = float(re.findall(r'<rect class="ours" x="([0-9.]+)"', svg)[0])
    mark = float(re.findall(r'<line class="mark" x1="([0-9.]+)%"', svg)[0])
    assert mark == pytest.approx(start + one, abs=0.02)


@pytest.mark.parametrize("value", [0.00012, 0.3, 1.0, 7.0, 99.0, 123456.0])
def test_ticks(value: float) -> None:
    """Ticks are few and round, and the last is not before the largest value."""
    step, last = chart._ticks(value)
    assert last >= value * (1 - 1e-9)
    assert 1 <= round(last / step) <= 10
    assert f"{step:e}"[0] in "125"


def test_no_bars() -> None:
    """A chart of nothing is one all the same."""
    Page(draw_bars([], "nothing"))
    assert rectangles(draw_bars([Bar("a", 0, "ours")], "zero")) == [0]


# ---- The comparison


def change(before: dict[str, Any], after: dict[str, Any]) -> Any:
    (case,) = compare(parse(before, "old.json"), parse(after)).cases
    return case


def test_known_ratios() -> None:
    """A method that takes twice as long is slower, by 2; one that takes as long is not seen to differ."""
    before = content_of({"floor": even(1000), "wsfast": even(1100), "websockets": even(4000), "picows": even(3000)})
    after = content_of({"floor": even(1000), "wsfast": even(2200), "websockets": even(1000), "await": even(9000)})
    case = change(before, after)
    assert case.times["floor"].ratio == 1
    assert case.times["floor"].seen is False
    assert case.times["wsfast"].ratio == pytest.approx(2, rel=1e-3)
    assert case.times["wsfast"].seen is True
    low, high = case.times["wsfast"].interval
    assert 1.9 < low <= 2 <= high < 2.1
    assert case.times["websockets"].ratio == pytest.approx(0.25)
    assert case.efficiencies["wsfast"].ratio == pytest.approx(0.5, rel=1e-3)
    assert case.efficiencies["websockets"].ratio == pytest.approx(4)
    assert (case.only_before, case.only_after) == (["picows"], ["await"])
    rows = {row[0]: row for row in tabulate_case(case)}
    assert rows["floor"][4:] == ["no difference seen", "-", "-", "-", "-"]
    assert (rows["wsfast"][4], rows["wsfast"][-1]) == ("slower", "lower")
    assert (rows["websockets"][4], rows["websockets"][-1]) == ("faster", "higher")
    assert rows["websockets"][1:3] == [f"{4140 / 10 / 1e3:.2f}", f"{1035 / 10 / 1e3:.2f}"]


def test_interval_that_spans_one() -> None:
    """Where rounds differ from each other more than runs do, no difference is seen; and always the same interval."""
    before = content_of({"wsfast": [[1000], [2000], [1100], [1900], [1200], [1800]]})
    after = content_of({"wsfast": [[1050], [2100], [1150], [1950], [1300], [1700]]})
    case = change(before, after)
    low, high = case.times["wsfast"].interval
    assert low < 1 < high
    assert tabulate_case(case)[1][4] == "no difference seen"
    assert case == change(before, after)


def test_few_rounds() -> None:
    """What was measured in a few rounds has no interval."""
    case = change(content_of({"wsfast": even(1000, 4)}), content_of({"wsfast": even(3000, 8)}))
    assert case.times["wsfast"].interval is None
    assert re.fullmatch(r"[23]\.\d\d", tabulate_case(case)[1][3])
    assert tabulate_case(case)[1][4] == "fewer than 5 rounds: not known"


def test_efficiency_of_served_connections() -> None:
    """It is told against the floor of the same sockets if both runs have that, else against the other one."""
    served = {"floor": even(1000), "floor-served": even(2000), "channel": even(4000)}
    plain = {"floor": even(1000), "channel": even(4000)}
    case = change(content_of(served), content_of(served))
    assert case.efficiencies["channel"].before == pytest.approx(0.5)
    assert "floor-served" not in case.efficiencies
    case = change(content_of(served), content_of(plain))
    assert case.efficiencies["channel"].before == case.efficiencies["channel"].after == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clients", 11),
        ("size", 65),
        ("loop", "uvloop"),
        ("type", "binary"),
        ("collection", "set"),
        ("sleep", True),
        ("compression", "deflate"),
        ("burst", 2),
        ("keepalive", True),
        ("cold", True),
        ("tick", 20),
        ("threads", 2),
    ],
)
def test_cases_are_matched_by_their_settings(name: str, value: object) -> None:
    """Nothing is compared that was measured otherwise; it is listed."""
    one, other = content_of({"wsfast": even(1000)}), content_of({"wsfast": even(1000)})
    del one["memory"], other["memory"]
    other["cases"][0]["case"][name] = value
    comparison = compare(parse(one), parse(other))
    assert comparison.cases == []
    assert len(comparison.only_before) == len(comparison.only_after) == 1
    assert comparison.only_before != comparison.only_after
    assert len(compare(parse(one), parse(one)).cases) == 1


def test_case_of_an_older_file() -> None:
    """Settings that did not exist yet are what they are by default; other numbers of rounds do not matter."""
    old = content_of({"wsfast": even(1000)})
    for name in ("sleep", "compression", "burst", "keepalive", "cold", "tick", "threads"):
        del old["cases"][0]["case"][name]
    new = content_of({"wsfast": even(2000, 20)})
    assert change(old, new).times["wsfast"].seen is True


def test_machines_and_versions_that_differ() -> None:
    """What may explain all the rest is told."""
    before, after = content_of({"wsfast": even(1000)}), content_of({"wsfast": even(1000)})
    assert compare(parse(before), parse(after)).differences == []
    before["machine"]["processor"] = "6502"
    before["versions"]["picows"] = "2.3"
    after["versions"]["websockets"] = "18.0"
    after["processors"] = None
    assert compare(parse(before), parse(after)).differences == [
        ("processor", "6502", "Z80"),
        ("bound to", "1 (server), 0 (clients)", "none"),
        ("version of websockets", "17.4", "18.0"),
        ("version of picows", "2.3", "none"),
    ]


def test_memory_is_compared() -> None:
    """It is one number of each run."""
    before, after = content_of({"wsfast": even(1000)}), content_of({"wsfast": even(1000)})
    after["memory"][0]["servers"]["websockets"]["bytes_per_client"] *= 3
    (scene,) = compare(parse(before), parse(after)).scenes
    assert scene.rows["websockets", "bytes per client"].ratio == pytest.approx(3)
    assert scene.rows["websockets", "bytes per client"].seen is None
    before["memory"][0]["servers"]["websockets"]["bytes_per_client"] = 0
    (scene,) = compare(parse(before), parse(after)).scenes
    assert tabulate_scene(scene)[1][-1] == "-"


# ---- Files that cannot be compared with


def test_compare_with_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is not there is an error before anything is measured."""
    assert main(["bench", "--compare", str(tmp_path / "old.json")]) == 1
    captured = capsys.readouterr()
    assert "wsfast bench: error: cannot read" in captured.err
    assert "No such file" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is damaged, or no JSON"),
        ('{"machine": {', "is damaged, or no JSON"),
        ("[" * 100_000, "is damaged, or no JSON"),
        ("[]", "is not what wsfast bench --json writes"),
        ("{}", "is not what wsfast bench --json writes"),
        ('{"machine": {}, "versions": {}, "scenarios": []}', "it has scenarios"),
        ('{"machine": [], "versions": {}, "cases": []}', "is damaged, or of another version of wsfast: Attr"),
    ],
)
def test_compare_with_something_else(text: str, message: str, tmp_path: Path) -> None:
    """What was not written by --json is an error that says so."""
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(UnfitError, match=re.escape(message)):
        load(path, "cases")
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UnfitError, match="is damaged"):
        load(path, "cases")


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("cases", 0, "case", "clients"), 0),
        (("cases", 0, "case", "clients"), "10"),
        (("cases", 0, "case", "loop"), ["asyncio"]),
        (("cases", 0, "case", "compression"), ["none"]),
        (("cases", 0, "case", "warp"), 9),
        (("cases", 0, "methods"), []),
        (("cases", 0, "methods", "wsfast"), None),
        (("cases", 0, "methods", "wsfast", "samples", "call"), []),
        (("cases", 0, "methods", "wsfast", "samples", "call"), [[]]),
        (("cases", 0, "methods", "wsfast", "samples", "call"), [[1], [2]]),
        (("cases", 0, "methods", "wsfast", "samples", "call", 3), [0]),
        (("cases", 0, "methods", "wsfast", "samples", "call", 3), [float("nan")]),
        (("cases", 0, "methods", "wsfast", "samples", "call", 3), ["fast"]),
        (("cases", 0, "methods", "wsfast", "samples", "call", 3), [True]),
        (("memory", 0, "servers", "websockets"), {}),
        (("processors",), {"server": 1}),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else repr(value),
)
def test_compare_with_a_damaged_file(where: tuple[Any, ...], value: object, tmp_path: Path) -> None:
    """Whatever is wrong in it is an error with a message."""
    content = content_of({"floor": even(1000), "wsfast": even(1000)})
    path = write(tmp_path / "old.json", content)
    assert load(path, "cases").cases
    target: Any = content
    for key in where[:-1]:
        target = target[key]
    target[where[-1]] = value
    with pytest.raises(UnfitError, match="is damaged, or of another version of wsfast"):
        load(write(path, content), "cases")


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere/report.html", "there is no directory"), ("", "is a directory")]
)
def test_report_is_checked_first(name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A page that could not be written is an error before hours have been spent."""
    assert main(["bench", "--report", str(tmp_path / name)]) == 1
    assert message in capsys.readouterr().err


# ---- Both, by the command


def test_compare_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The terminal and the page tell the same of a run and the one before."""
    old, path = tmp_path / "old.json", tmp_path / "report.html"
    argv = ["bench", "--clients", "3", "--rounds", "5", "--calls", "1", "--loops", "asyncio"]
    argv += ["--methods", "wsfast-pure,websockets"]
    assert main([*argv, "--json", str(old)]) == 0
    content = json.loads(old.read_text())
    # As if it had been a thousand times as fast then.
    samples = content["cases"][0]["methods"]["wsfast-pure"]["samples"]
    samples["call"] = [[max(call // 1000, 1) for call in calls] for calls in samples["call"]]
    content["versions"]["websockets"] = "14.2"
    content["cases"].append(copy.deepcopy(content["cases"][0]))
    content["cases"][1]["case"]["clients"] = 4
    write(old, content)
    capsys.readouterr()
    assert main([*argv, "--compare", str(old), "--report", str(path)]) == 0
    output = capsys.readouterr().out
    told = output.partition("\ncompared with ")[2].splitlines()
    assert told[0] == str(old)
    assert told[1].startswith("DIFFERENT version of websockets: 14.2 before, ")
    assert "only before: 4 clients, 64 B text, asyncio" in told
    found = check(path.read_text())
    row = found.table("before us")["wsfast-pure"]
    assert row["time"] == "slower"
    (line,) = [line for line in told if line.startswith("wsfast-pure")]
    cells = line.split()
    assert cells[:3] == [row["method"], row["before us"], row["now us"]]
    assert cells[-5:] == ["slower", *"----"]
    assert found.table("what", "before", "now")["version of websockets"]["before"] == "14.2"
    assert "only before: 4 clients, 64 B text, asyncio" in found.text


ROWS: dict[str, list[dict[str, Any]]] = {
    "stalled": [
        {"way": way, "stalled": stalled, "messages": 9, "asked": 10, "rate": 5e3, "p50": 1.5, "p99": 2.5 + stalled}
        | {"grown": 1 << 20, "disconnected": 0, "dropped": 0, "conflated": 0}
        | {"clients": {"live": 5, "complete": 5 - stalled, "wrong": stalled, "short": 0, "closed": 0}}
        for way in ("Conflate", "websockets")
        for stalled in (0, 1)
    ],
    "conflate": [
        {"way": way, "published": 10, "seconds": 1.0, "read": 3, "age": age, "oldest": age, "more": 1}
        | {"newest": 20, "keys": 20, "disordered": 0, "ages": []}
        for way, age in (("Conflate", 0.25), ("websockets", None))
    ],
    "topics": [
        {"way": way, "topics": 2, "ticks": 20, "rate": 20.0, "deliveries": 100, "cpu": cpu, "busy": 1.5}
        for way, cpu in (("hub", 1.25), ("websockets", 5.0))
    ],
    "frameworks": [
        {"framework": "fastapi", "compression": "none", "way": way, "call": call, **rest}
        for way, call, rest in (
            ("loop", 9.0, {"stopped": 3, "longest": 1.0}),
            ("wsfast", 4.5, {"stopped": None, "longest": 0.25}),
            ("floor", 3.0, {}),
        )
    ],
    "integrations": [
        {"integration": "Sanic", "way": way, "told": way, "cpu": cpu}
        for way, cpu in (("own", 20.0), ("wsfast", 5.0), ("floor", 4.0))
    ],
    "cores": [
        {"way": way, "threads": threads, "default": False, "call": call, "p50": call, "p99": 2 * call}
        | {"efficiency": 3 / call, "faster": 9 / call}
        for way, threads, call in (("floor", 1, 3.0), ("channel", 1, 3.5), ("channel", 4, 1.0), ("websockets", 1, 9.0))
    ],
    "crowded": [
        {"way": "channel", "threads": threads, "default": default, "call": 1.0, "p50": 2.0, "p99": p99}
        | {"efficiency": None, "faster": None}
        for threads, default, p99 in ((1, False, 4.0), (1, True, 5.0), (2, False, 3.0))
    ],
    "heartbeat": [
        {"threads": threads, "beside": beside, "p50": 0.1, "p99": p99, "most": 2 * p99, "delivered": 8e4, "cpu": 6.0}
        for threads, beside, p99 in ((1, False, 30.0), (2, True, 0.75))
    ],
    "relay": [
        {"broker": "redis", "way": way, "messages": 7, "rate": 5e4, "publisher": 9.0, "receiver": 8.0}
        | {"p50": 0.001, "p99": 0.002}
        for way in ("relay", "recipe")
    ],
    "herd": [
        {"way": way, "clients": 3, "missed": 2, "seconds": 2.0, "p50": 0.5, "p99": 1.0, "refused": 0, "cpu": 1.5}
        | {"steady": 1 << 20, "peak": 1 << 21, "grown": 2.0}
        for way in ("new", "back")
    ],
    "rolling": [
        {"way": "rolling", "clients": 3, "workers": 2, "window": 2, "seconds": 6.0, "reconnects": 4, "most": 1}
        | {"share": 1 / 3, "refused": 0, "histogram": [1, 0, 3], "messages": 30, "last": 12}
    ],
    "memory-subscriptions": [
        {"connections": 3, "channels": 10, "subscriptions": 30, "how": how, "subscribed": 200.0, "each": 250.0}
        for how in ("resident", "traced")
    ],
    "wire": [
        {"variant": "all", "way": way, "messages": 9, "octets": octets, "steady": octets, "private": private}
        | {"share": octets / 50, "compressed": octets / 260, "call": 5.0, "faster": 4.0}
        for way, octets, private in (("websockets", 50.0, None), ("wsfast", 55.0, 20.0))
    ],
    "large": [
        {"size": 4096, "way": way, "call": 5.0, "p50": 2.5, "p99": 3.0, "behind": 0.1, "gain": gain}
        | {"faster": 2.0, "efficiency": None, "sends": 10, "short": short}
        for way, gain, short in (("floor-file", 1.5, 0), ("wsfast", 1.25, 3), ("websockets", None, 2))
    ],
    "tls": [
        {"way": way, "call": 5.0, "p50": 2.5, "p99": 3.0, "drained": drained, "faster": 3.0, "picows": picows}
        | {"efficiency": None, "short": 0, "exact": 9}
        for way, drained, picows in (("websockets", 4.5, None), ("wsfast-picows", 3.5, 2.0))
    ],
}
COLUMNS = {
    "stalled": ("p99 ms", ["2.50", "3.50", "2.50", "3.50"]),
    "conflate": ("age s", ["0.25", "-"]),
    "topics": ("CPU us/message", ["1.250", "5.000"]),
    "frameworks": ("us/client", ["9.00", "4.50", "3.00"]),
    "integrations": ("x own", ["1.0", "4.0", "5.0"]),
    "cores": ("efficiency", ["1.00", "0.86", "3.00", "0.33"]),
    "crowded": ("p99 ratio", ["1.00", "1.25", "0.75"]),
    "heartbeat": ("p99 ms", ["30.00", "0.75"]),
    "relay": ("p99 ms", ["2.00", "2.00"]),
    "herd": ("peak/steady", ["2.00", "2.00"]),
    "rolling": ("most in a second", ["1 (33.3%)"]),
    "memory-subscriptions": ("B/subscription", ["250", "250"]),
    "wire": ("x bytes", ["1.00", "1.10"]),
    "large": ("short", ["0", "3", "2"]),
    "tls": ("drained ms", ["4.50", "3.50"]),
}


def scenes(*names: str) -> dict[str, Any]:
    """Return what `--json` writes of these scenarios."""
    played = [
        {"scenario": name, "loop": "asyncio", "title": f"a <{name}>", "rows": copy.deepcopy(ROWS[name])}
        | {"tasks": [{"case": {"clients": 5}, "processors": [1, 0]}]}
        for name in names
    ]
    return {"machine": MACHINE, "versions": VERSIONS, "processors": None, "scenarios": played}


def test_all_scenarios_are_known() -> None:
    """Each has rows here, and so is looked at below."""
    assert set(ROWS) == set(SCENARIOS)


@pytest.mark.parametrize("name", ROWS)
def test_report_of_a_scenario(name: str) -> None:
    """Its numbers are in a table, and in a chart."""
    content = scenes(name)
    text = render(content, None, command="", when="")
    found = check(text)
    head, numbers = COLUMNS[name]
    (table,) = (table for table in found.tables if head in table[0])
    assert [row[table[0].index(head)] for row in table[1:]] == numbers
    assert f"{name}: a <{name}>, asyncio" in found.text
    at_the_top = {"stalled": 2}.get(name, 0)  # in the answer to a question
    assert len(rectangles(text)) == len([number for number in numbers if number != "-"]) + at_the_top
    if name == "stalled":
        assert "WARNING: websockets with 1 stalled: of 5 clients that read, 1 got other bytes" in found.text


@pytest.mark.parametrize("name", ROWS)
def test_comparison_of_scenarios(name: str) -> None:
    """Numbers of the same rows are compared; nobody knows by how much they differ by chance."""
    before, after = scenes(name), scenes(name)
    for row in after["scenarios"][0]["rows"]:
        for key, value in row.items():
            if isinstance(value, float):
                row[key] = value * 2
    after["scenarios"][0]["tasks"][0]["processors"] = None  # which makes no difference
    comparison = compare(parse(before), parse(after))
    (scene,) = comparison.scenes
    doubled = [one for one in scene.rows.values() if one.ratio == 2]
    assert doubled
    assert all(one.seen is None for one in scene.rows.values())
    assert (scene.only_before, scene.only_after) == ([], [])
    found = check(render(after, comparison, command="", when=""))
    assert "2.00" in {row[-1] for table in found.tables if table[0][-1] == "ratio" for row in table}


def test_scenarios_are_matched_by_their_settings() -> None:
    """The same scenario with other settings is another one; a row that is new is told."""
    before, after = scenes("topics", "relay"), scenes("topics")
    after["scenarios"][0]["rows"].append({**ROWS["topics"][0], "way": "new"})
    comparison = compare(parse(before), parse(after))
    assert comparison.only_before == ["relay: a <relay>, asyncio"]
    assert comparison.scenes[0].only_after == ["new"]
    after["scenarios"][0]["tasks"][0]["case"]["clients"] = 6
    assert compare(parse(before), parse(after)).scenes == []
    after["scenarios"][0]["scenario"] = "origami"
    with pytest.raises(ValueError, match="unknown scenario 'origami'"):
        parse(after)


@pytest.mark.skipif(sys.platform != "linux", reason="scenarios are played on Linux only")
def test_scenario_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A scenario has a page, and can be compared, with the same one."""
    argv = ["bench", "--scenario", "conflate", "--seconds", "1"]
    old, path = tmp_path / "old.json", tmp_path / "report.html"
    assert main([*argv, "--json", str(old)]) == 0
    assert main([*argv, "--compare", str(old), "--report", str(path)]) == 0
    told = capsys.readouterr().out.partition(f"compared with {old}")[2]
    assert "conflate: 10 of 1000 updates/s" in told
    assert "only before: conflate" not in told
    found = check(path.read_text())
    names = [row["way"] for row in json.loads(old.read_text())["scenarios"][0]["rows"]]
    assert list(found.table("age s")) == names
    assert set(found.table("method", "what", "ratio")) <= set(names)
    cases = content_of({"wsfast": even(1000)})
    assert main([*argv, "--compare", str(write(old, cases))]) == 1
    assert "it has no scenarios" in capsys.readouterr().err


@pytest.mark.skipif(not extension_present(), reason="the extension is absent")
def test_quick_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--quick` means few clients and rounds, of all methods."""
    plans: list[Case] = []

    def measure_case(case: Case, *_: object) -> None:
        plans.append(case)
        raise UnfitError("enough")

    monkeypatch.setattr("wsfast_bench.session.measure_case", measure_case)
    assert main(["bench", "--quick"]) == 1
    assert (plans[0].clients, plans[0].rounds, plans[0].calls) == (200, 8, 3)
    assert METHODS.keys() >= set(plans[0].methods)
