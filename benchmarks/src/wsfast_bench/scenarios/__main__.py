"""The process in which a task of a scenario is done."""

from __future__ import annotations

import json
import sys

from wsfast_bench.cases import Case
from wsfast_bench.measure import run_and_report

from . import SCENARIOS


def main() -> None:
    """Do the task (second argument) of a scenario (first argument), and report by a line of JSON."""
    scenario, task = SCENARIOS[sys.argv[1]], json.loads(sys.argv[2])
    case = Case.from_json(task["case"])
    run_and_report(case, lambda: scenario.run(case, task))


if __name__ == "__main__":
    main()
