"""The base class of scenarios, with their options and results."""

from __future__ import annotations

import argparse
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from wsfast_bench.cases import Case
from wsfast_bench.machine import UnfitError, reserve_descriptors

__all__ = ["Bars", "Chart", "Option", "Play", "Results", "Row", "Scenario", "Settings"]

Row: TypeAlias = Mapping[str, Any]
"""Numbers of one method, by their names."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option of the command line that takes a number."""

    name: str
    what: str
    default: int
    quick: int
    """The default with `--quick`."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of the command line."""

    arguments: argparse.Namespace
    loop: str
    processors: tuple[int, int] | None
    """One for the server, one for its clients; None to bind neither."""

    def clients(self, default: int = 1000) -> int:
        """Return how many clients there are."""
        if self.arguments.clients is None:
            return 200 if self.arguments.quick else default
        if len(self.arguments.clients) > 1:
            raise UnfitError("a scenario is played with one number of clients")
        count: int = self.arguments.clients[0]
        return count

    def number(self, option: Option) -> int:
        """Return the value of an option."""
        value: int | None = getattr(self.arguments, option.name)
        return value or (option.quick if self.arguments.quick else option.default)

    def rounds(self) -> dict[str, int]:
        """Return how many rounds and calls there are, as they stand in a case."""
        rounds = self.arguments.rounds or (8 if self.arguments.quick else 40)
        return {"rounds": rounds, "calls": self.arguments.calls or 3}

    def case(self, clients: int, size: int, kind: str = "binary", *, keepalive: bool = True) -> dict[str, Any]:
        """Return a case as it stands in a task, with descriptors for its clients.

        Args:
            clients: How many.
            size: Payload of a message in bytes.
            kind: `text` or `binary`.
            keepalive: Whether its clients answer pings: those that read too slowly would be closed for it.
        """
        reserve_descriptors(clients + 64, f"{clients} clients")
        keepalive = keepalive and not self.arguments.no_keepalive
        return dataclasses.asdict(Case(clients, size, self.loop, kind, (), 1, 1, "list", keepalive=keepalive))


@dataclass(frozen=True, slots=True)
class Play:
    """One process of a scenario."""

    title: str
    """The scenario, a colon, and the part that this process plays."""
    task: dict[str, Any]

    def __str__(self) -> str:
        return self.title


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a scenario, as they are shown."""

    table: list[list[str]]
    """Rows of cells, the first of which are the heads."""
    warnings: list[str]
    legend: str
    """Explanation of the heads."""


@dataclass(frozen=True, slots=True)
class Chart:
    """The chart of a scenario."""

    quantity: str
    """Name of the numbers, with their unit."""
    key: str
    """Their name in a row."""
    label: str
    """Format of a bar's label, of a row."""


@dataclass(frozen=True, slots=True)
class Bars:
    """The bars of one chart."""

    quantity: str
    bars: list[tuple[str, str, float]]
    """Of each bar, its label, its group, and the number."""


class Scenario(ABC):
    """A scenario: its plan, its measurement, its table and its chart. The attributes are the same for each run."""

    name: ClassVar[str]
    help: ClassVar[str]
    options: ClassVar[tuple[Option, ...]] = ()
    keys: ClassVar[tuple[str, ...]] = ("way",)
    """Names in a row that tell it from the others."""
    numbers: ClassVar[Mapping[str, str]]
    """Names in a row of what is compared with an earlier run, each with what it is called."""
    theirs: ClassVar[frozenset[str]] = frozenset({"websockets"})
    """Ways that are not of wsfast."""
    chart: ClassVar[Chart]
    legend: ClassVar[str]

    @abstractmethod
    def plan(self, settings: Settings) -> Iterator[Play]:
        """Iterate over the parts of the scenario. Each runs in a process of its own.

        Raises:
            UnfitError: If it cannot be played here.
        """

    @abstractmethod
    async def run(self, case: Case, task: dict[str, Any]) -> Row | list[Row]:
        """Do one task of the plan, in its process.

        Raises:
            UnfitError: If it cannot be done.
        """

    @abstractmethod
    def tabulate(self, rows: Sequence[Row]) -> list[list[str]]:
        """Return the table: rows, the first of which are the heads."""

    def warn(self, rows: Sequence[Row]) -> list[str]:
        """Return warnings about the numbers."""
        return []

    def results(self, rows: Sequence[Row]) -> Results:
        """Return the table, the warnings and the legend of some rows."""
        return Results(self.tabulate(rows), self.warn(rows), self.legend)

    def draw(self, rows: Sequence[Row]) -> Bars:
        """Return the bars of some rows."""
        key, label = self.chart.key, self.chart.label
        bars = [(label.format_map(row), self.group(row), row[key]) for row in rows if row[key] is not None]
        return Bars(self.chart.quantity, bars)

    def group(self, row: Row) -> str:
        """Return whose a row is: `ours`, `theirs` or `floor`."""
        way = row.get("way")
        return "theirs" if way in self.theirs else "floor" if way == "floor" else "ours"

    def label(self, row: Row) -> str:
        """Return a label that no other row has."""
        return ", ".join(str(row[key]) for key in self.keys)
