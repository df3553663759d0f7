"""The differences between an earlier run, read from the file of `--json`, and this one.

Times of the same case and method are compared by the ratio of their medians, with an interval: rounds are drawn anew,
with replacement, from those that were measured (a bootstrap), since calls of one round are alike. That tells what
chance does within a run. It cannot tell how much faster a machine is in one run than in another, which moves all
methods; so efficiencies, each a ratio within its own run, are compared as well.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias, TypeVar

from .methods import floor_of
from .runs import Measured, Run, Scene

__all__ = [
    "CAVEAT",
    "SINGLE",
    "CaseChange",
    "Change",
    "Comparison",
    "SceneChange",
    "compare",
    "describe_interval",
    "print_comparison",
    "tabulate_case",
    "tabulate_scene",
]

RESAMPLES = 1000
"""How often rounds are drawn anew for an interval."""

SEED = 20_240_229
"""The same files come to the same intervals."""

FEWEST = 5
"""Rounds of either run below which nothing is known of their spread."""

CAVEAT = """\
ratio: median of this run divided by that of the earlier run. In brackets: the 95 % interval when rounds are drawn again
at random. Of 20 methods that did not change, about one seems to have changed. This interval covers chance within the
two runs. A machine can also be faster in one run than in the other: then all methods seem to have changed, and
efficiency changes least."""

T = TypeVar("T")
Rounds: TypeAlias = Sequence[Sequence[float]]


# ---- Two runs


@dataclass(frozen=True, slots=True)
class Change:
    """A number then and now."""

    before: float
    after: float
    ratio: float
    """Now divided by then; nan if that was nothing."""
    interval: tuple[float, float] | None = None
    """Where the ratio may as well have been; None if nothing is known of that."""

    @property
    def seen(self) -> bool | None:
        """Whether there is a difference; None if nothing is known of its spread."""
        return None if self.interval is None else not self.interval[0] <= 1 <= self.interval[1]


@dataclass(frozen=True, slots=True)
class CaseChange:
    """The differences of one case."""

    title: str
    times: dict[str, Change]
    """Of each method that is in both runs: microseconds per client and message."""
    efficiencies: dict[str, Change]
    """Of each of them, if both runs have its floor."""
    only_before: list[str]
    only_after: list[str]
    warnings: list[str]
    """Warnings of the earlier run."""


@dataclass(frozen=True, slots=True)
class SceneChange:
    """The differences of a scenario, or of the memory of servers."""

    title: str
    rows: dict[tuple[str, str], Change]
    """By what tells a row apart, and what the number is called."""
    only_before: list[str]
    only_after: list[str]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences between two runs."""

    name: str
    """Of the earlier one."""
    differences: list[tuple[str, str, str]]
    """Of machine, processors and versions: what, then, now."""
    cases: list[CaseChange]
    scenes: list[SceneChange]
    only_before: list[str]
    """Cases and scenarios that only the earlier run has."""
    only_after: list[str]


def compare(before: Run, after: Run) -> Comparison:
    """Compare this run with an earlier one."""
    keys = dict.fromkeys((*before.setting, *after.setting))
    old, new = before.setting, after.setting
    return Comparison(
        name=before.name,
        differences=[(key, old.get(key, "none"), new.get(key, "none")) for key in keys if old.get(key) != new.get(key)],
        cases=[_compare_case(before.cases[key], case) for key, case in after.cases.items() if key in before.cases],
        scenes=[
            _compare_scene(before.scenes[key], scene) for key, scene in after.scenes.items() if key in before.scenes
        ],
        only_before=_titles_of_others(before, after),
        only_after=_titles_of_others(after, before),
    )


def _titles_of_others(run: Run, other: Run) -> list[str]:
    cases = [measured.title for case, measured in run.cases.items() if case not in other.cases]
    return cases + [scene.title for key, scene in run.scenes.items() if key not in other.scenes]


def _compare_case(before: Measured, after: Measured) -> CaseChange:
    times, efficiencies = {}, {}
    for name, rounds in after.methods.items():
        if name not in before.methods:
            continue
        times[name] = _change(_median_of_calls, before.methods[name], rounds)
        floor = floor_of(name)  # that of its own sockets, in both runs, or else the other one
        if floor not in before.methods or floor not in after.methods:
            floor = "floor"
        if floor != name and floor in before.methods and floor in after.methods:
            efficiencies[name] = _change(
                _median_of_ratios, _pairs(before.methods, floor, name), _pairs(after.methods, floor, name)
            )
    return CaseChange(
        after.title,
        times,
        efficiencies,
        [name for name in before.methods if name not in after.methods],
        [name for name in after.methods if name not in before.methods],
        before.warnings,
    )


def _pairs(methods: Mapping[str, Rounds], over: str, under: str) -> list[float]:
    """Return the ratio of two methods within each round."""
    pairs = zip(methods[over], methods[under], strict=True)
    return [statistics.median(first) / statistics.median(second) for first, second in pairs]


def _median_of_calls(rounds: Rounds) -> float:
    return statistics.median(chain.from_iterable(rounds))


def _median_of_ratios(ratios: Sequence[float]) -> float:
    return statistics.median(ratios)


def _change(statistic: Callable[[Sequence[T]], float], before: Sequence[T], after: Sequence[T]) -> Change:
    """Compare a statistic of the rounds of two runs."""
    then, now = statistic(before), statistic(after)
    interval = None
    if min(len(before), len(after)) >= FEWEST:
        chance = random.Random(SEED)
        ratios = sorted(
            statistic(chance.choices(after, k=len(after))) / statistic(chance.choices(before, k=len(before)))
            for _ in range(RESAMPLES)
        )
        beyond = RESAMPLES * 25 // 1000
        interval = ratios[beyond], ratios[-1 - beyond]
    return Change(then, now, now / then, interval)


def _compare_scene(before: Scene, after: Scene) -> SceneChange:
    rows = {}
    for label, numbers in after.rows.items():
        for name, now in numbers.items():
            then = before.rows.get(label, {}).get(name)
            if then is not None:
                # Memory may not have grown at all.
                rows[label, name] = Change(then, now, now / then if then > 0 else math.nan)
    return SceneChange(
        after.title,
        rows,
        [label for label in before.rows if label not in after.rows],
        [label for label in after.rows if label not in before.rows],
    )


# ---- Tables


def describe_interval(change: Change) -> str:
    """Return the ratio, and in brackets where it may as well have been."""
    if math.isnan(change.ratio):
        return "-"
    if change.interval is None:
        return f"{change.ratio:.2f}"
    return f"{change.ratio:.2f} [{change.interval[0]:.2f}, {change.interval[1]:.2f}]"


def tabulate_case(change: CaseChange) -> list[list[str]]:
    """Return the table of a case: rows, the first of which are the heads."""
    rows = [["method", "before us", "now us", "ratio", "time", "efficiency before", "now", "ratio", "efficiency"]]
    for name, time in change.times.items():
        row = [name, f"{time.before:.2f}", f"{time.after:.2f}", describe_interval(time)]
        row.append(_judge(time, "slower", "faster"))
        efficiency = change.efficiencies.get(name)
        if efficiency is None:
            row += ["-"] * 4
        else:
            row += [f"{efficiency.before:.2f}", f"{efficiency.after:.2f}", describe_interval(efficiency)]
            row.append(_judge(efficiency, "higher", "lower"))
        rows.append(row)
    return rows


def _judge(change: Change, more: str, less: str) -> str:
    if change.seen is None:
        return f"fewer than {FEWEST} rounds: not known"
    if not change.seen:
        return "no difference seen"
    return more if change.ratio > 1 else less


def tabulate_scene(change: SceneChange) -> list[list[str]]:
    """Return the table of a scenario: rows, the first of which are the heads."""
    return [
        ["method", "what", "before", "now", "ratio"],
        *(
            [label, name, _amount(one.before), _amount(one.after), describe_interval(one)]
            for (label, name), one in change.rows.items()
        ),
    ]


def _amount(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


SINGLE = "Each of these is a single number in each run, so it is not known how much of a difference is chance."
"""The caveat for scenarios and memory."""


def print_comparison(comparison: Comparison) -> None:
    """Print the differences, beginning with those of machine and versions."""
    from .report import print_table

    print(f"\ncompared with {comparison.name}")
    for what, before, after in comparison.differences:
        print(f"DIFFERENT {what}: {before} before, {after} now")
    for case in comparison.cases:
        print(f"\n{case.title}")
        for line in case.warnings:
            print(f"before: {line}")
        print_table(tabulate_case(case))
        _print_others(case)
    if comparison.cases:
        print(CAVEAT)
    for scene in comparison.scenes:
        print(f"\n{scene.title}")
        print_table(tabulate_scene(scene))
        _print_others(scene)
    if comparison.scenes:
        print(SINGLE)
    if not comparison.cases and not comparison.scenes:
        print("The two runs have no case in common.")
    for which, titles in (("before", comparison.only_before), ("now", comparison.only_after)):
        for title in titles:
            print(f"only {which}: {title}")


def _print_others(change: CaseChange | SceneChange) -> None:
    for which, names in (("before", change.only_before), ("now", change.only_after)):
        if names:
            print(f"only {which}: {', '.join(names)}")
