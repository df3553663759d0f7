"""The process in which a task of a scenario is done."""

from __future__ import annotations

import json
import sys

from wsfast_bench.cases import Case
from wsfast_bench.measure import tell

from . import SCENARIOS


def main() -> None:
    """Do the task in the second argument, of the scenario in the first; tell the command line by a line of JSON."""
    scenario, task = SCENARIOS[sys.argv[1]], json.loads(sys.argv[2])
    case = Case.from_json(task["case"])
    tell(case, lambda: scenario.run(case, task))


if __name__ == "__main__":
    main()
