"""The two cores, and how the whole package is made to use one: no test knows which modules refer to it."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import pytest

from wsfast import _core
from wsfast._core import _pure

__all__ = ["CORES", "LOOPS", "PURE_ONLY", "load_core", "use_core"]

# Where the extension must be there, its absence is a failure. A build that has none on purpose says so.
PURE_ONLY = os.environ.get("WSFAST_TEST_PURE_ONLY", "0") not in ("", "0")
CORES = ["py"] if PURE_ONLY else os.environ.get("WSFAST_TEST_CORES", "c py").split()
LOOPS = os.environ.get("WSFAST_TEST_LOOPS", "asyncio uvloop").split()
"""Kinds of event loops. Runs that look for something else take one of them, as .ci/run does."""
CORE_MODULES = {"wsfast._core", "wsfast._core._core", "wsfast._core._pure"}


def load_core(name: str) -> Any:
    """Return one of the cores."""
    return importlib.import_module("wsfast._core._core") if name == "c" else _pure


def use_core(core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the whole package use a core, or what stands for one, in place of that which it has chosen."""
    _find_references()
    for (module, attribute), name in _REFERENCES.items():
        monkeypatch.setattr(sys.modules[module], attribute, core if name is None else getattr(core, name))


_REFERENCES: dict[tuple[str, str], str | None] = {}
"""Modules that refer to the chosen core, the names by which they do, and which of the core's names that is, if any."""


def _find_references() -> None:
    """Find modules that were imported since, and refer to the chosen core by its name or to something in it."""
    chosen = _core.core
    for module in [name for name in sys.modules if name.startswith("wsfast.") and name not in CORE_MODULES]:
        for attribute, value in list(vars(sys.modules[module]).items()):
            if value is chosen:
                _REFERENCES[module, attribute] = None
            elif chosen is not _pure and (name := _name_in(chosen, value)):  # the twin is also used on purpose
                _REFERENCES[module, attribute] = name


def _name_in(core: Any, value: Any) -> str | None:
    name = getattr(value, "__name__", None)
    return name if getattr(value, "__module__", None) == core.__name__ and vars(core).get(name) is value else None
