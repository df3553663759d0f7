"""How many threads send."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

import wsfast
from helpers import processes
from wsfast._core import _process


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the processors of the affinity, and files of control groups; return what is found."""

    def machine(processors: int, membership: str = "", **files: str) -> _process.Threads:
        monkeypatch.setattr(_process, "GIVEN_THREADS", None)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)), raising=False)
        for name, content in (files | {"proc/self/cgroup": membership}).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return _process.default_threads(tmp_path)

    return machine


@pytest.mark.parametrize(("processors", "count"), [(1, 1), (2, 1), (3, 1), (4, 2), (7, 3), (16, 8), (17, 8), (64, 8)])
def test_half_of_the_processors(machine: Any, processors: int, count: int) -> None:
    found = machine(processors)
    assert found.number == count
    assert f"half of {processors} usable processors" in found.reason


def test_no_affinity(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is none, as on macOS, all processors are usable."""
    machine(2)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert _process.default_threads().number == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert _process.default_threads().number == 1


V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/cpu,cpuacct"
OF_V1 = "4:memory:/box\n3:cpu,cpuacct:/box\n2:cpuset:/\n0::/\n"


@pytest.mark.parametrize(
    ("membership", "files", "count"),
    [
        ("0::/outer/inner\n", {}, 8),
        ("0::/outer/inner\n", {f"{V2}/outer/inner/cpu.max": "max 100000\n"}, 8),
        ("0::/outer/inner\n", {f"{V2}/outer/cpu.max": "150000 100000\n", f"{V2}/cpu.max": "800000 100000\n"}, 1),
        ("0::/outer/inner\n", {f"{V2}/cpu.max": "600000 100000\n"}, 3),  # a container, whose own group is the top
        ("0::/outer/inner\n", {f"{V2}/cpu.max": "9900000 100000\n"}, 8),
        (OF_V1, {f"{V1}/box/cpu.cfs_quota_us": "-1\n", f"{V1}/box/cpu.cfs_period_us": "100000\n"}, 8),
        (OF_V1, {f"{V1}/box/cpu.cfs_quota_us": "250000\n", f"{V1}/box/cpu.cfs_period_us": "50000\n"}, 2),
    ],
)
def test_quotas(machine: Any, membership: str, files: dict[str, str], count: int) -> None:
    """The lowest quota on the way to the root counts, of either version of control groups."""
    found = machine(16, membership, **files)
    assert found.number == count
    assert ("quota" in found.reason) == (count < 8)


@pytest.mark.parametrize("count", [0, -1, 65, 10**30])
def test_numbers_out_of_range(count: int) -> None:
    with pytest.raises(ValueError, match="threads must be between 1 and 64, not "):
        wsfast.set_threads(count)


@pytest.mark.parametrize("count", ["4", 4.0, True, b"4"])
def test_what_is_no_number(count: Any) -> None:
    with pytest.raises(TypeError, match="threads must be an integer or None, not "):
        wsfast.set_threads(count)


SAYS = "import wsfast; wsfast.set_threads({}); print(wsfast.threads())"


@pytest.mark.parametrize(
    ("said", "variable", "pure", "count"),
    [("3", "5", "0", 3), ("None", "5", "0", 5), ("64", "", "0", 64), ("3", "5", "1", 1)],
)
def test_who_says_how_many(said: str, variable: str, pure: str, count: int) -> None:
    """A call counts more than the environment; without the extension there is one thread."""
    environment = {**os.environ, "WSFAST_THREADS": variable, "WSFAST_PURE": pure}
    done = processes.run(sys.executable, "-c", SAYS.format(said), env=environment)
    assert int(done.stdout) == (1 if os.environ.get("WSFAST_TEST_PURE_ONLY", "0") not in ("", "0") else count)


@pytest.mark.parametrize("variable", ["0", "65", "four", "-1", "2.5"])
def test_what_the_environment_must_not_say(variable: str) -> None:
    environment = {**os.environ, "WSFAST_THREADS": variable}
    done = processes.run(sys.executable, "-c", "import wsfast", env=environment)
    assert done.returncode == 1
    message = f"ValueError: WSFAST_THREADS must be a number between 1 and 64, not '{variable}'"
    assert message in done.stderr
