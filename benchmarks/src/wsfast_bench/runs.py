"""A run in the form in which it can be compared, read from the file of `--json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

from .cases import Case
from .machine import UnfitError
from .scenarios import SCENARIOS

__all__ = ["Measured", "Run", "Scene", "load", "parse"]


@dataclass(frozen=True, slots=True)
class Measured:
    """The measurements of one case."""

    title: str
    methods: dict[str, list[list[float]]]
    """For each method, the microseconds per client and message that it is judged by, of each call, by rounds."""
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class Scene:
    """The results of a scenario, or the memory of servers."""

    title: str
    rows: dict[str, dict[str, float]]
    """For each row, its numbers by their names."""


@dataclass(frozen=True, slots=True)
class Run:
    """The parts of a run that are compared."""

    name: str
    setting: dict[str, str]
    """Machine, processors and versions."""
    cases: dict[Case, Measured]
    """By the case without its methods, rounds and calls."""
    scenes: dict[str, Scene]
    """By their exact settings."""


def load(path: Path, kind: str) -> Run:
    """Read what `--json` wrote.

    Args:
        path: The file.
        kind: The part that it must have, `cases` or `scenarios`.

    Raises:
        UnfitError: If it cannot be read, or is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise UnfitError(f"cannot read {path}: {exc.strerror}") from None
    except (ValueError, RecursionError) as exc:
        raise UnfitError(f"{path} is damaged, or no JSON: {exc}") from None
    if not isinstance(content, dict) or not {"machine", "versions"} <= content.keys():
        raise UnfitError(f"{path} is not what wsfast bench --json writes")
    if kind not in content:
        other = "scenarios" if kind == "cases" else "no scenarios"
        raise UnfitError(f"cannot compare with {path}: it has {other}")
    try:
        return parse(content, str(path))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as exc:
        reason = f"{type(exc).__name__}: {exc}"
        raise UnfitError(f"{path} is damaged, or of another version of wsfast: {reason}") from None


def parse(content: Mapping[str, Any], name: str = "this run") -> Run:
    """Return the parts of a run that are compared.

    Raises:
        AttributeError: If it has another shape than it should have.
        IndexError: The same.
        KeyError: The same.
        TypeError: The same.
        ValueError: The same, or if a number is none that can be measured.
    """
    setting = {str(key): str(value) for key, value in content["machine"].items()}
    bound = content.get("processors")
    setting["bound to"] = "none" if bound is None else f"{bound['server']} (server), {bound['clients']} (clients)"
    setting |= {f"version of {key}": str(value) for key, value in content["versions"].items()}
    cases = {}
    for entry in content.get("cases", ()):
        case, measured = _parse_case(entry)
        cases[case] = measured
    scenes = {}
    for entry in content.get("memory", ()):
        title = f"memory: {_key(entry['case'])}"
        servers = entry["servers"].items()
        scenes[title] = Scene(
            title, {way: {"bytes per client": _number(weight["bytes_per_client"])} for way, weight in servers}
        )
    for entry in content.get("scenarios", ()):
        key, scene = _parse_scene(entry)
        scenes[key] = scene
    return Run(name, setting, cases, scenes)


def _parse_case(entry: Mapping[str, Any]) -> tuple[Case, Measured]:
    case = _key(entry["case"])
    scale = 1e3 * case.clients * case.burst
    methods = {}
    for name, method in entry["methods"].items():
        rounds = [[_number(call) / scale for call in calls] for calls in method["samples"][case.figure]]
        if not rounds or not all(rounds) or any(value <= 0 for value in chain(*rounds)):
            raise ValueError(f"samples of {name} are missing, or no times")
        methods[str(name)] = rounds
    if len({len(rounds) for rounds in methods.values()}) > 1:
        raise ValueError(f"methods have different numbers of rounds in {case}")
    return case, Measured(str(case), methods, [str(line) for line in entry["warnings"]])


def _key(data: Mapping[str, Any]) -> Case:
    """Return a case without the settings that may differ when runs are compared."""
    known = {field.name for field in fields(Case)}
    if not data.keys() <= known:
        raise ValueError(f"unknown setting {', '.join(sorted(data.keys() - known))}")
    case = Case.from_json({**data, "methods": (), "rounds": 0, "calls": 0})
    example = Case(1, 1, "", "", (), 1, 1, "")
    for name in known:
        if not isinstance(getattr(case, name), type(getattr(example, name))):
            raise TypeError(f"{name} is {getattr(case, name)!r}")
    if case.clients < 1 or case.burst < 1:
        raise ValueError("a case needs clients and messages")
    hash(case)
    return case


def _number(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    return value


def _parse_scene(entry: Mapping[str, Any]) -> tuple[str, Scene]:
    name, loop, tasks = entry["scenario"], entry["loop"], entry["tasks"]
    if name not in SCENARIOS:
        raise ValueError(f"unknown scenario {name!r}")
    scenario = SCENARIOS[name]
    settings = [{key: value for key, value in task.items() if key != "processors"} for task in tasks]
    rows = {}
    for row in entry["rows"]:
        numbers = {told: _number(row[key]) for key, told in scenario.numbers.items() if row[key] is not None}
        rows[scenario.label(row)] = numbers
    title = f"{name}: {entry['title']}, {loop}" if "title" in entry else f"{name}, {loop}"
    return json.dumps([name, loop, settings], sort_keys=True), Scene(title, rows)
