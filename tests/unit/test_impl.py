from __future__ import annotations

import os
import sys

import pytest

from helpers import processes
from helpers.cores import PURE_ONLY

SCRIPT = "import wsfast, wsfast._core; print(wsfast._core.core.__name__, wsfast.PreparedMessage('x').frame)"


def chosen(**environment: str) -> str:
    """Return the name of the core that a fresh interpreter chooses."""
    clean = {name: value for name, value in os.environ.items() if name != "WSFAST_PURE"}
    done = processes.run(sys.executable, "-c", SCRIPT, env=clean | environment, check=True)
    name, _, frame = done.stdout.strip().partition(" ")
    assert frame == repr(b"\x81\x01x")
    return name


def test_wsfast_pure_chooses_the_twin() -> None:
    """WSFAST_PURE=1 chooses the core in plain Python."""
    assert chosen(WSFAST_PURE="1") == "wsfast._core._pure"


@pytest.mark.parametrize("environment", [{}, {"WSFAST_PURE": "0"}, {"WSFAST_PURE": ""}], ids=repr)
def test_the_extension_is_chosen_otherwise(environment: dict[str, str]) -> None:
    """Unless WSFAST_PURE says otherwise, the extension is chosen where there is one."""
    assert chosen(**environment) == ("wsfast._core._pure" if PURE_ONLY else "wsfast._core._core")
