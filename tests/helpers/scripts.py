"""The scripts of the repository as modules."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from .pages import ROOT

__all__ = ["script"]


def script(name: str) -> ModuleType:
    """Import `scripts/NAME.py`, anew each time."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
