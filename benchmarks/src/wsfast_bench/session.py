"""The command line's side of a measurement: it starts a process for each case and shows how far that is."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
from types import TracebackType
from typing import Any

from .cases import Case, Result, Weight
from .machine import UnfitError, installed

__all__ = ["Progress", "ask", "measure_case", "measure_memory"]


class Progress:
    """A progress bar on standard error.

    Args:
        total: Steps of all cases.
        wanted: Whether to show it; None to show it if standard error is a terminal.
    """

    def __init__(self, total: int, wanted: bool | None) -> None:
        self._bar: Any = None
        if wanted is None:
            wanted = sys.stderr.isatty()
        if wanted and not installed("tqdm"):
            print("No progress bar: tqdm is not installed; pip install wsfast[bench]")
        elif wanted:
            import tqdm

            tqdm.tqdm.monitor_interval = 0  # no thread that redraws while something is measured
            self._bar = tqdm.tqdm(total=total, unit="step", leave=False, dynamic_ncols=True, mininterval=0)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, case: object) -> None:
        """Tell which case is being measured."""
        if self._bar is not None:
            self._bar.set_description(str(case))

    def advance(self) -> None:
        """Count one step."""
        if self._bar is not None:
            self._bar.update()

    def clear(self) -> None:
        """Make room for other output."""
        if self._bar is not None:
            self._bar.clear()


def measure_case(case: Case, processors: tuple[int, int] | None, progress: Progress) -> Result:
    """Measure one case in a fresh process, so that no case finds anything that another left behind.

    Raises:
        UnfitError: If it could not be measured.
    """
    progress.show(case)
    task = {"case": dataclasses.asdict(case), "processors": processors}
    return Result.from_json(case, ask("measure", case, task, progress))


def measure_memory(case: Case, way: str, processors: tuple[int, int] | None, progress: Progress) -> Weight:
    """Measure what the connections of a server take of memory, in a fresh process.

    Raises:
        UnfitError: If it could not be measured.
    """
    progress.show(case)
    task = {"case": dataclasses.asdict(case), "way": way, "processors": processors}
    return Weight(**ask("memory", case, task, progress))


def ask(module: str, case: object, task: dict[str, Any], progress: Progress, *names: str) -> Any:
    """Have a module of this package do a task in a process of its own; return what came of it.

    Args:
        module: Name of the module.
        case: The name in the error of the case that is measured.
        task: The task, sent to the module.
        progress: Counts its steps.
        *names: Arguments of the module.

    Raises:
        UnfitError: If it could not be done.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", f"wsfast_bench.{module}", *names, json.dumps(task)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for this process, which then ends the others
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for line in process.stdout:
            answer = json.loads(line)
            if "result" in answer:
                return answer["result"]
            if "error" in answer:
                raise UnfitError(f"{case}: {answer['error']}")
            progress.advance()
            with contextlib.suppress(BrokenPipeError):  # if it has ended, so have its lines
                process.stdin.write("\n")
                process.stdin.flush()
        raise UnfitError(f"{case}: the measuring process has ended with status {process.wait()}")
    except BaseException:
        process.send_signal(signal.SIGINT)  # it has clients to end
        raise
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        process.wait()
